"""Shared by tests: checkpoints."""

from __future__ import annotations

import torch

from adatad_ds.runs.checkpoint import CheckpointStore
from adatad_ds.weights.trainable_state import AVERAGE, MASTER


def trainable() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(5, 7, generator=generator)
    squares = torch.rand(5, 7, generator=generator) ** 20
    average = master + 1e-3 * torch.randn(5, 7, generator=generator)
    return {
        MASTER: {"w": master},
        "exp_avg": {"w": 1e-6 * master},
        "exp_avg_sq": {"w": squares},
        AVERAGE: {"w": average},
    }


def save(store: CheckpointStore, step: int, *, compact: bool = False) -> list[str]:
    return store.save(step=step, trainable=trainable(), compact=compact, state={"note": step})
