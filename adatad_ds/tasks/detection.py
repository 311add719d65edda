"""Detection as a task: windows of videos, ActionFormer's losses, mean average precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.loader import make_test_loader
from adatad_ds.data.window_dataset import Batch, WindowDataset
from adatad_ds.detection.losses import LossNormalizer
from adatad_ds.detection.points import Targets
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.evaluation.detections_file import DETECTIONS_FILE, write_results
from adatad_ds.evaluation.metrics import Metrics
from adatad_ds.evaluation.plots.curves import class_ap_figure, precision_recall_figure
from adatad_ds.evaluation.plots.timelines import timeline_figure, timeline_videos
from adatad_ds.models.detector import Detector, build_detector
from adatad_ds.models.execution.activation_store import Storage
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.tasks.base import Evaluation, data_fingerprint
from adatad_ds.tasks.detection_pipeline import (
    Results,
    damaged_videos,
    external_scores,
    find_candidates,
    finish,
    measure,
)
from adatad_ds.tasks.objective import Objective

PICTURE_VIDEOS = 4  # legible on one of TensorBoard's cards


class DetectionTask:
    """A `task.Task`.

    Args:
        config: of the run.
        mesh: the ranks.
        accumulation: micro batches a step.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: no usable videos or annotations.
    """

    loss_names = ("classification", "regression")

    def __init__(self, *, config: Config, mesh: Mesh, accumulation: int) -> None:
        self._config, self._mesh = config, mesh
        frames = mesh.frames if mesh.temporal > 1 else None
        train = config.train
        self.train_data = WindowDataset.for_training(config.data, seed=train.seed, repeats=train.repeats, frames=frames)
        self.test_data = WindowDataset.for_testing(config.data, frames=frames)
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
        self._objective = Objective(
            config=config,
            num_classes=len(self.classes),
            normalizer=self.normalizer,
            accumulation=accumulation,
            mesh=mesh,
        )

    def build_model(self, *, storage: Storage, stopwatch: Stopwatch) -> Detector:
        """The detector, on this rank's share of a window."""
        return build_detector(
            self._config,
            num_classes=len(self.classes),
            window=self._mesh.window(),
            storage=storage,
            stopwatch=stopwatch,
        )

    def begin_step(self, micro_batches: Sequence[Batch]) -> tuple[list[Batch], list[Targets]]:
        """Blank what some rank of a group could not read; assign targets; update the normaliser. A collective."""
        agreed = [self._mesh.blank_unreadable(batch) for batch in micro_batches]
        return agreed, self._objective.begin_step(agreed)

    def losses(self, forward: Callable[..., Any], batch: Batch, targets: Targets) -> Tensor:
        """Shares of classification and regression."""
        device = self._mesh.world.device
        predictions = forward(batch.frames.to(device, non_blocking=True), batch.valid.to(device), batch.seeds)
        return torch.stack(self._objective.losses(predictions, targets))

    def to_backward(self, share: Tensor) -> Tensor:
        """See `Objective.to_backward`."""
        return self._objective.to_backward(share)

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
        """Take it back."""
        self.normalizer.load_state_dict(state["loss_normalizer"])

    def evaluate(self, forward: Callable[..., Any], *, report: Callable[[str], None]) -> Evaluation | None:
        """Detect in the test videos and measure; the outcome is on rank 0 only. A collective."""
        config, mesh, videos = self._config, self._mesh, self.test_data.videos
        loader = mesh.world.attempt(
            lambda: make_test_loader(
                self.test_data,
                config=config.data,
                batch=config.test.batch,
                rank=mesh.data_rank,
                ranks=mesh.data_ranks,
                pin_memory=mesh.world.device.type == "cuda",
            )
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
        if not mesh.world.is_main:
            return None
        damaged = damaged_videos(candidates)
        for line in damaged.values() if not self._damage_told else ():
            report(f"a test video is damaged: {line}")
        self._damage_told = True
        metrics = measure(results, videos=videos, config=config)
        return Evaluation(
            metrics=metrics.to_dict(),
            table=metrics.table(),
            per_class=metrics.per_class_table(),
            pictures=_pictures(results, metrics, videos=videos),
            operating_point=None if config.test.external_scores else metrics.operating_point,
            save=lambda folder: write_results(folder / DETECTIONS_FILE, results, damaged=damaged),
        )


def _pictures(results: Results, metrics: Metrics, *, videos: Sequence[Video]) -> dict[str, Callable[[str], Figure]]:
    surest = timeline_videos(results, videos=videos[:PICTURE_VIDEOS])
    return {
        "timelines": lambda title: timeline_figure(
            surest, title=f"{title}: the surest detections of the first test videos"
        ),
        "precision_recall": lambda title: precision_recall_figure(metrics, title=f"{title}: precision and recall"),
        "class_ap": lambda title: class_ap_figure(metrics, title=f"{title}: AP by class"),
    }
