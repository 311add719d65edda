"""Seconds <-> feature grid: one affine map per window, exact in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar


class _Arithmetic(Protocol):
    def __add__(self, other: float, /) -> Self: ...
    def __sub__(self, other: float, /) -> Self: ...
    def __mul__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: float, /) -> Self: ...


Times = TypeVar("Times", bound=_Arithmetic)  # a float, NumPy array or tensor


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """Position of a window's feature steps in its video: `sec = origin_sec + grid * step_sec`.

    Attributes:
        origin_sec: time of grid position 0.
        step_sec: duration of one feature step.
        duration_sec: length of the whole video, to which detections are clipped.
    """

    origin_sec: float
    step_sec: float
    duration_sec: float

    def to_sec(self, grid: Times) -> Times:
        """Grid positions to seconds, not clipped."""
        return grid * self.step_sec + self.origin_sec

    def to_grid(self, sec: Times) -> Times:
        """Seconds to grid positions of this window, not clipped."""
        return (sec - self.origin_sec) / self.step_sec
