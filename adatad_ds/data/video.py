"""Reading chosen frames of video files, exactly and without ever hanging.

A file's packets are counted once by demuxing. Their presentation times, sorted, say which frame is which, so seeking
stays exact with B-frames, and damaged files are known before a decoder meets them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from numpy.typing import NDArray

from adatad_ds.config import Scaling
from adatad_ds.data.scaling import scale, scaled_size

COMPLETE_SHARE = 0.98  # of the promised frames; headers also count those that a recording dropped
DECORD_CHUNK_BYTES = 2**26  # of full-size frames a call, so that its copies stay small

Backend = Literal["decord", "pyav"]
Frames = NDArray[np.uint8]
Finish = Callable[[Frames], Frames]  # a frame of the file's size to one of the wanted size


class VideoError(RuntimeError):
    """A video file that cannot be read; the message is one line with path and cause."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file really holds: frames by packet count, size as displayed (rotation applied), mean rate."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_sec: float
    even: bool  # frame i is shown at i / fps seconds, to a frame
    complete: bool  # about as many frames as the header promises, if it does


@dataclass(frozen=True, eq=False)
class _Index:
    info: VideoInfo
    seconds: NDArray[np.float64] | None  # when each frame is shown, the first at 0; None where the file does not tell
    times: NDArray[np.int64] | None  # presentation times of the frames, ascending; None where the file lacks them
    key_times: NDArray[np.int64]  # those of the keyframes
    plain: bool  # nothing about the file is unusual


def probe(path: str | Path) -> VideoInfo:
    """Frames that a file really holds, and their rate and size; the result is kept as long as the file is the same.

    All packets are read, but decoding stops after the first frame.

    Raises:
        VideoError: no video that can be decoded.
    """
    return _index(Path(path)).info


def frames_at(path: str | Path, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames (n,) nearest in time, by the file's own presentation times: right for variable frame rates, too.

    Raises:
        VideoError: no video that can be decoded.
    """
    index = _index(Path(path))
    if index.seconds is None:
        return np.clip(np.rint(seconds * index.info.fps), 0, index.info.num_frames - 1).astype(np.int64)
    borders = (index.seconds[:-1] + index.seconds[1:]) / 2
    return np.searchsorted(borders, seconds, side="right").astype(np.int64)


def read_frames(
    path: str | Path,
    indices: NDArray[np.int64],
    *,
    short_side: int,
    scaling: Scaling,
    backend: Backend,
) -> Frames:
    """Decode chosen frames into one array (n, h, w, 3), in one thread; arguments and errors as of `stream_frames`."""
    info = probe(path)
    height, width = scaled_size(height=info.height, width=info.width, short_side=short_side)
    out = np.empty((len(indices), height, width, 3), dtype=np.uint8)
    frames = stream_frames(path, indices, short_side=short_side, scaling=scaling, backend=backend)
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
) -> Iterator[Frames]:
    """Decode chosen frames one after the other, scaled on the way so that full-size frames never pile up.

    Whichever reader serves a file, it decodes at full size, where all give the same pixels; scaling is no reader's.

    Args:
        path: a video file.
        indices: frames (n,) in display order, non-decreasing, repeats allowed; those past the last frame that can be
            decoded take that one, those that are damaged the one before.
        short_side: pixels of the shorter side of the result; the aspect is kept.
        scaling: how frames get there.
        backend: which decoder; "decord" falls back to PyAV for files that it cannot read safely.
        num_threads: decoding threads.

    Yields:
        RGB frames (h, w, 3), n of them.

    Raises:
        VideoError: nothing in the file can be decoded.
    """
    path = Path(path)
    index = _index(path)
    height, width = scaled_size(height=index.info.height, width=index.info.width, short_side=short_side)

    def finish(frame: Frames) -> Frames:
        pixels = torch.from_numpy(frame)[None].permute(0, 3, 1, 2)
        pixels = scale(pixels, height=height, width=width, scaling=scaling)[0].permute(1, 2, 0)
        return np.ascontiguousarray(pixels.numpy())

    wanted = np.clip(indices, 0, index.info.num_frames - 1)
    done = 0
    # decord 0.6 waits for ever, holding the GIL, for frames that a header promises and the file lacks
    # (dmlc/decord#373), and where leading frames are lost it takes later ones for them, silently; it only gets files
    # where nothing is unusual.
    if backend == "decord" and index.plain and importlib.util.find_spec("decord") is not None:
        for frame in _by_decord(path, index.info, wanted, finish=finish, num_threads=num_threads):
            yield frame
            done += 1
    if done < len(wanted):
        yield from _by_pyav(path, index, wanted[done:], finish=finish, num_threads=num_threads)


def _index(path: Path) -> _Index:
    try:
        state = path.stat()
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    return _indexed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _indexed(path: Path, mtime_ns: int, size_bytes: int) -> _Index:  # the last two: a changed file is read anew
    if size_bytes == 0:
        raise VideoError(f"{path}: the file is empty")
    times: list[int | None] = []
    keys: list[int | None] = []
    first, hidden = None, 0
    with opened(path, num_threads=1) as (container, stream):
        for packet in packets_of(container, stream):
            hidden += packet.is_discard
            if not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
            if first is None:
                first = next(iter(decoded_frames(stream, packet)), None)
        first = first or next(iter(decoded_frames(stream, None)), None)
        header_frames, rate = stream.frames, stream.average_rate or stream.guessed_rate
        time_base = float(stream.time_base or 0)
    if first is None:
        raise VideoError(f"{path}: none of its {len(times)} packets can be decoded")
    fps = float(rate) if rate else 25.0
    turned = first.rotation % 180 != 0
    known = sorted(time for time in times if time is not None)
    usable = len(known) == len(times) and all(a < b for a, b in pairwise(known))
    seconds = (np.array(known) - known[0]) * time_base if usable and time_base else None
    even = seconds is None or bool(np.abs(seconds * fps - np.arange(len(seconds))).max() <= 1)
    if seconds is not None and not even:
        fps = (len(seconds) - 1) / float(seconds[-1])  # a container's rate may be a guess from its beginning
    info = VideoInfo(
        num_frames=len(times),
        fps=fps,
        width=first.height if turned else first.width,
        height=first.width if turned else first.height,
        duration_sec=len(times) / fps,
        even=even,
        complete=header_frames * COMPLETE_SHARE <= len(times) + hidden,
    )
    return _Index(
        info=info,
        seconds=seconds,
        times=np.array(known, dtype=np.int64) if usable else None,
        key_times=np.array(sorted(time for time in keys if time is not None), dtype=np.int64),
        plain=usable
        and header_frames == len(times)
        and not hidden
        and first.rotation == 0
        and keys[:1] == known[:1],  # else the first frames, which lean on a missing keyframe, never come out
    )


@contextmanager
def opened(path: Path, *, num_threads: int) -> Iterator[tuple[Any, Any]]:
    """A file's container and video stream; any failure is a `VideoError`."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: {_cause(error)}") from error
    with container:
        if not container.streams.video:
            raise VideoError(f"{path}: the file holds no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = num_threads
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise VideoError(f"{path}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def packets_of(container: Any, streams: Any) -> Iterator[Any]:
    """Packets of one or several streams up to its end, or to where a damaged file can be read no further."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.size:
            yield packet


def decoded_frames(stream: Any, packet: Any) -> Sequence[Any]:
    """Frames that a packet completes; a damaged one completes none."""
    try:
        return stream.decode(packet)
    except av.FFmpegError:  # also the end of the stream, when nothing is left in the decoder
        return ()


def _by_decord(
    path: Path, info: VideoInfo, wanted: NDArray[np.int64], *, finish: Finish, num_threads: int
) -> Iterator[Frames]:
    """Frames by decord, up to where it fails (codecs it lacks, damaged packets)."""
    import decord  # optional: no wheels for some platforms

    distinct, counts = np.unique(wanted, return_counts=True)
    try:
        reader = decord.VideoReader(str(path), num_threads=num_threads)
        at_once = max(1, DECORD_CHUNK_BYTES // (3 * info.width * info.height))
        for begin in range(0, len(distinct), at_once):
            chunk = reader.get_batch(distinct[begin : begin + at_once]).asnumpy()
            for frame, count in zip(chunk, counts[begin:], strict=False):
                yield from repeat(finish(frame), count)
    except (decord.DECORDError, RuntimeError, IndexError):
        return


def _by_pyav(
    path: Path, index: _Index, wanted: NDArray[np.int64], *, finish: Finish, num_threads: int
) -> Iterator[Frames]:
    """Frames by PyAV: from the keyframe before the first wanted frame where that works, else from the beginning."""
    starts: list[int | None] = [None]
    if index.times is not None:
        earlier = index.key_times[index.key_times <= index.times[wanted[0]]]
        if len(earlier) and earlier[-1] > index.times[0]:
            starts.insert(0, int(earlier[-1]))
    for seek_to in starts:
        with opened(path, num_threads=num_threads) as (container, stream):
            if seek_to is not None and not _seek(container, stream, seek_to):
                continue
            positions = _positions(container, stream, index.times)
            first = next(positions, None)
            if first is not None and (seek_to is None or first[0] <= wanted[0]):  # else it began too late
                yield from _chosen(chain((first,), positions), wanted, finish=finish)
                return
    raise VideoError(f"{path}: no frame can be decoded")


def _chosen(positions: Iterator[tuple[int, Any]], wanted: NDArray[np.int64], *, finish: Finish) -> Iterator[Frames]:
    """The wanted ones of decoded frames; lost ones take the one before."""
    row, previous = 0, None
    for position, frame in positions:
        last = int(np.searchsorted(wanted, position)) if previous is not None else row
        if last > row:
            yield from repeat(finish(upright(previous)), last - row)
            row = last
        if row == len(wanted):
            return
        previous = frame
    yield from repeat(finish(upright(previous)), len(wanted) - row)


def _seek(container: Any, stream: Any, time: int) -> bool:
    try:
        container.seek(time, stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


def _positions(container: Any, stream: Any, times: NDArray[np.int64] | None) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their index in display order: looked up by time, or counted where times are missing."""
    count = 0
    for packet in chain(packets_of(container, stream), (None,)):  # None: give out what the decoder holds back
        for frame in decoded_frames(stream, packet):
            if times is not None and frame.pts is not None:
                count = int(np.searchsorted(times, frame.pts, side="right")) - 1
            yield count, frame
            count += 1


def upright(frame: Any, size: tuple[int, int] | None = None) -> Frames:
    """One decoded frame as RGB (h, w, 3), turned as it is shown.

    Args:
        frame: PyAV's.
        size: width and height of the result, for a picture to be looked at; None: the file's own.
    """
    turns = round(frame.rotation / 90) % 4
    width, height = (size[::-1] if turns % 2 else size) if size else (None, None)
    # bilinear is how decord, too, makes RGB of YUV
    rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
