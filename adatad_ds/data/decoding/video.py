"""Index of a video file: its actual frames and their times, from one pass over its packets.

Packets are demuxed once. Their sorted presentation times identify each frame, so seeking stays exact with B-frames, and
most damage is known before decoding.

All seconds are on a player's clock, whose zero is the first picture or sound of the file, whichever comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from numpy.typing import NDArray

from adatad_ds.data.decoding.damage import Damage, gaps, missing_sec
from adatad_ds.data.decoding.facts import Index, VideoError, VideoInfo, index_from_json, index_to_json, shown_sec
from adatad_ds.data.decoding.index_file import FileState, IndexFile
from adatad_ds.data.decoding.prepared import MANIFEST, Manifest, manifest_of
from adatad_ds.data.decoding.units import Units
from adatad_ds.system.user_cache import user_cache

ASSUMED_FPS = 25.0  # if no header gives a rate
# Codecs whose frames libraries find by themselves, if nothing reaches across keyframes
CODED_IN_ORDER = ("h264", "hevc", "vp8", "vp9")
JUMP_SEC = 0.25  # by which a stream's clock goes back only where another recording begins
LATE_INTERVALS = 1.5  # a first frame shown later than this starts late; decoder delay is one frame

MARK = "prepared by adatad-ds"  # a prepared file's comment about itself


def probe(path: str | Path) -> VideoInfo:
    """Actual frames of a file, their rate and size; cached while the file is unchanged.

    Reads all packets, but decodes only the first frame.

    Raises:
        VideoError: not a decodable video.
    """
    return index_of(Path(path)).info


def frames_at(path: str | Path, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames (n,) nearest in time, by the file's presentation times, so also for variable frame rates.

    Raises:
        VideoError: not a decodable video.
    """
    index = index_of(Path(path))
    if index.seconds is None:
        return np.clip(np.rint(seconds * index.info.fps), 0, index.info.num_frames - 1).astype(np.int64)
    borders = (index.seconds[:-1] + index.seconds[1:]) / 2
    return np.searchsorted(borders, seconds, side="right").astype(np.int64)


def index_of(path: Path) -> Index:
    """The file's index; errors and caching as for `probe`."""
    try:
        state = FileState.of(path)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    return _indexed(path.absolute(), str(path), state, manifest_of(path.parent))


def own_index(path: Path) -> Index:
    """The index of a file itself, though it be a prepared one; errors as for `probe`."""
    try:
        return _kept_or_demuxed(path.absolute(), str(path), FileState.of(path))
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error


def index_videos(paths: Iterable[Path], *, threads: int) -> None:
    """Put all files into the indexes on disk of their folders: the first process that asks does it, others wait for it.

    Files that cannot be read are left out; whoever reads them gets the error.
    """
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    for folder, members in folders.items():
        known = index_file_of(folder)
        if known is None or not any(_is_missing(known, path) for path in members):
            continue
        with known.turn(), ThreadPoolExecutor(threads) as pool:
            list(pool.map(_index_quietly, [path for path in members if _is_missing(known, path)]))


def _is_missing(known: IndexFile, path: Path) -> bool:
    try:
        return not known.has(path.name, FileState.of(path))
    except OSError:
        return False


def _index_quietly(path: Path) -> None:
    with suppress(VideoError):
        own_index(path)


def index_file_of(folder: Path) -> IndexFile | None:
    """The index on disk of a folder's video files; None if this user has no place for one."""
    return _index_file(folder.absolute())


@lru_cache(maxsize=64)
def _index_file(folder: Path) -> IndexFile | None:
    try:
        return IndexFile(cache=user_cache() / "videos", folder=folder)
    except RuntimeError:
        return None


def forget_indexes() -> None:
    """Drop what is held of files, for a process that reads ever other ones."""
    _indexed.cache_clear()


@lru_cache(maxsize=1024)
def _indexed(path: Path, named: str, state: FileState, manifest: Manifest | None) -> Index:
    """The index of a file in a state, with those facts of its original; `named`: the path for messages."""
    index = _kept_or_demuxed(path, named, state)
    if manifest is not None:
        return manifest.index(Path(named), state, index)
    if index.marked:
        raise VideoError(f"{named}: a prepared video, but {MANIFEST} is not beside it, so its frames are unknown")
    return index


def _kept_or_demuxed(path: Path, named: str, state: FileState) -> Index:
    known = index_file_of(path.parent)
    kept = known.get(path.name, state) if known else None
    if kept is not None:
        return index_from_json(json.loads(kept), path=named)
    index = demuxed(Path(named))
    keep_index(path, index, state)
    return index


def keep_index(path: Path, index: Index, state: FileState) -> None:
    """Put what is known of a file in that state into the index on disk of its folder, if there is one."""
    known = index_file_of(path.parent)
    if known is not None:
        known.add(path.name, state, json.dumps(index_to_json(index)).encode())


def demuxed(path: Path) -> Index:
    """The index from a pass over all packets, of which the first is decoded.

    Raises:
        VideoError: not a decodable video.
    """
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    times: list[int | None] = []
    keys: list[int | None] = []
    first, hidden, timed, end_sec = None, 0, False, {}  # end_sec: when each stream ends, on the file's own clock
    jumps, previous = 0, None  # of the packets' decoding times
    with opened(path, num_threads=1) as (container, stream):
        units, lone_keys = Units.of(stream), True
        for packet in packets_of(container, container.streams.get()):
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                end_sec[packet.stream.index] = max(end, end_sec.get(packet.stream.index, end))
            if packet.stream is not stream:
                continue
            timed = timed or packet.dts is not None
            if packet.dts is not None:
                jumps += previous is not None and jumps_back(packet.dts, previous, tick_sec=float(packet.time_base))
                previous = packet.dts
            hidden += packet.is_discard
            begins = units is None or not units.fields or units.begins_frame(bytes(packet))
            if begins and not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                    lone_keys = lone_keys and (units is None or units.is_idr(bytes(packet)))
            if first is None:
                first = next(iter(decoded_frames(stream, packet)), None)
        first = first or next(iter(decoded_frames(stream, None)), None)
        if first is None:
            raise VideoError(f"{path}: none of its {len(times)} packets can be decoded")
        known = sorted(time for time in times if time is not None)
        usable = len(known) == len(times) and _has_true_times(container, stream)
        usable = usable and (len(known) == 1 or known[0] < known[-1]) and not jumps
        seconds = (np.array(known) - known[0]) * float(stream.time_base) if usable else None  # from the first frame on
        headers_fps = told_fps(stream, seconds, timed=timed)
        fps = headers_fps or ASSUMED_FPS
        start_sec = known[0] * float(stream.time_base) - clock_zero_sec(container) if usable else 0.0
        start_sec = start_sec if start_sec > LATE_INTERVALS / fps else 0.0
        lost_sec = _lost_sec(container, stream, end_sec, held_sec=len(times) / fps, fps=fps)
        marked = container.metadata.get("comment", "").startswith(MARK)
        coding = stream.codec_context.name
        header_frames, tick_sec = stream.frames, float(stream.time_base or 0)
    even = seconds is None or bool(np.abs(seconds * fps - np.arange(len(seconds))).max() <= 1)
    holes = () if even or seconds is None else gaps(seconds + start_sec)
    length_sec = len(times) / fps
    if seconds is not None and not even:  # a container's rate may be a guess from its first frames
        fps = 1 / float(np.median(np.diff(seconds))) if holes else (len(seconds) - 1) / float(seconds[-1])
        length_sec = float(seconds[-1]) + 1 / fps
    turns, mirrored = orientation(first)
    info = VideoInfo(
        num_frames=len(times),
        fps=fps,
        width=first.height if turns % 2 else first.width,
        height=first.width if turns % 2 else first.height,
        start_sec=start_sec,
        duration_sec=start_sec + length_sec,
        even=even,
        damage=Damage(
            path=str(path),
            num_frames=len(times),
            fps=fps,
            start_sec=start_sec,
            missing_sec=lost_sec,
            gaps_sec=holes,
            rate_assumed=headers_fps is None,
            jumps=jumps,
        ),
    )
    known_times = np.array(known, dtype=np.int64) if usable else None
    return Index(
        info=info,
        seconds=None if known_times is None else shown_sec(known_times, tick_sec=tick_sec, start_sec=start_sec),
        times=known_times,
        key_times=np.array(sorted(time for time in keys if time is not None), dtype=np.int64),
        plain=usable
        and all(a < b for a, b in pairwise(known))
        and header_frames == len(times)
        and lone_keys
        and (coding in CODED_IN_ORDER or len(keys) == len(times))
        and not first.format.is_rgb
        and not hidden
        and (turns, mirrored) == (0, False)
        and all(component.bits == 8 for component in first.format.components)  # decord converts deeper ones differently
        and keys[:1] == known[:1],  # else the first frames, which depend on a missing keyframe, cannot be decoded
        tick_sec=tick_sec,
        marked=marked,
    )


def _has_true_times(container: Any, stream: Any) -> bool:
    """Whether packets' times are those of their pictures: AVI numbers packets, in whatever order they are shown."""
    context = stream.codec_context
    reordered = bool(context.has_b_frames) and context.name in ("h264", "hevc")
    return bool(stream.time_base) and not (container.format.name == "avi" and reordered)


def jumps_back(time: int, previous: int, *, tick_sec: float) -> bool:
    """Whether a stream's clock begins anew between two times in ticks, as where files were joined as bytes."""
    return (previous - time) * tick_sec > JUMP_SEC


def told_fps(stream: Any, seconds: NDArray[np.float64] | None, *, timed: bool) -> float | None:
    """Frame rate; for an elementary stream, which has no times, from the codec's headers, as FFmpeg guesses 25."""
    if not timed:
        rate = stream.codec_context.framerate
    elif stream.average_rate is None and seconds is not None and len(seconds) > 1:
        rate = (len(seconds) - 1) / float(seconds[-1])
    else:
        rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def clock_zero_sec(container: Any) -> float:
    """A player's zero on the file's own clock: the start of its first stream. Audio priming may start before 0."""
    return max(container.start_time or 0, 0) / 1e6


def _lost_sec(container: Any, stream: Any, end_sec: dict[int, float], *, held_sec: float, fps: float) -> float:
    """Seconds by which a file is shorter than the stream's header says or, without a duration, the container's."""
    if stream.duration is not None and stream.index in end_sec:
        begin_sec = float((stream.start_time or 0) * stream.time_base)
        promised_sec = float(stream.duration * stream.time_base)
        return missing_sec(promised_sec=promised_sec, held_sec=end_sec[stream.index] - begin_sec, fps=fps)
    if stream.duration is not None:
        return missing_sec(promised_sec=float(stream.duration * stream.time_base), held_sec=held_sec, fps=fps)
    if container.duration is None or not end_sec:
        return 0.0
    begin_sec = (container.start_time or 0) / 1e6
    held_sec = max(end_sec.values()) - begin_sec  # of the longest stream: the sound may be longer
    return missing_sec(promised_sec=container.duration / 1e6, held_sec=held_sec, fps=fps)


@contextmanager
def opened(path: Path, *, num_threads: int) -> Iterator[tuple[Any, Any]]:
    """Open a file's container and video stream; any failure is a `VideoError`."""
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
    """Packets of one or several streams, up to the end or to where a damaged file becomes unreadable."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.size:
            yield packet


def decoded_frames(stream: Any, packet: Any) -> Sequence[Any]:
    """Frames completed by a packet; none for a damaged one."""
    try:
        return stream.decode(packet)
    except av.FFmpegError:  # also raised when the decoder is already flushed
        return ()


def orientation(frame: Any) -> tuple[int, bool]:
    """How a decoded frame is displayed: by how many quarter turns to the left, and whether mirrored before, x to -x."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return 0, False
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3) / 2**16  # x, y to a x + c y, b x + d y
    mirrored = bool(a * d - b * c < 0)
    sign = -1 if mirrored else 1
    return round(-np.arctan2(sign * b, sign * a) / (np.pi / 2)) % 4, mirrored
