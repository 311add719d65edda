"""Small real video files for tests; every frame carries its own number as a pattern of bright and dark squares."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CELL = 16  # pixels of one square
BITS = 10
MILLISECOND = Fraction(1, 1000)
SOON = {  # encoders' options to be done soon
    "libx264": {"preset": "veryfast"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def numbered_frame(index: int, *, width: int = 176, height: int = 96) -> np.ndarray:
    """A frame (height, width, 3) uint8: a smooth background that drifts, and `index` in binary along the top."""
    y, x = np.ogrid[:height, :width]
    frame = np.empty((height, width, 3))
    frame[..., 0] = 96 + 40 * np.sin((x + 2 * index) / 25)
    frame[..., 1] = 110 + y / 3
    frame[..., 2] = 120 + 40 * np.cos((y - index) / 20)
    for bit in range(BITS):
        frame[:CELL, bit * CELL : (bit + 1) * CELL] = 230 if index >> bit & 1 else 20
    return frame.astype(np.uint8)


def frame_numbers(frames: np.ndarray, *, width: int = 176) -> np.ndarray:
    """The numbers that frames (n, h, w, 3) carry, scaled from `width`; narrow ones show the low bits only."""
    cell = frames.shape[2] * CELL / width
    centres = ((np.arange(min(BITS, width // CELL)) + 0.5) * cell).astype(int)
    bright = frames[:, int(cell / 2), centres].mean(axis=-1) > 125
    return bright @ (1 << np.arange(len(centres)))


def write_video(
    path: Path,
    *,
    frames: int,
    fps: int = 10,
    codec: str = "libx264",
    width: int = 176,
    height: int = 96,
    gop: int = 12,
    b_frames: int = 2,
    times: Sequence[float] | None = None,
) -> Path:
    """Write a numbered video; mp4 has its index at the front, so that a cut file still opens.

    With `times`, frame i is shown at times[i] seconds: a variable frame rate.
    """
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = SOON.get(codec, {})
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.bit_rate = 4_000_000
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(numbered_frame(index, width=width, height=height), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(1000 * times[index]), MILLISECOND
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_textured(path: Path, *, frames: int, width: int, height: int) -> Path:
    """A file of sharp squares that move, where ways to scale differ most."""
    squares = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    still = squares.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"qp": "0", "preset": "ultrafast"}
        for index in range(frames):
            picture = np.ascontiguousarray(np.roll(still, 3 * index, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_late(path: Path, *, frames: int, late_sec: float, fps: int = 10) -> Path:
    """A numbered video whose sound begins at 0 and whose pictures begin `late_sec` later."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 176, 96, "yuv420p"
        stream.options = SOON["libx264"]
        stream.codec_context.max_b_frames = 0
        for start in range(0, int((late_sec + frames / fps) * 16000), 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts = 16000, start
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            picture.pts, picture.time_base = index + round(late_sec * fps), Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_elementary(
    path: Path,
    *,
    frames: int,
    fps: int,
    codec: str = "libx264",
    told: bool = True,
    width: int = 176,
    height: int = 96,
) -> Path:
    """A numbered stream without a container; `told`: its headers tell the rate (libx265 can leave it out)."""
    with av.open(str(path), "w", format={"libx264": "h264", "libx265": "hevc"}[codec]) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        quiet = {"x265-params": f"log-level=none:vui-timing-info={int(told)}"} if codec == "libx265" else {}
        stream.options = {"preset": "ultrafast"} | quiet
        for index in range(frames):
            picture = numbered_frame(index, width=width, height=height)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def blank(source: Path, path: Path, *, begin: float, share: float) -> Path:
    """A copy with zeros in a share of the file."""
    content = bytearray(source.read_bytes())
    start, count = int(len(content) * begin), int(len(content) * share)
    content[start : start + count] = bytes(count)
    path.write_bytes(bytes(content))
    return path


def lose_packets(source: Path, path: Path, *, begin: float, share: float) -> Path:
    """A copy of an MPEG transport stream that lacks a share of its packets, 188 bytes each."""
    content = source.read_bytes()
    start, end = (int(len(content) / 188 * part) * 188 for part in (begin, begin + share))
    path.write_bytes(content[:start] + content[end:])
    return path


def cut(source: Path, path: Path, *, share: float) -> Path:
    """The first part of a file."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def scramble_packet(source: Path, path: Path, *, packet: int, spared: float = 0.0) -> Path:
    """A copy in which the payload of one packet, in file order, is noise but for the spared part at its beginning."""
    with av.open(str(source)) as container:
        chosen = [p for p in container.demux(video=0) if p.size][packet]
        kept = int(spared * chosen.size)
        start, size = chosen.pos + kept, chosen.size - kept
    content = bytearray(source.read_bytes())
    content[start : start + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(bytes(content))
    return path


def overstate_frames(source: Path, path: Path) -> Path:
    """A copy of an AVI whose header promises ten times the frames that the file holds."""
    content = bytearray(source.read_bytes())
    for tag, offset in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames; dwLength
        at = content.index(tag) + offset
        frames = int.from_bytes(content[at : at + 4], "little")
        content[at : at + 4] = (frames * 10).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    return path
