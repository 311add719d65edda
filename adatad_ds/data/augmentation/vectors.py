"""Small vectors of numbers, on whatever device the frames are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filled(values: Sequence[float], *, device: torch.device) -> Tensor:
    """Float32 numbers, filled in where they lie: a copy of the host's would make the host wait for a GPU."""
    vector = torch.empty(len(values), dtype=torch.float32, device=device)
    for place, value in zip(vector.unbind(), values, strict=True):
        place.fill_(value)
    return vector
