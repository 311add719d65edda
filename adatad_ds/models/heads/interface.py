"""What a detector's heads give: predictions at every point of the pyramid, from which losses and segments follow.

A head is a module with `forward(levels, masks)`: features (B, T_l, C) and masks (B, T_l) of all levels to predictions.

B windows, P points of all levels, K classes, N pairs of a point and a class.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from adatad_ds.config.head import HeadConfig
from adatad_ds.detection.points import Targets


class PointOutputs(Protocol):
    """Outputs for a batch of windows."""

    @property
    def class_logits(self) -> Tensor:
        """(B, P, K) float32."""
        ...

    @property
    def valid(self) -> Tensor:
        """(B, P) bool, False beyond the video's end."""
        ...

    def distances_of(self, window: Tensor, point: Tensor, label: Tensor) -> Tensor:
        """Distances to start and end of N pairs, (N, 2) float32, in strides of the point's level and non-negative.

        Args:
            window: (N,) int64.
            point: (N,) int64.
            label: (N,) int64.
        """
        ...


class Predictions(PointOutputs, Protocol):
    """Outputs that can be trained; implementations are tuples of tensors, which DeepSpeed's hooks look into."""

    def losses(self, *, points: Tensor, targets: Targets, settings: HeadConfig) -> tuple[Tensor, Tensor]:
        """Unnormalised sums of a batch: classification over valid points, regression over positives.

        Args:
            points: (P, 4), see `make_points`.
            targets: see `assign_targets`.
            settings: of the head.
        """
        ...
