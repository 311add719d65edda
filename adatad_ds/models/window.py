"""What a rank holds of a window in time: all of it, or consecutive clips while other ranks hold the rest.

The model asks for three things that reach beyond a clip; whoever builds it passes in who answers. Here is the answer
of a rank alone; `parallel.SharedWindow` is that of a rank among several.

B windows, T tubelets here, S positions, C channels.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Window(Protocol):
    """A rank's share of the windows that it works on."""

    def clips(self, own: int) -> tuple[int, int, int]:
        """First clip here, clips of the whole window, and the most that any rank holds, where `own` are here."""
        ...

    def pad_time(self, tokens: Tensor, reach: int) -> Tensor:
        """(B, T, S, C) to (B, reach + T + reach, S, C): what lies before and after in the window, zeros at its ends."""
        ...

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) to the whole window's (B, C, all T)."""
        ...


class WholeWindow:
    """All of it is here."""

    def clips(self, own: int) -> tuple[int, int, int]:
        """First clip here, clips of the whole window, and the most that any rank holds."""
        return 0, own, own

    def pad_time(self, tokens: Tensor, reach: int) -> Tensor:
        """(B, T, S, C) to (B, reach + T + reach, S, C), zeros beyond the ends."""
        return F.pad(tokens, (0, 0, 0, 0, reach, reach))

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) as it is."""
        return features
