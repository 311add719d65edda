"""What is known of a video file without decoding it, as an object and as JSON."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import Scaling
from adatad_ds.data.decoding.damage import Damage


class VideoError(RuntimeError):
    """A video file that cannot be read; the message is one line with path and cause."""


@dataclass(frozen=True)
class VideoInfo:
    """Actual contents of a file.

    Attributes:
        num_frames: number of frames, by packet count.
        fps: their usual rate.
        width: as displayed (rotation applied), pixels.
        height: as displayed (rotation applied), pixels.
        start_sec: when the first frame is shown; 0 within about a frame of the clock's zero.
        duration_sec: when the last frame ends.
        even: constant rate: frame i is shown at start_sec + i / fps seconds, within one frame.
        damage: what is missing, as far as detectable without decoding.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    start_sec: float
    duration_sec: float
    even: bool
    damage: Damage


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """The frames of an original that a prepared file holds.

    Attributes:
        frames: their numbers in the original (n,), ascending.
        height: of the stored pictures, pixels.
        width: of the stored pictures, pixels.
        scaling: how they were scaled; None: they have the original's size.
        lost: frames of the original that could not be decoded completely when it was prepared.
    """

    frames: NDArray[np.int64]
    height: int
    width: int
    scaling: Scaling | None
    lost: frozenset[int]


@dataclass(frozen=True, eq=False)
class Index:
    """A file's frames in display order.

    Of a prepared file, `info` and `seconds` are its original's, `times` and `key_times` its own.
    """

    info: VideoInfo
    seconds: NDArray[np.float64] | None  # when each frame is shown; None if unknown
    times: NDArray[np.int64] | None  # presentation times of the frames, ascending; None if the file lacks them
    key_times: NDArray[np.int64]  # presentation times of the keyframes
    plain: bool  # the file has nothing unusual, so that decord can read it
    tick_sec: float = 0.0  # unit of the presentation times
    marked: bool = False  # the file says of itself that it was prepared
    held: Held | None = None  # of a prepared file

    @property
    def num_held(self) -> int:
        """Frames that are in the file itself."""
        return self.info.num_frames if self.held is None else len(self.held.frames)


def index_to_json(index: Index) -> dict[str, Any]:
    """A JSON-ready dict of an index of an ordinary file."""
    info, damage = asdict(index.info), index.info.damage
    info["damage"] = {
        "missing_sec": damage.missing_sec,
        "gaps_sec": [list(gap) for gap in damage.gaps_sec],
        "rate_assumed": damage.rate_assumed,
        "jumps": damage.jumps,
    }
    return {
        **info,
        "times": None if index.times is None else _packed(index.times),
        "key_times": _packed(index.key_times),
        "tick_sec": index.tick_sec,
        "plain": index.plain,
        "marked": index.marked,
    }


def index_from_json(tree: Mapping[str, Any], *, path: str) -> Index:
    """The index of the file `path` from such a dict.

    Raises:
        KeyError, TypeError, ValueError: not made by `index_to_json`.
    """
    names = ("num_frames", "fps", "width", "height", "start_sec", "duration_sec", "even")
    facts = {name: tree[name] for name in names}
    damage = Damage(
        path=path,
        num_frames=facts["num_frames"],
        fps=facts["fps"],
        start_sec=facts["start_sec"],
        missing_sec=tree["damage"]["missing_sec"],
        gaps_sec=tuple((begin, end) for begin, end in tree["damage"]["gaps_sec"]),
        rate_assumed=tree["damage"]["rate_assumed"],
        jumps=tree["damage"].get("jumps", 0),  # absent from older manifests of prepared videos
    )
    times = None if tree["times"] is None else _unpacked(tree["times"])
    if times is not None and len(times) != facts["num_frames"]:
        raise ValueError(f"{len(times)} times of {facts['num_frames']} frames")
    tick_sec = float(tree["tick_sec"])
    return Index(
        info=VideoInfo(**facts, damage=damage),
        seconds=None if times is None else shown_sec(times, tick_sec=tick_sec, start_sec=facts["start_sec"]),
        times=times,
        key_times=_unpacked(tree["key_times"]),
        plain=tree["plain"],
        tick_sec=tick_sec,
        marked=tree["marked"],
    )


def shown_sec(times: NDArray[np.int64], *, tick_sec: float, start_sec: float) -> NDArray[np.float64]:
    """When frames are shown (n,), on a player's clock, by their presentation times (n,) in ticks."""
    return (times - times[0]) * tick_sec + start_sec


def _packed(numbers: NDArray[np.int64]) -> str:
    """Ascending numbers as text: their differences, of which most are alike."""
    steps = np.diff(numbers, prepend=0).astype("<i8")
    return base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode("ascii")


def _unpacked(text: str) -> NDArray[np.int64]:
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.cumsum(np.frombuffer(data, dtype="<i8")).astype(np.int64)
