"""Timing of recomputed segments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Implements DeepSpeed's `profile` and `synchronize_checkpoint_boundary` at each segment.

    Args:
        profile: time each segment, forward and backward.
        synchronize: synchronise the device before and after each segment; timing does so too.
    """

    def __init__(self, *, profile: bool = False, synchronize: bool = False) -> None:
        self.profile = profile
        self.synchronize = synchronize
        self._passes: dict[str, list[float]] = {}

    @contextmanager
    def around(self, name: str, device: torch.device) -> Iterator[None]:
        """Time one segment's pass."""
        self._wait(device)
        began = time.perf_counter()
        yield
        self._wait(device)
        if self.profile:
            self._passes.setdefault(name, []).append(time.perf_counter() - began)

    def take(self) -> dict[str, float]:
        """Mean seconds per pass of each segment, since the last call."""
        means = {name: sum(seconds) / len(seconds) for name, seconds in self._passes.items()}
        self._passes.clear()
        return means

    def _wait(self, device: torch.device) -> None:
        if device.type == "cuda" and (self.profile or self.synchronize):
            torch.cuda.synchronize(device)
