"""A rank's share of a window in time: all of it, or consecutive clips while other ranks hold the rest.

`TimeShard` has the operations across clip borders; `WholeWindow` is the single-rank one, `SharedWindow` of
distributed/mesh.py the one for several ranks.

B windows, T tubelets on this rank, S positions, C channels.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Share(NamedTuple):
    """Clips of a window: the first on this rank, the total, and the most that any rank holds."""

    first: int
    total: int
    most: int


class TimeShard(Protocol):
    """Operations across clip borders, on a rank's share of its windows."""

    def share(self, own: int) -> Share:
        """This rank's share, which has `own` clips."""
        ...

    def neighbours(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange this rank's first and last r tubelets, each (B, r, S, C), with its neighbours. A collective.

        Returns:
            The tubelets before and after this share, (B, r or 0, S, C): none beyond the window's ends.
        """
        ...

    def neighbours_adjoint(self, before: Tensor, after: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Send the gradients of `neighbours`' outputs back; returns those of this rank's `first` and `last`."""
        ...

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) to the whole window's (B, C, all T)."""
        ...


class WholeWindow:
    """The single-rank shard: this rank holds the whole window."""

    def share(self, own: int) -> Share:
        return Share(0, own, own)

    def neighbours(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Empty tensors: there are no neighbours."""
        return first[:, :0], last[:, :0]

    def neighbours_adjoint(self, before: Tensor, after: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Empty tensors: there are no neighbours."""
        return before[:, :0], after[:, :0]

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) unchanged."""
        return features


class SlidingContext:
    """Buffer that takes tokens span by span and returns them with up to `reach` tubelets of context.

    Args:
        reach: tubelets of context on both sides.
    """

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._kept: Tensor | None = None
        self._first = self._done = 0  # tubelets: the start of `_kept`, and the end of what was returned

    def push(self, values: Tensor, *, last: bool) -> tuple[int, Tensor, int, int]:
        """Add the next span, (B, t, S, C), `last` if it ends the window; return the tokens whose context is complete.

        Returns:
            First tubelet, tokens (B, before + t + after, S, C), before, after; t may be 0.
        """
        tokens = values if self._kept is None else torch.cat([self._kept, values], dim=1)
        start, begins, ends = self._done, self._first, self._first + tokens.shape[1]
        self._done = ends if last else max(start, ends - self._reach)
        self._first = max(begins, self._done - self._reach)
        self._kept = tokens[:, self._first - begins :].clone()  # a view would keep all of it
        return start, tokens, start - begins, ends - self._done
