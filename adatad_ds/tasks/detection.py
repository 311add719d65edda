"""Detection as a task: windows of videos, the losses of the head, mean average precision.

P points of all pyramid levels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.profiler import record_function

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.batch import Batch
from adatad_ds.data.features.dataset import FeatureDataset
from adatad_ds.data.video_dataset import frames_on
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.detection.losses import LossNormalizer
from adatad_ds.detection.points import Targets, assign_targets
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.errors import DataError
from adatad_ds.evaluation.detections_file import DETECTIONS_FILE, write_results
from adatad_ds.evaluation.metrics import Metrics
from adatad_ds.models.detector import CLASS_LOGITS, Detector, detector_points, valid_points
from adatad_ds.models.heads.interface import Predictions
from adatad_ds.recipes.class_order import describe_logits
from adatad_ds.tasks.base import Evaluation, StepEngine, data_fingerprint, open_test_loader
from adatad_ds.tasks.detection_pipeline import (
    Results,
    damaged_videos,
    external_scores,
    find_candidates,
    finish,
    measure,
)
from adatad_ds.weights.files import Tensors
from adatad_ds.weights.layout import Weights
from adatad_ds.weights.loading import published_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_VIDEOS = 4  # legible on one of TensorBoard's cards


class DetectionTask:
    """A `base.Task`.

    Args:
        config: of the run.
        mesh: the ranks.
        train_data: windows to train on.
        test_data: windows to evaluate on.

    Raises:
        DataError: external class scores that do not fit.
    """

    loss_names = ("classification", "regression")

    def __init__(self, *, config: Config, mesh: Mesh, train_data: WindowDataset, test_data: WindowDataset) -> None:
        self._config, self._mesh = config, mesh
        self.train_data, self.test_data = train_data, test_data
        self.classes = self.train_data.classes
        self.reports = tuple(f"data: {line}" for line in (*self.train_data.reports, *self.test_data.reports))
        self.data_fingerprint = data_fingerprint(
            (
                (video.name, video.duration_sec, video.num_frames, video.fps, *map(astuple, video.actions))
                for video in self.train_data.videos
            ),
            classes=self.classes,
        )
        self._external = external_scores(config, videos=self.test_data.videos, classes=self.classes)
        self._damage_told = False  # every evaluation reads the same files
        self.normalizer = LossNormalizer(
            initial=config.head.loss_normalizer, momentum=config.head.loss_normalizer_momentum
        )
        self._points = detector_points(config, device=mesh.world.device)

    @classmethod
    def from_config(cls, config: Config, *, mesh: Mesh) -> Self:
        """The task over a config's videos.

        Raises:
            DataError: no usable videos, annotations or external class scores, or no annotated action to measure by.
        """
        frames = mesh.frames if mesh.temporal > 1 else None
        train_data = open_train_windows(config, frames=frames)
        test_data = open_test_windows(config, frames=frames)
        if not any(video.actions for video in test_data.videos):
            raise DataError(
                f"no action is annotated in the {len(test_data.videos)} videos of subset {config.data.test_subset!r}, "
                "so no epoch could be measured; choose another subset with --set data.test_subset=NAME (it may be the "
                "one trained on); adatad-ds evaluate will detect in these"
            )
        return cls(config=config, mesh=mesh, train_data=train_data, test_data=test_data)

    def restore_published(self, weights: Weights, model: Detector) -> dict[str, Tensors]:
        """Adapters, pyramid and heads of a published detector, and its losses' normaliser; see `published_state`."""
        self.normalizer.value = weights.loss_normalizer or self.normalizer.value
        return published_state(weights, model, config=self._config, reset_classifier=self._config.reset_classifier)

    def describe_published(self, restored: Container[str]) -> list[str]:
        """The class of each published class logit, where these were restored."""
        return [describe_logits(self.classes)] if CLASS_LOGITS in restored and len(self.classes) > 1 else []

    def step(self, engine: StepEngine, micro_batches: Sequence[Batch]) -> tuple[list[Batch], Tensor]:
        """One optimizer step: targets, forward, losses, backward. A collective.

        The loss is (classification + weight * regression) / normaliser, summed over the global batch, the same however
        that is split over ranks and micro batches. The normaliser is a running mean of the positives of global
        batches (ActionFormer, section 3.4), so they are counted before the first forward pass.
        """
        mesh, device = self._mesh, self._mesh.world.device
        batches = [batch.blank_unreadable(mesh.errors_over_time(batch.errors)) for batch in micro_batches]
        targets = [self._targets(batch) for batch in batches]
        if self._config.head.regresses_by_class:  # its losses ask for them, while the device is in the forward pass
            _ = [target.pairs for target in targets]
        positives = torch.stack([target.positive.sum() for target in targets]).sum()
        normalizer = self.normalizer.update(mesh.sum_over_windows(positives)[0])
        sums = torch.zeros(len(self.loss_names), device=device)
        for batch, wanted in zip(batches, targets, strict=True):
            with record_function("forward"):
                frames, valid = frames_on(device, batch.frames, batch.steps), batch.valid.to(device, non_blocking=True)
                predictions = engine(frames, valid, batch.seeds)
                shares = self._losses(predictions, wanted) / normalizer
            with record_function("backward"):
                # Cancel the engine's averaging over ranks and micro batches, so that shares add up. Ranks of a temporal
                # group have the same share, which counts once.
                engine.backward(shares.sum() * (mesh.data_ranks * engine.accumulation))
            with record_function("step"):
                engine.step()
            sums += shares.detach()
        return batches, sums

    def _targets(self, batch: Batch) -> Targets:
        """Targets of every pyramid point of a micro batch."""
        device, head = self._mesh.world.device, self._config.head
        return assign_targets(
            points=self._points,
            valid=valid_points(batch.valid.to(device, non_blocking=True), self._config),
            segments=[segments.to(device, non_blocking=True) for segments in batch.segments],
            labels=[labels.to(device, non_blocking=True) for labels in batch.labels],
            num_classes=len(self.classes),
            center_radius=head.center_radius,
            filter_similar_gt=head.filter_similar_gt,
        )

    def _losses(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Classification and weighted regression of a micro batch, (2,), summed over its points."""
        head = self._config.head
        classification, regression = predictions.losses(points=self._points, targets=targets, settings=head)
        return torch.stack([classification, head.reg_loss_weight * regression])

    def sum_over_samples(self, *values: float | Tensor) -> list[float]:
        """Sums over windows, those that a temporal group shares once. A collective."""
        return self._mesh.sum_over_windows(*values)

    def scalars(self) -> dict[str, float]:
        """The losses' normaliser."""
        return {"loss/normalizer": self.normalizer.value}

    def state_dict(self) -> dict[str, Any]:
        """The normaliser's running mean."""
        return {"loss_normalizer": self.normalizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.normalizer.load_state_dict(state["loss_normalizer"])

    def evaluate(self, forward: Callable[..., Any], *, report: Callable[[str], None]) -> Evaluation | None:
        """Detect in the test videos and measure; the result is on rank 0 only. A collective."""
        config, mesh, videos = self._config, self._mesh, self.test_data.videos
        loader = open_test_loader(
            self.test_data, config=config, world=mesh.world, rank=mesh.data_rank, ranks=mesh.data_ranks
        )
        candidates = find_candidates(forward=forward, batches=loader, config=config, mesh=mesh, report=report)
        results = finish(
            candidates,
            videos=[video.name for video in videos],
            classes=self.classes,
            config=config,
            world=mesh.world,
            external=self._external,
        )
        metrics = mesh.world.attempt(
            lambda: measure(results, videos=videos, config=config) if mesh.world.is_main else None
        )
        if metrics is None:
            return None
        damaged = damaged_videos(candidates)
        for line in damaged.values() if not self._damage_told else ():
            report(f"a test video is damaged: {line}")
        self._damage_told = True
        return Evaluation(
            metrics=metrics.to_dict(),
            table=metrics.table(),
            per_class=metrics.per_class_table(),
            pictures=_pictures(results, metrics, videos=videos),
            operating_point=None if config.test.external_scores else metrics.operating_point,
            save=lambda folder: write_results(folder / DETECTIONS_FILE, results, damaged=damaged),
        )


def open_train_windows(config: Config, *, frames: slice | None = None) -> WindowDataset:
    """A config's random windows of frames or features; `frames`: see `WindowDataset`.

    Raises:
        DataError: unusable annotations, files or features.
    """
    if config.backbone.is_features:
        return FeatureDataset.open_training(config)
    train = config.train
    return WindowDataset.for_training(config.data, seed=train.seed, repeats=train.repeats, frames=frames)


def open_test_windows(config: Config, *, classes: Sequence[str] = (), frames: slice | None = None) -> WindowDataset:
    """All windows of a config's test videos; `classes`: those of the training, if known.

    Raises:
        DataError: unusable annotations, files or features.
    """
    if config.backbone.is_features:
        return FeatureDataset.open_testing(config, classes=classes)
    return WindowDataset.for_testing(config.data, classes=classes, frames=frames)


def _pictures(results: Results, metrics: Metrics, *, videos: Sequence[Video]) -> dict[str, Callable[[str], Figure]]:
    """Figures of an evaluation; matplotlib is imported when they are drawn."""

    def timelines(title: str) -> Figure:
        from adatad_ds.evaluation.plots.timelines import timeline_figure, timeline_videos

        surest = timeline_videos(results, videos=videos[:PICTURE_VIDEOS])
        return timeline_figure(surest, title=f"{title}: the highest-scoring detections of the first test videos")

    def precision_recall(title: str) -> Figure:
        from adatad_ds.evaluation.plots.curves import precision_recall_figure

        return precision_recall_figure(metrics, title=f"{title}: precision and recall")

    def class_ap(title: str) -> Figure:
        from adatad_ds.evaluation.plots.curves import class_ap_figure

        return class_ap_figure(metrics, title=f"{title}: AP by class")

    return {"timelines": timelines, "precision_recall": precision_recall, "class_ap": class_ap}
