"""Writing of one prepared file: chosen frames of an original, as the reader gives them, coded anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from adatad_ds.data.decoding.facts import Index, index_to_json
from adatad_ds.data.decoding.frames import Frames, stream_frames
from adatad_ds.data.decoding.index_file import FileState
from adatad_ds.data.decoding.prepared import Codec, Entry, Header, Source, to_runs
from adatad_ds.data.decoding.scaling import scaled_size
from adatad_ds.data.decoding.video import MARK, VideoError, demuxed, index_of, own_index
from adatad_ds.system.atomic import replacing

QUALITY: dict[Codec, int | None] = {"h264": 12, "mjpeg": 1, "lossless": None}  # if no other is asked for
SUFFIXES: dict[Codec, str] = {"h264": ".mp4", "mjpeg": ".mp4", "lossless": ".mkv"}
GROUP = 12  # frames from one keyframe of H.264 to the next
TICK = Fraction(1, 90_000)  # sec
BT601, TV_RANGE = 6, 1  # FFmpeg's numbers of what is assumed of files that say nothing
HASHED_BYTES = 2**20


def prepare_file(source: Path, target: Path, *, frames: NDArray[np.int64], short_side: int, header: Header) -> Entry:
    """Write the prepared file of one original, in one thread; it is there completely or not at all.

    Args:
        source: the original.
        target: the prepared file.
        frames: which frames (n,) of the original, ascending.
        short_side: pixels of the shorter side; pictures are never enlarged.
        header: how they are coded and scaled.

    Returns:
        What the manifest says of it.

    Raises:
        VideoError: the original cannot be decoded.
        OSError: the file cannot be written.
    """
    state, index = FileState.of(source), index_of(source)
    short_side = min(short_side, index.info.height, index.info.width)
    height, width = scaled_size(height=index.info.height, width=index.info.width, short_side=short_side)
    lost: set[int] = set()
    pictures = stream_frames(source, frames, short_side=short_side, scaling=header.scaling, backend="pyav", lost=lost)
    with replacing(target) as temporary:
        with _encoder(temporary, header, index, height=height, width=width) as encode:
            for number, picture in zip(frames.tolist(), pictures, strict=True):
                encode(picture, _ticks(index, number))
        written = demuxed(temporary).info.num_frames
        if written != len(frames):
            raise VideoError(f"{source}: only {written} of its {len(frames)} frames could be coded")
    own_index(target)  # into the index on disk
    return Entry(
        file=target.name,
        size=target.stat().st_size,
        source=Source(path=str(source.resolve()), size=state.size, mtime_ns=state.mtime_ns, sha256=file_sha256(source)),
        frames=to_runs(frames),
        width=width,
        height=height,
        scaled=(height, width) != (index.info.height, index.info.width),
        lost=to_runs(np.array(sorted(lost), dtype=np.int64)),
        original=index_to_json(index),
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(HASHED_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _ticks(index: Index, number: int) -> int:
    """When a frame is shown, from the original's first frame on."""
    info = index.info
    shown_sec = number / info.fps if index.seconds is None else float(index.seconds[number]) - info.start_sec
    return round(shown_sec / TICK)


@contextmanager
def _encoder(path: Path, header: Header, index: Index, *, height: int, width: int) -> Iterator[Any]:
    """A function that takes pictures (h, w, 3) and their times in ticks."""
    converter, latest = VideoReformatter(), -1
    codec, pixel_format, options = _coding(header)
    form = "mp4" if SUFFIXES[header.codec] == ".mp4" else "matroska"
    # Python's file raises what goes wrong at its end, too
    with path.open("wb") as file, av.open(file, "w", format=form) as container:
        container.metadata["comment"] = f"{MARK} prepare-videos"
        stream: Any = container.add_stream(codec, rate=Fraction(index.info.fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt, stream.options = height, width, pixel_format, options
        context = stream.codec_context
        context.time_base, context.thread_count, context.max_b_frames = TICK, 1, 0
        if header.codec == "h264":
            context.gop_size, context.colorspace, context.color_range = GROUP, BT601, TV_RANGE

        def encode(picture: Frames, ticks: int) -> None:
            nonlocal latest
            latest = max(ticks, latest + 1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = converter.reformat(frame, format=pixel_format, interpolation="BILINEAR")
            frame.pts, frame.time_base = latest, TICK
            container.mux(stream.encode(frame))

        yield encode
        container.mux(stream.encode(None))


def _coding(header: Header) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's codec, pixel format and options; colours at full size, as those of larger originals are, scaled down."""
    if header.codec == "h264":
        options = {"crf": str(header.quality), "preset": "superfast", "tune": "fastdecode"}
        return "libx264", "yuv444p", options
    if header.codec == "mjpeg":
        return "mjpeg", "yuvj444p", {"qmin": str(header.quality), "qmax": str(header.quality)}
    return "ffv1", "bgr0", {"level": "3"}
