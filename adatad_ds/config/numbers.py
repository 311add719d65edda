"""Numeric types of settings, each with its range and, where it has one, its unit."""

from __future__ import annotations

import math
from typing import Annotated


class Range:
    """Allowed interval and unit of a number; in a type hint: `Annotated[float, Range("[0, 1)", "s")]`."""

    def __init__(self, interval: str, unit: str = "") -> None:
        self.interval, self.unit = interval, unit
        low, high = (float(bound) for bound in interval[1:-1].split(","))
        # the same numbers as a closed interval
        self.low = low if interval[0] == "[" else math.nextafter(low, math.inf)
        self.high = high if interval[-1] == "]" else math.nextafter(high, -math.inf)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"in {self.interval}" + (f" {self.unit}" if self.unit else "")


PositiveInt = Annotated[int, Range("[1, inf)")]
NonNegativeInt = Annotated[int, Range("[0, inf)")]
PositiveFloat = Annotated[float, Range("(0, inf)")]
NonNegativeFloat = Annotated[float, Range("[0, inf)")]
Fraction = Annotated[float, Range("[0, 1]")]
Probability = Annotated[float, Range("[0, 1)")]  # of dropping, or spread over other classes
LearningRate = Annotated[float, Range("[0, 1]")]
Pixels = Annotated[int, Range("[1, inf)", "pixels")]
VideoShare = Annotated[float, Range("(0, 1]", "of the video's length")]
ActionShare = Annotated[float, Range("[0, 1)", "of the video's length")]
Frames = Annotated[int, Range("(-inf, inf)", "frames")]
FramesPerSec = Annotated[float, Range("(0, inf)", "frames per second")]
GreyLevel = Annotated[float, Range("[0, 255]", "grey levels")]
GreyDeviation = Annotated[float, Range("(0, 255]", "grey levels")]
Seconds = Annotated[int, Range("[1, inf)", "seconds")]
Epochs = Annotated[float, Range("[0, inf)", "epochs")]
Gigabytes = Annotated[float, Range("[0, inf)", "GB")]
Steps = Annotated[int, Range("[-1, inf)", "feature steps (-1: all)")]
Reach = Annotated[float, Range("[0, inf)", "feature steps")]
TIoU = Annotated[float, Range("(0, 1]", "of temporal overlap (IoU)")]
OpenFraction = Annotated[float, Range("(0, 1)")]
WindowShare = Annotated[float, Range("[0, 1)", "of a window")]
WidthShare = Annotated[float, Range("(0, inf)", "of the backbone's width")]
Seed = Annotated[int, Range("[0, 4294967295]")]
