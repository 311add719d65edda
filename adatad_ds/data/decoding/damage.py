"""What is missing in a video file, and how that is said: alike in check-data, training, evaluation and predict.

Times are seconds on the player's clock, whose zero is the file's first picture or sound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

GAP_SEC, GAP_INTERVALS = 0.25, 4  # a longer time without a picture is a gap, where all others come regularly
REGULAR_SHARE = 0.99  # of the intervals, at most half as long again as the usual one
SHOWN_GAPS = 3
SLACK_FRAMES, SLACK_SHARE, SLACK_SEC = 3, 0.02, 1.0  # by which a whole file may end before its header says


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What a file lacks, as far as it has been looked at; false where that is nothing.

    Attributes:
        path: the file.
        num_frames: that it holds.
        fps: their rate.
        start_sec: when the first of them is shown.
        missing_sec: by which its pictures end before its header says.
        gaps_sec: beginning and end of each time without a picture.
        rate_assumed: no header tells a frame rate.
        lost: numbers of the frames that could not be decoded whole, or lean on such, of those that were read.
    """

    path: str
    num_frames: int
    fps: float
    start_sec: float = 0.0
    missing_sec: float = 0.0
    gaps_sec: tuple[tuple[float, float], ...] = ()
    rate_assumed: bool = False
    lost: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.missing_sec or self.gaps_sec or self.rate_assumed or self.lost)

    def __str__(self) -> str:
        return f"{self.path}: {'; '.join(self.phrases())}"

    def with_lost(self, lost: Iterable[int]) -> Damage:
        """The same file after more of it was read."""
        return replace(self, lost=self.lost | frozenset(lost))

    def phrases(self) -> list[str]:
        """What is missing, and how much."""
        said = []
        if self.missing_sec:
            end_sec = self.start_sec + self.num_frames / self.fps + sum(end - begin for begin, end in self.gaps_sec)
            said.append(f"ends early: {self.missing_sec:.1f} of {end_sec + self.missing_sec:.1f} s are missing")
        if self.gaps_sec:
            total_sec = sum(end - begin for begin, end in self.gaps_sec)
            places = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in self.gaps_sec[:SHOWN_GAPS])
            more = f" and {len(self.gaps_sec) - SHOWN_GAPS} times more" * (len(self.gaps_sec) > SHOWN_GAPS)
            said.append(f"{total_sec:.1f} s without a picture, {places}{more}: packets are missing")
        if self.lost:
            first, last = (self.start_sec + frame / self.fps for frame in (min(self.lost), max(self.lost) + 1))
            said.append(
                f"damaged: {len(self.lost)} of {self.num_frames} frames are lost or lean on lost ones, "
                f"{first:.1f} to {last:.1f} s"
            )
        if self.rate_assumed:
            said.append(f"its headers tell no frame rate: all times assume {self.fps:g} a second")
        return said


def merged(first: Damage | None, second: Damage | None) -> Damage | None:
    """What two readings of one file found together."""
    if first is None or second is None:
        return first or second
    return first.with_lost(second.lost)


def gaps(seconds: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """Times without a picture between frames shown at ascending `seconds` (n,).

    Only in files of an even rate: where it varies, a long interval may be a still picture.
    """
    intervals = np.diff(seconds)
    if len(intervals) < 2 * GAP_INTERVALS:
        return ()
    usual = float(np.median(intervals))
    found = intervals > max(GAP_SEC, GAP_INTERVALS * usual)
    if not found.any() or np.mean(intervals[~found] <= 1.5 * usual) < REGULAR_SHARE:
        return ()
    return tuple((float(seconds[at] + usual), float(seconds[at + 1])) for at in np.flatnonzero(found))


def missing_sec(*, promised_sec: float, held_sec: float, fps: float) -> float:
    """By how much a file ends before its header says; 0 within what headers of whole files are off by."""
    slack_sec = max(SLACK_FRAMES / fps, min(SLACK_SHARE * promised_sec, SLACK_SEC))
    lost_sec = promised_sec - held_sec
    return lost_sec if lost_sec > slack_sec else 0.0
