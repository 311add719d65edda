"""Where the time of recomputed segments goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """What DeepSpeed's `profile` and `synchronize_checkpoint_boundary` ask for, at each segment.

    Args:
        profile: time each segment, forward and backward.
        synchronize: wait for the device at each segment's ends; timing does, too.
    """

    def __init__(self, *, profile: bool = False, synchronize: bool = False) -> None:
        self.profile = profile
        self.synchronize = synchronize
        self._passes: dict[str, list[float]] = {}

    @contextmanager
    def around(self, name: str, device: torch.device) -> Iterator[None]:
        """One segment's pass."""
        self._wait(device)
        began = time.perf_counter()
        yield
        self._wait(device)
        if self.profile:
            self._passes.setdefault(name, []).append(time.perf_counter() - began)

    def take(self) -> dict[str, float]:
        """Mean seconds of a pass, by segment, since last asked."""
        means = {name: sum(seconds) / len(seconds) for name, seconds in self._passes.items()}
        self._passes.clear()
        return means

    def _wait(self, device: torch.device) -> None:
        if device.type == "cuda" and (self.profile or self.synchronize):
            torch.cuda.synchronize(device)
