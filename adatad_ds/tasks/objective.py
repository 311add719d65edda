"""The loss of one optimizer step, the same however its global batch is split over ranks and micro batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.data.window_dataset import Batch
from adatad_ds.detection.losses import LossNormalizer, detection_losses
from adatad_ds.detection.points import Targets, assign_targets
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.models.detector import Predictions, detector_points, valid_points


class Objective:
    """(classification + weight * regression) / normaliser, summed over the global batch.

    The normaliser is a running mean of the positives of whole global batches (ActionFormer, section 3.4), so every
    step counts them over all ranks and micro batches before its first forward pass.

    Args:
        config: the run's config.
        num_classes: K.
        normalizer: the running mean; saved with the run.
        accumulation: micro batches a step.
        mesh: the ranks.
    """

    def __init__(
        self, *, config: Config, num_classes: int, normalizer: LossNormalizer, accumulation: int, mesh: Mesh
    ) -> None:
        self.normalizer = normalizer
        self._config = config
        self._num_classes = num_classes
        self._accumulation = accumulation
        self._mesh = mesh
        self._points = detector_points(config, device=mesh.world.device)
        self._divisor = 1.0

    def begin_step(self, micro_batches: Sequence[Batch]) -> list[Targets]:
        """Targets of each micro batch, and the step's normaliser. A collective."""
        targets = [self._assign(batch) for batch in micro_batches]
        positives = torch.stack([target.positive.sum() for target in targets]).sum()
        self._divisor = self.normalizer.update(self._mesh.sum_over_windows(positives)[0])
        return targets

    def losses(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, Tensor]:
        """This micro batch's share of the step's two loss terms; shares add up to the global batch's loss."""
        head = self._config.head
        classification, regression = detection_losses(
            class_logits=predictions.class_logits,
            distances=predictions.distances,
            points=self._points,
            valid=predictions.valid,
            targets=targets,
            label_smoothing=head.label_smoothing,
        )
        return classification / self._divisor, head.reg_loss_weight * regression / self._divisor

    def to_backward(self, share: Tensor) -> Tensor:
        """Undo the mean over ranks and micro batches that the engine takes, so that shares are summed.

        Ranks of a temporal group have the same share, which is to count once.
        """
        return share * (self._mesh.data_ranks * self._accumulation)

    def _assign(self, batch: Batch) -> Targets:
        device, head = self._mesh.world.device, self._config.head
        return assign_targets(
            points=self._points,
            valid=valid_points(batch.valid.to(device), self._config),
            segments=[segments.to(device) for segments in batch.segments],
            labels=[labels.to(device) for labels in batch.labels],
            num_classes=self._num_classes,
            center_radius=head.center_radius,
            filter_similar_gt=head.filter_similar_gt,
        )
