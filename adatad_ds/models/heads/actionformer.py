"""ActionFormer's heads: class logits and boundary distances at every point of the pyramid.

B windows, T_l steps of level l, P points of all levels, C channels, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.models.pyramid import MaskedConv


class DetectionHead(nn.Module):
    """Two towers of masked convolutions, shared by all levels, each followed by a kernel-3 convolution.

    Args:
        width: channels C of the pyramid.
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
        num_classes: int,
        levels: int,
        num_convs: int,
        cls_prior: float,
        actionformer_norms: bool = False,
    ) -> None:
        super().__init__()

        def tower() -> nn.ModuleList:
            return nn.ModuleList(
                MaskedConv(in_channels=width, out_channels=width, actionformer_norms=actionformer_norms)
                for _ in range(num_convs)
            )

        self.cls_convs, self.reg_convs = tower(), tower()
        self.cls_head = nn.Conv1d(width, num_classes, kernel_size=3, padding=1)
        self.reg_head = nn.Conv1d(width, 2, kernel_size=3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        self.cls_head.bias = nn.Parameter(torch.full((num_classes,), -math.log((1 - cls_prior) / cls_prior)))
        # differs: published heads start around 0, where ReLU blocks the gradient of half the outputs; a whole side can
        # die there at higher learning rates. Most distances are about one stride, so that is the initial value here.
        self.reg_head.bias = nn.Parameter(torch.ones(2))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels (B, T_l, C) and masks (B, T_l) to class logits (B, P, K) and distances (B, P, 2), both float32.

        Distances to start and end are in strides of their level and non-negative.
        """
        logits, distances = [], []
        for level, mask, scale in zip(levels, masks, self.scales, strict=True):
            to_classify = to_regress = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                to_classify = cls_conv(to_classify, mask)
                to_regress = reg_conv(to_regress, mask)
            logits.append(self.cls_head(to_classify.transpose(1, 2)))
            distances.append(F.relu(scale(self.reg_head(to_regress.transpose(1, 2)))))
        return torch.cat(logits, dim=2).transpose(1, 2).float(), torch.cat(distances, dim=2).transpose(1, 2).float()


class Scale(nn.Module):
    """Trainable factor, initially 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * self.weight
