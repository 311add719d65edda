"""Damage of a video file, and its description, the same in check-data, training, evaluation and predict.

Times are seconds on a player's clock, whose zero is the file's first picture or sound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

GAP_SEC, GAP_INTERVALS = 0.25, 4  # a longer interval without a picture is a gap, if the others are regular
REGULAR_SHARE = 0.99  # of the intervals that are at most 1.5 times the median, in a regular file
SHOWN_GAPS = 3
SLACK_FRAMES, SLACK_SHARE, SLACK_SEC = 3, 0.02, 1.0  # by which an intact file may be shorter than its header says


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Missing parts of a file, as far as it has been read; falsy if nothing is missing.

    Attributes:
        path: the file.
        num_frames: frames in the file.
        fps: their rate.
        start_sec: when the first frame is shown.
        missing_sec: by how much its pictures end before the end in its header.
        gaps_sec: start and end of each interval without a picture.
        rate_assumed: no header gives a frame rate.
        jumps: how often its clock begins anew, so that frames are counted.
        lost: indices of frames that were read but not decoded completely, or that depend on such frames.
    """

    path: str
    num_frames: int
    fps: float
    start_sec: float = 0.0
    missing_sec: float = 0.0
    gaps_sec: tuple[tuple[float, float], ...] = ()
    rate_assumed: bool = False
    jumps: int = 0
    lost: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.missing_sec or self.gaps_sec or self.rate_assumed or self.jumps or self.lost)

    def __str__(self) -> str:
        return f"{self.path}: {'; '.join(self.phrases())}"

    def with_lost(self, lost: Iterable[int]) -> Damage:
        """A copy with more lost frames."""
        return replace(self, lost=self.lost | frozenset(lost))

    def phrases(self) -> list[str]:
        """One phrase for each kind of damage, with its extent."""
        said = []
        if self.missing_sec:
            end_sec = self.start_sec + self.num_frames / self.fps + sum(end - begin for begin, end in self.gaps_sec)
            said.append(f"ends early: {self.missing_sec:.1f} of {end_sec + self.missing_sec:.1f} s are missing")
        if self.gaps_sec:
            total_sec = sum(end - begin for begin, end in self.gaps_sec)
            places = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in self.gaps_sec[:SHOWN_GAPS])
            more = f" and {len(self.gaps_sec) - SHOWN_GAPS} more times" * (len(self.gaps_sec) > SHOWN_GAPS)
            why = "packets are missing, or still pictures were left out"
            said.append(f"{total_sec:.1f} s without a picture, {places}{more}: {why}")
        if self.lost:
            first, last = (self.start_sec + frame / self.fps for frame in (min(self.lost), max(self.lost) + 1))
            said.append(
                f"damaged: {len(self.lost)} of {self.num_frames} frames are lost or depend on lost ones, "
                f"{first:.1f} to {last:.1f} s"
            )
        if self.rate_assumed:
            said.append(f"its headers give no frame rate: all times assume {self.fps:g} per second")
        if self.jumps:
            times = "once" if self.jumps == 1 else f"{self.jumps} times"
            said.append(
                f"its clock jumps back {times}, as in recordings that were joined byte by byte: frames are counted at "
                f"{self.fps:g} per second, and players may show other times; write it anew (ffmpeg -f concat)"
            )
        return said


def merged(first: Damage | None, second: Damage | None) -> Damage | None:
    """Combine the damage found by two readings of a file."""
    if first is None or second is None:
        return first or second
    return first.with_lost(second.lost)


def gaps(seconds: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """Intervals without a picture between frames shown at ascending `seconds` (n,).

    Only for a constant frame rate: with a variable one, a long interval may be a still picture.
    """
    intervals = np.diff(seconds)
    if len(intervals) < 2 * GAP_INTERVALS:
        return ()
    usual = float(np.median(intervals))
    found, longer = intervals > max(GAP_SEC, GAP_INTERVALS * usual), intervals > 1.5 * usual
    beside = np.convolve(found, [1, 1, 1], mode="same") > 0  # a loss may leave a single frame
    if not found.any() or beside.all() or np.mean(~longer[~beside]) < REGULAR_SHARE:
        return ()
    found |= beside & longer
    return tuple((float(seconds[at] + usual), float(seconds[at + 1])) for at in np.flatnonzero(found))


def missing_sec(*, promised_sec: float, held_sec: float, fps: float) -> float:
    """By how much a file is shorter than its header says; 0 within the error of intact files' headers."""
    slack_sec = max(SLACK_FRAMES / fps, min(SLACK_SHARE * promised_sec, SLACK_SEC))
    lost_sec = promised_sec - held_sec
    return lost_sec if lost_sec > slack_sec else 0.0
