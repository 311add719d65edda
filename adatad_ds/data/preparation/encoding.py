"""Writing of one prepared file: chosen frames of an original, as the reader gives them, coded anew."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from adatad_ds.data.decoding.facts import Index, index_to_json
from adatad_ds.data.decoding.frames import ONE_THREAD, Frames, stream_frames
from adatad_ds.data.decoding.index_file import FileState
from adatad_ds.data.decoding.jpeg import picture_of
from adatad_ds.data.decoding.prepared import Codec, Entry, Header, Source, to_runs
from adatad_ds.data.decoding.scaling import scaled_size
from adatad_ds.data.decoding.video import MARK, VideoError, demuxed, index_of, keep_index
from adatad_ds.system.atomic import replacing

QUALITY: dict[Codec, int | None] = {"h264": 11, "mjpeg": None, "lossless": None}  # if no other is asked for
QUALITIES: dict[Codec, range] = {"h264": range(52), "mjpeg": range(50, 101)}
SUFFIXES: dict[Codec, str] = {"h264": ".mp4", "mjpeg": ".mp4", "lossless": ".mkv"}
FORMATS = {".mp4": "mp4", ".mkv": "matroska"}
JPEG_QUALITIES = (96, 98)  # the second where the first gives a picture less than LEAST_JPEG_DB, if none is asked for
LEAST_JPEG_DB = 40.0
LEAST_DB = 42.0  # if colours at half the size, which are read twice as fast, cost more than that, they are kept whole
FINER = 2  # of CRF, for pictures whose colours are kept whole: their edges are sharp
CHECKED_EVERY = 16  # pictures
BEST_JPEG = 100  # quality at which little but the halving of colours is lost
# without adaptive quantisation, bits go where they count for the error, not for the eye
FAST_TO_DECODE = {"preset": "superfast", "tune": "fastdecode", "x264-params": "aq-mode=0"}
GROUP = 12  # frames from one keyframe of H.264 to the next
TICK = Fraction(1, 90_000)  # sec
BT601, TV_RANGE = 6, 1  # FFmpeg's numbers of what is assumed of files that say nothing


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
    """  # Python's file gives OSError, so that FFmpeg's own errors are of the pictures
    state, index = FileState.of(source), index_of(source)
    short_side = min(short_side, index.info.height, index.info.width)
    height, width = scaled_size(height=index.info.height, width=index.info.width, short_side=short_side)
    encode = partial(_encode, source, target, frames, short_side=short_side, header=header, size=(height, width))
    try:
        lost = _first_close_enough(encode, header)
    except av.FFmpegError as error:
        raise VideoError(f"{source}: cannot be re-encoded: {error.strerror}") from error
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


def _first_close_enough(encode: Callable[..., set[int]], header: Header) -> set[int]:
    """Encode in the first way whose pictures are near the original's, or in the last; return its lost frames."""
    quality = header.quality
    if header.codec == "h264":
        ways = [(quality, True), (max(0, (quality or 0) - FINER), False)]
    elif header.codec == "mjpeg":
        qualities = JPEG_QUALITIES if quality is None else (quality,)
        ways = [*((each, True) for each in qualities), (qualities[-1], False)]
    else:
        ways = [(None, False)]
    for way in ways[:-1]:
        with suppress(_TooFarError):
            return encode(quality=way[0], halved=way[1])
    return encode(quality=ways[-1][0], halved=ways[-1][1])


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ticks(index: Index, number: int) -> int:
    """When a frame is shown, from the original's first frame on."""
    info = index.info
    shown_sec = number / info.fps if index.seconds is None else float(index.seconds[number]) - info.start_sec
    return round(shown_sec / TICK)


def _encode(
    source: Path,
    target: Path,
    frames: NDArray[np.int64],
    *,
    short_side: int,
    header: Header,
    size: tuple[int, int],
    quality: int | None,
    halved: bool,
) -> set[int]:
    """Write the file, with colours at half the size or at the full one; return the lost frames of the original.

    Raises:
        _TooFarError: pictures with colours at half the size are too far from the original's.
    """
    lost: set[int] = set()
    index = index_of(source)
    pictures = stream_frames(source, frames, short_side=short_side, scaling=header.scaling, backend="pyav", lost=lost)
    with replacing(target) as temporary:
        with _Encoder(temporary, header, quality, fps=index.info.fps, size=size, halved=halved) as encoder:
            for number, picture in zip(frames.tolist(), pictures, strict=True):
                encoder.add(picture, _ticks(index, number))
        own = demuxed(temporary)
        written = own.info.num_frames
        if written != len(frames):
            raise VideoError(f"{source}: only {written} of its {len(frames)} frames could be coded")
    keep_index(target, own, FileState.of(target))
    return lost


class _TooFarError(Exception):
    """Pictures are too far from the original's."""


class _Encoder:
    """Writes pictures (h, w, 3) of a size (h, w) into a file."""

    def __init__(
        self, path: Path, header: Header, quality: int | None, *, fps: float, size: tuple[int, int], halved: bool
    ) -> None:
        self._header, self._quality, self._halved, self._count, self._latest = header, quality, halved, 0, -1
        self._converter, self._back = VideoReformatter(), VideoReformatter()
        even = halved and header.codec == "h264"
        self._coded = (size[0] + size[0] % 2, size[1] + size[1] % 2) if even else size
        codec, self._format, options = _coding(header.codec, quality, halved=halved)
        self._file = path.open("wb")  # Python's, which raises what goes wrong at its end, too
        self._container: Any = av.open(self._file, "w", format=FORMATS[SUFFIXES[header.codec]])
        self._container.metadata["comment"] = f"{MARK} prepare-videos"
        self._stream: Any = self._container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        self._stream.height, self._stream.width = self._coded
        self._stream.pix_fmt, self._stream.options = self._format, options
        context = self._stream.codec_context
        context.time_base, context.thread_count, context.max_b_frames = TICK, 1, 0
        if header.codec == "h264":
            context.gop_size, context.colorspace, context.color_range = GROUP, BT601, TV_RANGE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file, self._container:
            if kind is None and self._header.codec != "mjpeg":
                self._container.mux(self._stream.encode(None))

    def add(self, picture: Frames, ticks: int) -> None:
        """Add a picture that is shown at a time."""
        self._latest = max(ticks, self._latest + 1)
        checked = self._halved and self._count % CHECKED_EVERY == 0
        self._count += 1
        if self._header.codec == "mjpeg":
            self._add_jpeg(picture, checked=checked)
        else:
            self._add_frame(picture, checked=checked)

    def _add_jpeg(self, picture: Frames, *, checked: bool) -> None:
        data = jpeg_of(picture, quality=self._quality or 0, halved=self._halved)
        if checked and self._header.quality is None:
            _check(picture_of(data), picture, least_db=LEAST_JPEG_DB)
        elif checked:
            _check(picture_of(jpeg_of(picture, quality=BEST_JPEG, halved=True)), picture, least_db=LEAST_DB)
        packet = av.Packet(data)
        packet.stream, packet.is_keyframe, packet.time_base = self._stream, True, TICK
        packet.pts = packet.dts = self._latest
        self._container.mux(packet)

    def _add_frame(self, picture: Frames, *, checked: bool) -> None:
        pad = [(0, coded - own) for coded, own in zip(self._coded, picture.shape[:2], strict=True)]
        whole = np.pad(picture, (*pad, (0, 0)), mode="edge") if any(map(any, pad)) else picture
        frame = av.VideoFrame.from_ndarray(whole, format="rgb24")
        frame = self._converter.reformat(frame, format=self._format, interpolation="BILINEAR", **ONE_THREAD)
        if checked:
            back: Any = self._back.reformat(frame, format="rgb24", interpolation="BILINEAR", **ONE_THREAD)
            _check(back.to_ndarray(), whole, least_db=LEAST_DB)
        frame.pts, frame.time_base = self._latest, TICK
        self._container.mux(self._stream.encode(frame))


def _check(back: Frames | None, picture: Frames, *, least_db: float) -> None:
    """Check what came back of a coded picture (h, w, 3).

    Raises:
        _TooFarError: it is too far from the picture.
    """
    error = 255.0**2 if back is None else float(np.mean(np.square(back.astype(np.float32) - picture)))
    if 10 * math.log10(255**2 / max(error, 1e-9)) < least_db:
        raise _TooFarError


def jpeg_of(picture: Frames, *, quality: int, halved: bool) -> bytes:
    """A picture (h, w, 3) as JPEG.

    Args:
        picture: RGB.
        quality: libjpeg's, 1 to 100.
        halved: store colours at half the size.
    """
    import cv2  # here: it takes long to import, and only this codec needs it

    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if halved else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()


def _coding(codec: Codec, quality: int | None, *, halved: bool) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's codec, pixel format and options."""
    if codec == "h264":
        return "libx264", "yuv420p" if halved else "yuv444p", {"crf": str(quality), **FAST_TO_DECODE}
    if codec == "mjpeg":
        return "mjpeg", "yuvj420p" if halved else "yuvj444p", {}
    return "ffv1", "bgr0", {"level": "3"}
