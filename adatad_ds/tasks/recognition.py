"""Recognition as a task: clips of labelled videos, cross entropy, top-1 and top-5 accuracy.

B videos, V views of a video (clips x crops), T frames of a view, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from adatad_ds.config.schema import Config
from adatad_ds.data.augmentation.mixing import mix
from adatad_ds.data.clip_dataset import ClipBatch, ClipDataset
from adatad_ds.data.labelled_videos import listed_videos
from adatad_ds.data.preparation.needs import check_prepared_clips
from adatad_ds.data.video_dataset import frames_on
from adatad_ds.distributed.world import World
from adatad_ds.evaluation.accuracy import PREDICTIONS_FILE, Recognition, recognition_accuracy, write_predictions
from adatad_ds.models.recogniser import Recogniser
from adatad_ds.tasks.base import Evaluation, StepEngine, data_fingerprint, open_test_loader
from adatad_ds.weights.files import Tensors
from adatad_ds.weights.layout import Weights
from adatad_ds.weights.loading import published_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Logits = dict[str, NDArray[np.float32]]  # of each video's views, (V, K)


class RecognitionTask:
    """A `base.Task`.

    Args:
        config: of the run, with a section `recognition`.
        world: the ranks.
        train_data: clips to train on.
        test_data: clips to evaluate on, of the same classes.
    """

    loss_names = ("cross_entropy",)

    def __init__(self, *, config: Config, world: World, train_data: ClipDataset, test_data: ClipDataset) -> None:
        assert config.recognition is not None
        self._config, self._world, self._settings = config, world, config.recognition
        self.train_data, self.test_data = train_data, test_data
        self.classes = train_data.classes
        self.reports = tuple(
            f"data: {len(data.videos)} videos of {len(data.classes)} classes to {what}"
            for what, data in (("learn from", self.train_data), ("test on", self.test_data))
        )
        self._damage_told = False  # every evaluation reads the same files
        self.data_fingerprint = data_fingerprint(
            ((video.name, video.label) for video in self.train_data.videos), classes=self.classes
        )

    @classmethod
    def from_config(cls, config: Config, *, world: World) -> Self:
        """The task over a config's videos.

        Raises:
            DataError: no usable videos or lists.
        """
        train_data = open_clips(config, training=True)
        test_data = open_clips(config, training=False, classes=train_data.classes)
        return cls(config=config, world=world, train_data=train_data, test_data=test_data)

    def restore_published(self, weights: Weights, model: Recogniser) -> dict[str, Tensors]:
        """Adapters and classifier of a published model; see `published_state`."""
        return published_state(weights, model, config=self._config, reset_classifier=self._config.reset_classifier)

    def describe_published(self, restored: Container[str]) -> list[str]:
        """No lines: a recogniser's classes are named by its lists."""
        return []

    def step(self, engine: StepEngine, micro_batches: Sequence[ClipBatch]) -> tuple[list[ClipBatch], Tensor]:
        """One optimizer step: labels, forward, loss, backward. A collective.

        The loss is the cross entropy's mean over the samples of the global batch that have a label.
        """
        world, batches = self._world, list(micro_batches)
        labelled = max(1.0, world.sum(sum(int((batch.labels >= 0).sum()) for batch in batches))[0])
        sums = torch.zeros(len(self.loss_names), device=world.device)
        for batch in batches:
            with record_function("forward"):
                frames, targets = self._mixed(batch)
                logits = engine(frames, batch.seeds)[:, 0]
                share = F.cross_entropy(logits, targets, reduction="sum")[None] / labelled
            with record_function("backward"):
                # Cancel the engine's averaging over ranks and micro batches, so that shares add up.
                engine.backward(share.sum() * (world.size * engine.accumulation))
            with record_function("step"):
                engine.step()
            sums += share.detach()
        return batches, sums

    def _mixed(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """A micro batch's frames and smoothed targets (B, K) on the device, blended by mixup or CutMix; zeros without a
        label.

        # differs: mixup and CutMix blend the samples of one rank's micro batch, so that with them results depend on
        # how the global batch is split.
        """
        settings, classes = self._settings, len(self.classes)
        device = self._world.device
        frames, soft = mix(
            frames_on(device, batch.frames, batch.steps),
            batch.labels.to(device, non_blocking=True),
            classes=classes,
            mixup_alpha=settings.mixup_alpha,
            cutmix_alpha=settings.cutmix_alpha,
            seed=int(batch.seeds[0]),
        )
        known = soft.sum(dim=1, keepdim=True)
        return frames, (1 - settings.label_smoothing) * soft + settings.label_smoothing / classes * known

    def sum_over_samples(self, *values: float | Tensor) -> list[float]:
        """Sums over all ranks. A collective."""
        return self._world.sum(*values)

    def scalars(self) -> dict[str, float]:
        """No extra scalars."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step depends on its batch and the weights alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def evaluate(self, forward: Callable[..., Any], *, report: Callable[[str], None]) -> Evaluation | None:
        """Recognise the test videos and measure; the result is on rank 0 only. A collective."""
        world = self._world
        batches = open_test_loader(self.test_data, config=self._config, world=world, rank=world.rank, ranks=world.size)
        logits, damaged = recognise(forward=forward, batches=batches, world=world, report=report)
        recognition = world.attempt(lambda: measure_recognition(logits, data=self.test_data) if world.is_main else None)
        if recognition is None:
            return None
        for line in damaged.values() if not self._damage_told else ():
            report(f"a test video is damaged: {line}")
        self._damage_told = True

        def confusion(title: str) -> Figure:
            from adatad_ds.evaluation.plots.curves import confusion_figure

            return confusion_figure(recognition, title=f"{title}: classes mistaken")

        return Evaluation(
            metrics=recognition.to_dict(),
            table=recognition.table(),
            per_class=recognition.per_class_table(),
            pictures={"confusion": confusion},
            save=lambda folder: save_predictions(logits, damaged, data=self.test_data, folder=folder),
        )


def open_clips(config: Config, *, training: bool, classes: Sequence[str] = ()) -> ClipDataset:
    """The training or test clips of a config.

    Args:
        config: of the run, with a section `recognition`.
        training: random clips, or the fixed views.
        classes: names by index, where they are known already.

    Raises:
        DataError: no usable videos or lists, or prepared videos that lack what is read.
    """
    settings, data = config.recognition, config.data
    assert settings is not None
    videos = listed_videos(settings, data, training=training, classes=classes)
    check_prepared_clips(videos.videos, data, training=training)
    return ClipDataset(
        videos=videos,
        training=training,
        frames=settings.frames,
        sampling=settings.sampling,
        stride=settings.stride,
        resolution=data.resolution,
        short_side_before_crop=data.short_side_before_crop,
        scaling=data.scaling,
        augment=data.augment,
        clips=settings.test_clips,
        crops=settings.test_crops,
        reader=data.reader,
        seed=config.train.seed,
        repeats=config.train.repeats,
        augment_on_device=data.augment_on_device,
    )


@torch.no_grad()
def recognise(
    *, forward: Callable[..., Any], batches: Iterable[ClipBatch], world: World, report: Callable[[str], None]
) -> tuple[Logits, dict[str, str]]:
    """Class logits of every readable video's views, and what is missing in damaged files, by video. A collective.

    Args:
        forward: frames (B, V, T, H, W, 3) uint8 to logits (B, V, K).
        batches: this rank's share of the test clips.
        world: the ranks.
        report: told about videos that could not be read.
    """
    own: Logits = {}
    damaged: dict[str, str] = {}
    failed: set[str] = set()
    for batch in world.together(batches):
        logits = forward(batch.frames.to(world.device, non_blocking=True)).float().cpu().numpy()
        for index, video in enumerate(batch.videos):
            error = batch.errors[index]
            if error is not None:
                failed.add(error)
            elif not batch.padding[index]:
                own[video] = logits[index]
                if batch.damage[index]:
                    damaged[video] = str(batch.damage[index])
    for error in sorted(set().union(*world.gather(failed))):
        report(f"not recognised: {error}")
    gathered = world.gather((own, damaged))
    return (
        {video: views for part, _ in gathered for video, views in part.items()},
        {video: line for _, part in gathered for video, line in part.items()},
    )


def measure_recognition(logits: Logits, *, data: ClipDataset) -> Recognition:
    """Accuracies of predictions of a test set."""
    return recognition_accuracy(logits, {video.name: video.label for video in data.videos}, classes=data.classes)


def save_predictions(logits: Logits, damaged: Mapping[str, str], *, data: ClipDataset, folder: Path) -> None:
    """Write the predictions of a test set, and what its damaged files lack, into a folder."""
    truth = {video.name: video.label for video in data.videos}
    write_predictions(folder / PREDICTIONS_FILE, logits, truth, classes=data.classes, damaged=damaged)
