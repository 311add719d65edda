"""Random numbers per sample, independent of ranks and batches.

Drop path, dropout and noise draw from here, so that a sample gets the same masks on any rank, in any micro batch, when
recomputed, and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class SampleNoise:
    """One random generator per sample, consumed in the order of the model's forward pass.

    Args:
        seeds: one integer per sample of the batch.
        device: device of the results; numbers are drawn on the CPU, so that they are the same on all devices.
    """

    def __init__(self, *, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape) float32."""
        return self._moved(self._drawn(torch.randn, shape))

    def keep(self, *shape: int, rate: float | Tensor) -> Tensor:
        """Inverted-dropout factors, (B, *shape): 0 with probability `rate`, else 1 / (1 - rate).

        Made where they are drawn, so that a device is told of one copy, not of half a dozen operations.
        """
        return self._moved((self._drawn(torch.rand, shape) >= rate).float().div_(1.0 - rate))

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return torch.stack([draw(shape, generator=generator) for generator in self._generators])

    def _moved(self, numbers: Tensor) -> Tensor:
        if self._device.type == "cuda":  # from other memory, it is copied when all that was queued before is done
            numbers = numbers.pin_memory()
        return numbers.to(self._device, non_blocking=True)
