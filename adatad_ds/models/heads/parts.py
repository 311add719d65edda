"""What heads are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adatad_ds.models.pyramid import MaskedConv


def tower(width: int, tower_width: int, *, kernel: int, num_convs: int, actionformer_norms: bool) -> nn.ModuleList:
    """Masked convolutions from `width` to `tower_width` channels."""
    return nn.ModuleList(
        MaskedConv(
            in_channels=tower_width if index else width,
            out_channels=tower_width,
            kernel=kernel,
            actionformer_norms=actionformer_norms,
        )
        for index in range(num_convs)
    )


def class_prior_bias(num_classes: int, prior: float) -> nn.Parameter:
    """Bias of class logits, with which each class has this initial probability."""
    return nn.Parameter(torch.full((num_classes,), -math.log((1 - prior) / prior)))


class Scale(nn.Module):
    """Trainable factor, initially 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * self.weight
