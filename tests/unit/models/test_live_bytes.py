"""Bytes counted on the meta device are those of tensors that have values."""

from __future__ import annotations

import torch
from torch import nn

from adatad_ds.models.live_bytes import LiveBytes


def passes(device: str) -> tuple[int, int]:
    """Peak, and bytes held in the end: two passes through layers, so that operators recur; views, and in-place ones."""
    with torch.device(device):
        model = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32))
        inputs = torch.zeros(4, 8, 32)
    kept = []
    with LiveBytes() as count:
        for _ in range(2):
            out = model(inputs.transpose(0, 1).contiguous().transpose(0, 1))
            out[:, 2:].relu_().sum().backward()
            halves = out.detach().clone().chunk(2, dim=1)
            kept.append(halves[0])
            kept += torch.var_mean(out.detach(), dim=1)
    return count.peak, count.held


def test_operators_that_recur_take_the_same_again():
    assert passes("meta") == passes("cpu")
