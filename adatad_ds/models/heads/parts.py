"""What heads are made of.

B windows, T_l steps of level l, S steps of all levels and of what lies between them, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

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


class JoinedLevels:
    """Levels one after another with zeros between them: layers that levels share run once, not once for each.

    Each level sees the zeros beyond its ends that convolutions pad it with.

    Args:
        levels: (B, T_l, C) of each level.
        masks: (B, T_l) bool, False beyond the video's end.
        gap: steps between two levels, at least as many as a convolution reaches to a side.
    """

    def __init__(self, levels: Sequence[Tensor], masks: Sequence[Tensor], *, gap: int) -> None:
        self._gap = gap
        self._lengths = [level.shape[1] for level in levels]
        self.features = self._joined(levels)
        self.valid = self._joined(masks)

    @property
    def first_steps(self) -> list[int]:
        """Where each level begins."""
        return list(accumulate((length + self._gap for length in self._lengths[:-1]), initial=0))

    def run(self, convs: nn.ModuleList, output: nn.Conv1d, x: Tensor) -> Tensor:
        """A tower and its last convolution: (B, S, C) to (B, S, outputs); what is between levels has no meaning."""
        for conv in convs:
            x = conv(x, self.valid)
            if conv.actionformer_norms:  # which fill all that is masked
                x = x * self._inside
        return output(x.transpose(1, 2)).transpose(1, 2)

    def split(self, x: Tensor) -> list[Tensor]:
        """(B, S, outputs) to (B, T_l, outputs) of each level."""
        sizes = [size for length in self._lengths for size in (length, self._gap)]
        return list(x.split(sizes[:-1], dim=1)[::2])

    @cached_property
    def _inside(self) -> Tensor:
        """1 in levels, 0 between them, (1, S, 1)."""
        return self._joined([self.features.new_ones(1, length, 1) for length in self._lengths])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        first = parts[0]
        between = first.new_zeros(first.shape[0], self._gap, *first.shape[2:])
        return torch.cat([piece for part in parts for piece in (part, between)][:-1], dim=1)


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
