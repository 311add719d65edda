"""Decode chosen frames of a video file, exactly and without ever hanging."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from adatad_ds.config.schema import Scaling
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.decoding.jpeg import jpeg_frames
from adatad_ds.data.decoding.libraries import WHOLE_FILE, Reader
from adatad_ds.data.decoding.prepared import lost_frames, places_of, size_fault
from adatad_ds.data.decoding.scaling import scale_frame, scaled_size
from adatad_ds.data.decoding.sparing import key_before, seek, sparingly_decoded
from adatad_ds.data.decoding.video import (
    Index,
    VideoError,
    VideoInfo,
    decoded_frames,
    index_of,
    opened,
    orientation,
    packets_of,
    probe,
)

CHUNK_BYTES = 2**26  # full-size frames per call of decord or TorchCodec, to keep their copies small
# PyAV 17 and later start a thread a core for each frame otherwise
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

Backend = Literal["auto", "torchcodec", "pyav", "decord", "nvdec"]
Frames = NDArray[np.uint8]
Finish = Callable[[Frames], Frames]  # scales a frame of the file's size to the wanted size


class VideoFrames:
    """Chosen frames of a file, decoded and scaled one by one as they are iterated over, which is possible once.

    Arguments and errors are those of `stream_frames`.

    Attributes:
        shape: (n, h, w, 3), of all of them together.
        seconds: what decoding and scaling took so far.
    """

    def __init__(
        self, path: str | Path, indices: NDArray[np.int64], *, short_side: int, scaling: Scaling, backend: Backend
    ) -> None:
        info = probe(path)
        height, width = scaled_size(height=info.height, width=info.width, short_side=short_side)
        self.shape = (len(indices), height, width, 3)
        self.seconds = 0.0
        self._lost: set[int] = set()
        self._damage = info.damage
        self._frames = stream_frames(
            path, indices, short_side=short_side, scaling=scaling, backend=backend, lost=self._lost
        )

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        began = time.perf_counter()
        try:
            return next(self._frames)
        finally:
            self.seconds += time.perf_counter() - began

    @property
    def damage(self) -> Damage:
        """What is missing in the file, and among the frames so far."""
        return self._damage.with_lost(self._lost)


def read_frames(
    path: str | Path,
    indices: NDArray[np.int64],
    *,
    short_side: int,
    scaling: Scaling,
    backend: Backend,
    lost: set[int] | None = None,
) -> Frames:
    """Decode chosen frames into one array (n, h, w, 3), in one thread; arguments and errors as for `stream_frames`."""
    info = probe(path)
    height, width = scaled_size(height=info.height, width=info.width, short_side=short_side)
    out = np.empty((len(indices), height, width, 3), dtype=np.uint8)
    frames = stream_frames(path, indices, short_side=short_side, scaling=scaling, backend=backend, lost=lost)
    for row, frame in enumerate(frames):
        out[row] = frame
    return out


def stream_frames(
    path: str | Path,
    indices: NDArray[np.int64],
    *,
    short_side: int,
    scaling: Scaling,
    backend: Backend,
    num_threads: int = 1,
    lost: set[int] | None = None,
) -> Iterator[Frames]:
    """Decode chosen frames one by one, scaled immediately, so that full-size frames never accumulate.

    Every decoder decodes at full size, where all give the same pixels, but OpenCV nearly; scaling is separate.

    Args:
        path: a video file.
        indices: frames (n,) in display order, non-decreasing, repeats allowed; indices past the last decodable frame
            get that frame, damaged frames are replaced by the one before.
        short_side: pixels of the shorter side of the result; the aspect ratio is kept.
        scaling: interpolation.
        backend: decoder; "auto" is PyAV, the fastest for recipes' strides and the only one that reports damage, and
            OpenCV for prepared MJPEG. All fall back to PyAV for files that they cannot read safely.
        num_threads: decoding threads.
        lost: receives the indices of frames, from the first to the last wanted one, that could not be decoded
            completely or may depend on such frames; where all wanted ones are intact, others that no frame refers to
            are not looked at. "decord", "torchcodec" and "nvdec" do not report frames that their decoders conceal.

    Yields:
        RGB frames (h, w, 3), n of them.

    Raises:
        VideoError: nothing in the file can be decoded, or a prepared file lacks what is wanted.
    """
    path = Path(path)
    index = index_of(path)
    height, width = scaled_size(height=index.info.height, width=index.info.width, short_side=short_side)

    def finish(frame: Frames) -> Frames:
        if index.held is not None:  # what was coded may be a row or column larger
            frame = frame[: index.held.height, : index.held.width]
        return scale_frame(frame, height=height, width=width, scaling=scaling)

    if (fault := size_fault(index, short_side=short_side, scaling=scaling)) is not None:
        raise VideoError(f"{path}: {fault}; run adatad-ds prepare-videos with this recipe, too")
    numbers = np.clip(indices, 0, index.info.num_frames - 1)
    wanted = places_of(index, numbers)  # in the file
    done = 0
    for picture, count in jpeg_frames(path, index, wanted) if backend == "auto" else ():
        yield from repeat(finish(picture), count)
        done += count
    # decord 0.6 waits forever, holding the GIL, for frames that a header promises and the file lacks
    # (dmlc/decord#373), and if leading frames are lost it silently returns later ones. Both it and TorchCodec only get
    # files without anything unusual, and hand over to PyAV where they fail.
    if index.plain and backend in WHOLE_FILE:
        for frame in _by_library(
            WHOLE_FILE[backend],
            path,
            replace(index.info, num_frames=index.num_held),
            wanted,
            finish=finish,
            num_threads=num_threads,
        ):
            yield frame
            done += 1
    if done < len(wanted):
        missed, converter = set[int](), VideoReformatter()
        for frame, count in _by_pyav(path, index, wanted[done:], num_threads=num_threads, lost=missed):
            if lost is not None:
                lost |= lost_frames(index, missed, wanted=numbers)
            yield from repeat(finish(upright(frame, converter=converter)), count)


def find_lost(path: Path) -> set[int]:
    """Indices of the frames that cannot be decoded completely, by decoding the whole file.

    Raises:
        VideoError: nothing in the file can be decoded.
    """
    index, lost = index_of(path), set[int]()
    for _ in _in_full(path, index, np.array([0, index.num_held - 1]), num_threads=1, lost=lost):
        pass
    return lost_frames(index, lost, wanted=np.array([0, index.info.num_frames - 1]))


def _by_library(
    open_file: Callable[..., Reader | None],
    path: Path,
    info: VideoInfo,
    wanted: NDArray[np.int64],
    *,
    finish: Finish,
    num_threads: int,
) -> Iterator[Frames]:
    """Frames by decord or TorchCodec, until it fails (unsupported codecs, damaged packets)."""
    distinct, counts = np.unique(wanted, return_counts=True)
    try:
        read = open_file(path, info, num_threads=num_threads)
        if read is None:
            return
        at_once = max(1, CHUNK_BYTES // (3 * info.width * info.height))
        for begin in range(0, len(distinct), at_once):
            chunk = read(distinct[begin : begin + at_once])
            for frame, count in zip(chunk, counts[begin:], strict=False):
                yield from repeat(finish(frame), count)
    except (RuntimeError, ValueError, IndexError):
        return


def _by_pyav(
    path: Path, index: Index, wanted: NDArray[np.int64], *, num_threads: int, lost: set[int]
) -> Iterator[tuple[Any, int]]:
    """Frames by PyAV, with the number of times that each is wanted.

    What is neither wanted nor referred to is not decoded, unless the file shows damage: then all is read again, as the
    frames that are lost are to be told.
    """
    given = 0
    for frame, count in sparingly_decoded(path, index, wanted, num_threads=num_threads):
        yield frame, count
        given += count
    if given == len(wanted):
        return
    for frame, count in _in_full(path, index, wanted, num_threads=num_threads, lost=lost):
        again = min(given, count)
        given -= again
        if count > again:
            yield frame, count - again


def _in_full(
    path: Path, index: Index, wanted: NDArray[np.int64], *, num_threads: int, lost: set[int]
) -> Iterator[tuple[Any, int]]:
    """Frames and counts as for `_by_pyav`, from the keyframe before the first wanted one if that works."""
    starts: list[int | None] = [None]
    if (key := key_before(index, wanted)) is not None:
        starts.insert(0, key)
    for seek_to in starts:
        with opened(path, num_threads=num_threads) as (container, stream):
            if seek_to is not None and not seek(container, stream, seek_to):
                continue
            positions = _positions(container, stream, index.times)
            first = next(positions, None)
            if first is not None and (seek_to is None or first[0] <= wanted[0]):  # else the seek went too far
                begin = 0 if seek_to is None else first[0]
                yield from _chosen(chain((first,), positions), wanted, begin=begin, lost=lost)
                return
    raise VideoError(f"{path}: no frame can be decoded")


def _chosen(
    positions: Iterator[tuple[int, Any]], wanted: NDArray[np.int64], *, begin: int, lost: set[int]
) -> Iterator[tuple[Any, int]]:
    """Wanted frames among the decoded ones, from frame `begin` on, with their counts; lost ones get the one before.

    Lost frames are added to `lost`, with those that may depend on them: up to the next keyframe, and B-frames before.
    """
    row, previous, coming = 0, None, begin
    broken, leaning = False, list[int]()
    for position, frame in positions:
        missing = range(coming, position)
        hurt = frame.is_corrupt or bool(missing)
        broken = frame.is_corrupt or (not frame.key_frame and (broken or bool(missing)))
        found = [*missing, *(leaning if hurt else ()), *([position] if broken else ())]
        lost.update(number for number in found if number >= wanted[0])
        leaning = [*leaning, position] if frame.pict_type == PictureType.B else []
        coming = max(coming, position + 1)
        last = int(np.searchsorted(wanted, position)) if previous is not None else row
        if last > row:
            yield previous, last - row
            row = last
        if row == len(wanted):
            return
        previous = frame
    lost.update(range(max(coming, int(wanted[0])), int(wanted[-1]) + 1))
    yield previous, len(wanted) - row


def _positions(container: Any, stream: Any, times: NDArray[np.int64] | None) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their index in display order: looked up by time, or counted if times are missing."""
    count = 0
    for packet in chain(packets_of(container, stream), (None,)):  # None: flush the decoder
        for frame in decoded_frames(stream, packet):
            if times is not None and frame.pts is not None:
                first, beyond = (int(np.searchsorted(times, frame.pts, side=side)) for side in ("left", "right"))
                count = min(max(count, first), beyond - 1)  # of several at one time, one after the other
            yield count, frame
            count += 1


def upright(frame: Any, size: tuple[int, int] | None = None, *, converter: VideoReformatter | None = None) -> Frames:
    """A decoded frame as RGB (h, w, 3), rotated and mirrored as displayed.

    Args:
        frame: PyAV's frame.
        size: width and height of the result, for display; None: the file's own.
        converter: kept from frame to frame, since making one takes longer than a small frame.
    """
    turns, mirrored = orientation(frame)
    width, height = (size[::-1] if turns % 2 else size) if size else (None, None)
    # bilinear, as decord also converts YUV to RGB
    way: Any = {"width": width, "height": height, "format": "rgb24", "interpolation": "BILINEAR", **ONE_THREAD}
    rgb: Any = (converter or VideoReformatter()).reformat(frame, **way).to_ndarray()
    if not turns and not mirrored:
        return rgb
    return np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirrored else rgb, turns))
