"""ActionFormer's heads: class logits and boundary distances at every point of the pyramid.

B windows, T_l steps of level l, P points of all levels, C channels, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.head import HeadConfig
from adatad_ds.detection.losses import detection_losses
from adatad_ds.detection.points import Targets
from adatad_ds.models.heads.parts import JoinedLevels, Scale, class_prior_bias, tower


class PointPredictions(NamedTuple):
    """`Predictions` whose distances are the same for all classes.

    Attributes:
        class_logits: (B, P, K) float32.
        distances: (B, P, 2) float32, to start and end, in strides of the point's level.
        valid: (B, P) bool, False beyond the video's end.
    """

    class_logits: Tensor
    distances: Tensor
    valid: Tensor

    def distances_of(self, window: Tensor, point: Tensor, label: Tensor) -> Tensor:
        """See `Predictions`."""
        return self.distances[window, point]

    def losses(self, *, points: Tensor, targets: Targets, settings: HeadConfig) -> tuple[Tensor, Tensor]:
        """Focal and DIoU loss; see `Predictions`."""
        return detection_losses(
            class_logits=self.class_logits,
            distances=self.distances,
            points=points,
            valid=self.valid,
            targets=targets,
            label_smoothing=settings.label_smoothing,
        )


class ActionFormerHead(nn.Module):
    """Two towers of masked convolutions, shared by all levels, each followed by a convolution.

    Args:
        width: channels C of the pyramid.
        tower_width: channels of the towers.
        kernel: of all convolutions.
        num_classes: K.
        levels: pyramid levels, each with a trainable scale on its distances.
        num_convs: convolutions per tower.
        cls_prior: initial probability of each class.
        actionformer_norms: see `MaskedConv`.
    """

    def __init__(
        self,
        *,
        width: int,
        tower_width: int,
        kernel: int,
        num_classes: int,
        levels: int,
        num_convs: int,
        cls_prior: float,
        actionformer_norms: bool,
    ) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.cls_convs, self.reg_convs = (
            tower(width, tower_width, kernel=kernel, num_convs=num_convs, actionformer_norms=actionformer_norms)
            for _ in range(2)
        )
        self.cls_head = nn.Conv1d(tower_width, num_classes, kernel_size=kernel, padding=kernel // 2)
        self.reg_head = nn.Conv1d(tower_width, 2, kernel_size=kernel, padding=kernel // 2)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        self.cls_head.bias = class_prior_bias(num_classes, cls_prior)
        # differs: published heads start around 0, where ReLU blocks the gradient of half the outputs; a whole side can
        # die there at higher learning rates. Most distances are about one stride, so that is the initial value here.
        self.reg_head.bias = nn.Parameter(torch.ones(2))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> PointPredictions:
        """Levels (B, T_l, C) and masks (B, T_l) to predictions."""
        joined = JoinedLevels(levels, masks, gap=self.reach)
        logits = joined.split(joined.run(self.cls_convs, self.cls_head, joined.features))
        distances = joined.split(joined.run(self.reg_convs, self.reg_head, joined.features))
        scaled = [scale(part) for scale, part in zip(self.scales, distances, strict=True)]
        return PointPredictions(
            class_logits=torch.cat(logits, dim=1).float(),
            distances=F.relu(torch.cat(scaled, dim=1)).float(),
            valid=torch.cat(masks, dim=1),
        )
