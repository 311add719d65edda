"""What a rank holds of a window in time: all of it, or consecutive clips while other ranks hold the rest.

The model asks for three things that reach beyond a clip; whoever builds it passes in who answers. Here is the answer
of a rank alone; `temporal.SharedWindow` is that of a rank among several.

B windows, T tubelets here, S positions, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Share(NamedTuple):
    """Clips of a window on this rank: the first one here, the whole window's, and the most that any rank holds."""

    first: int
    total: int
    most: int


class TimeShard(Protocol):
    """A rank's share of the windows that it works on."""

    def share(self, own: int) -> Share:
        """Which clips are here, where `own` of them are."""
        ...

    def neighbours(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Give this rank's first and last r tubelets to its neighbours, each (B, r, S, C); what they give in return.

        What comes before and after in the window, (B, r or 0, S, C): none beyond the window's ends. A collective.
        """
        ...

    def neighbours_adjoint(self, before: Tensor, after: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Send gradients of what `neighbours` returned to where it came from; those of `first` and `last` here."""
        ...

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) to the whole window's (B, C, all T)."""
        ...


class WholeWindow:
    """All of it is here."""

    def share(self, own: int) -> Share:
        """All clips."""
        return Share(0, own, own)

    def neighbours(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """None there."""
        return first[:, :0], last[:, :0]

    def neighbours_adjoint(self, before: Tensor, after: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Nothing comes back."""
        return before[:, :0], after[:, :0]

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) as it is."""
        return features


def with_context(tokens: Tensor, reach: int, window: TimeShard) -> tuple[Tensor, int, int]:
    """Tokens with up to `reach` tubelets of context on both sides, differentiable.

    Returns:
        (B, before + T + after, S, C), before, after.
    """
    if reach == 0:
        return tokens, 0, 0
    before, after = _Neighbours.apply(tokens, reach, window)  # pyright: ignore[reportGeneralTypeIssues]
    return torch.cat([before, tokens, after], dim=1), before.shape[1], after.shape[1]


class SlidingContext:
    """Tokens that come span by span, with up to `reach` tubelets of context; it keeps what is still reached for.

    Args:
        reach: tubelets of context on both sides.
    """

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._kept: Tensor | None = None
        self._first = self._done = 0  # tubelets: where `_kept` begins, and up to where all was given out

    def push(self, values: Tensor, *, last: bool) -> tuple[int, Tensor, int, int]:
        """Take the next span, (B, t, S, C), the window's last one if so; give out what has its context by now.

        Returns:
            Its tubelet, (B, before + t + after, S, C), before, after; t may be 0.
        """
        tokens = values if self._kept is None else torch.cat([self._kept, values], dim=1)
        start, begins, ends = self._done, self._first, self._first + tokens.shape[1]
        self._done = ends if last else max(start, ends - self._reach)
        self._first = max(begins, self._done - self._reach)
        self._kept = tokens[:, self._first - begins :].clone()  # a view would keep all of it
        return start, tokens, start - begins, ends - self._done


class _Neighbours(torch.autograd.Function):
    """The neighbours' nearest tubelets; backward, gradients go back and are added to the ends."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, reach: int, window: TimeShard) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.reach, ctx.window = tokens.shape, reach, window
        return window.neighbours(tokens[:, :reach], tokens[:, -reach:])

    @staticmethod
    def backward(ctx: Any, before: Tensor, after: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        first, last = ctx.window.neighbours_adjoint(before, after, ctx.reach)
        gradient = before.new_zeros(ctx.shape)
        gradient[:, : first.shape[1]] += first
        gradient[:, gradient.shape[1] - last.shape[1] :] += last
        return gradient, None, None
