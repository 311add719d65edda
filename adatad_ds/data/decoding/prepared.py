"""Prepared videos as they are read: the manifest beside them, which says what each file holds of its original.

A manifest is a file of JSON lines: first what all videos of the folder have in common, then one line a video. Of
several lines about one video, the last counts; a last line without its end is none: its writer was killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import Scaling
from adatad_ds.data.decoding.facts import Held, Index, VideoError, index_from_json
from adatad_ds.data.decoding.index_file import FileState
from adatad_ds.errors import DataError

MANIFEST = "prepared.jsonl"
FORMAT, VERSION = "adatad_ds prepared videos", 1
AGAIN = "run adatad-ds prepare-videos again"

Codec = Literal["h264", "mjpeg", "lossless"]
Runs = Sequence[Sequence[int]]  # first, last, step


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the videos of a folder have in common.

    Attributes:
        codec: how they are coded.
        quality: CRF of H.264, JPEG quality of MJPEG; None: lossless, or MJPEG as good as each file needs.
        scaling: how they were scaled.
    """

    codec: Codec
    quality: int | None
    scaling: Scaling


@dataclass(frozen=True, kw_only=True)
class Source:
    """The original of a prepared file, as it was: absolute path, size in bytes, time in ns, SHA-256 in hex digits."""

    path: str
    size: int
    mtime_ns: int
    sha256: str

    def change(self) -> str | None:
        """How the original differs from what it was, as far as that shows without reading it; None: not at all.

        Who has only the prepared files has nothing to compare.
        """
        try:
            state = FileState.of(Path(self.path))
        except OSError:
            return None
        if state == FileState(self.size, self.mtime_ns):
            return None
        sizes = f" ({state.size} bytes, then {self.size})" if state.size != self.size else ""
        return f"its original {self.path} was changed after it was prepared{sizes}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the manifest.

    Attributes:
        file: name of the prepared file.
        size: its bytes.
        source: of which original.
        frames: which frames of the original it holds, in runs of first, last, step.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        scaled: whether they were scaled; else they have the original's size.
        lost: frames of the original that could not be decoded completely, in runs.
        original: index of the original, as JSON.
    """

    file: str
    size: int
    source: Source
    frames: Runs
    width: int
    height: int
    scaled: bool
    lost: Runs
    original: Mapping[str, Any]

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The frames (n,) that the file holds."""
        return from_runs(self.frames)

    @property
    def short_side(self) -> int | None:
        """Pixels of the shorter side; None: the original's own, whatever is read."""
        return min(self.width, self.height) if self.scaled else None

    def fault(self, state: FileState | None) -> str | None:
        """Why the prepared file, in its present state, or None where there is none, cannot be used; None: it can."""
        if state is None:
            return "the prepared file is missing"
        if state.size != self.size:
            return f"the prepared file has {state.size} bytes instead of {self.size}"
        return self.source.change()


class Manifest:
    """The manifest of a folder; lines are parsed when they are asked for.

    Raises:
        DataError: unreadable, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        self.complete_bytes = data.rfind(b"\n") + 1
        lines = data[: self.complete_bytes].splitlines()
        self.header = _header(path, lines[0] if lines else b"")
        self._lines: dict[str, bytes] = {}
        for number, line in enumerate(lines[1:], start=2):
            try:
                self._lines[json.loads(line)["file"]] = line
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: damaged; delete this line and {AGAIN}") from error

    def __contains__(self, file: str) -> bool:
        return file in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def entry(self, file: str) -> Entry | None:
        """What the manifest says of a file.

        Raises:
            DataError: a damaged line.
        """
        line = self._lines.get(file)
        if line is None:
            return None
        try:
            tree = json.loads(line)
            return Entry(**{**tree, "source": Source(**tree["source"])})
        except (TypeError, KeyError) as error:
            raise DataError(f"{self.path}: damaged entry of {file}; {AGAIN}") from error

    def index(self, path: Path, state: FileState, own: Index) -> Index:
        """The index by which a prepared file is read: the original's frames, and where they are in the file.

        Args:
            path: the prepared file, in that state.
            state: its size and time.
            own: its own index.

        Raises:
            VideoError: missing in the manifest, not what it says, or changed originals.
        """
        entry = self.entry(path.name)
        if entry is None:
            raise VideoError(f"{path}: not in {MANIFEST} beside it, so its frames are unknown; {AGAIN}")
        if (fault := entry.fault(state)) is not None:
            raise VideoError(f"{path}: {fault}; {AGAIN}")
        original, frames = index_from_json(entry.original, path=str(path)), entry.numbers
        if own.info.num_frames != len(frames):
            raise VideoError(f"{path}: {own.info.num_frames} frames instead of {len(frames)}; {AGAIN}")
        held = Held(
            frames=frames,
            height=entry.height,
            width=entry.width,
            scaling=self.header.scaling if entry.scaled else None,
            lost=frozenset(from_runs(entry.lost).tolist()),
        )
        return replace(own, info=original.info, seconds=original.seconds, held=held)


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of a folder, None if it holds no prepared videos; read again when it has changed.

    Raises:
        DataError: unreadable, or of another version.
    """
    path = folder / MANIFEST
    try:
        state = FileState.of(path)
    except OSError:
        return None
    return _manifest(path.absolute(), state)


@lru_cache(maxsize=64)
def _manifest(path: Path, state: FileState) -> Manifest:  # the state: a changed file is read again
    return Manifest(path)


def places_of(index: Index, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where frames (n,) of the original are in the file.

    Raises:
        VideoError: a frame that the file does not hold.
    """
    if index.held is None:
        return wanted
    frames = index.held.frames
    places = np.searchsorted(frames, wanted).clip(max=len(frames) - 1)
    absent = wanted[frames[places] != wanted]
    if len(absent):
        raise VideoError(f"{index.info.damage.path}: {absent_frames(frames, absent)}")
    return places


def absent_frames(frames: NDArray[np.int64], absent: NDArray[np.int64]) -> str:
    """Which frames are wanted but not among the prepared ones, in words."""
    shown = ", ".join(map(str, absent[:3].tolist()))
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    which = f"frame {shown} of its original was" if len(absent) == 1 else f"frames {shown}{more} of its original were"
    has = ", ".join(map(str, frames[:3].tolist()))
    return f"{which} not prepared (it holds {has}, ...); run adatad-ds prepare-videos with this recipe, too"


def size_fault(index: Index, *, short_side: int, scaling: Scaling) -> str | None:
    """Why pictures of this size cannot be made of the stored ones as they would be of the original's; None: they can.

    From larger ones they are scaled once more, which is nearly the same.
    """
    from adatad_ds.data.decoding.scaling import scaled_size  # here: it needs PyTorch, and an index does not

    held = index.held
    if held is None or held.scaling is None:
        return None
    if held.scaling != scaling:
        return f"prepared with data.scaling={held.scaling}, but {scaling} is wanted"
    wanted = scaled_size(height=index.info.height, width=index.info.width, short_side=short_side)
    if wanted[0] > held.height or wanted[1] > held.width:
        return f"prepared with a short side of {min(held.height, held.width)} pixels, but {short_side} are wanted"
    return None


def lost_frames(index: Index, places: Iterable[int], *, wanted: NDArray[np.int64]) -> set[int]:
    """Frames of the original that are lost, of those lost in the file itself and those lost before.

    Args:
        index: of the file.
        places: lost frames of the file itself.
        wanted: frames of the original (n,), from the first to the last of which it is asked.
    """
    if index.held is None:
        return set(places)
    before = {frame for frame in index.held.lost if wanted[0] <= frame <= wanted[-1]}
    return before | {int(index.held.frames[place]) for place in places}


def to_runs(numbers: NDArray[np.int64]) -> list[list[int]]:
    """Ascending numbers (n,) as runs of first, last, step."""
    runs: list[list[int]] = []
    at = 0
    steps = np.diff(numbers)
    while at < len(numbers):
        if at == len(numbers) - 1:
            runs.append([int(numbers[at]), int(numbers[at]), 1])
            break
        others = np.flatnonzero(steps[at:] != steps[at])
        end = at + int(others[0]) if len(others) else len(numbers) - 1
        runs.append([int(numbers[at]), int(numbers[end]), int(steps[at])])
        at = end + 1
    return runs


def from_runs(runs: Runs) -> NDArray[np.int64]:
    """The numbers (n,) of runs."""
    parts = [np.arange(first, last + 1, step, dtype=np.int64) for first, last, step in runs]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def header_line(header: Header) -> str:
    """The first line of a manifest."""
    return json.dumps({"format": FORMAT, "version": VERSION, **vars(header)}) + "\n"


def _header(path: Path, line: bytes) -> Header:
    try:
        tree = json.loads(line)
        if tree.pop("format") != FORMAT:
            raise ValueError(line)
        version = tree.pop("version")
        if version != VERSION:
            raise DataError(
                f"{path} has version {version}, but this program reads version {VERSION}: use the program that made "
                "it, or prepare the videos into another folder"
            )
        return Header(**tree)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a manifest of prepared videos; move it away, and {AGAIN}") from error
