"""A numbered H.264 video whose frames are pairs of fields, as interlaced cameras and broadcasts write them.

No encoder at hand makes any, so the bits are written here: samples as they are (I_PCM macroblocks), nothing predicted.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.support.videos import numbered_frame

WIDTH, HEIGHT, FPS, GOP = 176, 96, 25, 12
FIELD_TICKS = 90_000 // (2 * FPS)


def write_fields(path: Path, *, frames: int, paired: bool) -> Path:
    """Write it in the container of the path's name.

    Args:
        path: the file.
        frames: number of frames.
        paired: whether the two fields of a frame come as one packet; else each has its own, with its time.
    """
    raw = path.with_suffix(".fields.h264")
    raw.write_bytes(b"".join(_field(index, bottom) for index in range(frames) for bottom in (0, 1)))
    with av.open(str(raw)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        fields = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        assert len(fields) == 2 * frames
        together = 2 if paired else 1
        for first in range(0, len(fields), together):
            packet = av.Packet(b"".join(fields[first : first + together]))
            packet.pts = packet.dts = first * FIELD_TICKS
            packet.duration, packet.time_base = together * FIELD_TICKS, Fraction(1, 90_000)
            packet.is_keyframe, packet.stream = first % (2 * GOP) == 0, stream
            target.mux(packet)
    raw.unlink()
    return path


def _field(index: int, bottom: int) -> bytes:
    """The units of a field: a delimiter, at keyframes what all pictures have in common, the picture."""
    key = index % GOP == 0 and not bottom
    begin = _unit(0x09, _Bits().put(0x10, 8))
    return begin + (_sequence() + _picture_parameters() if key else b"") + _slice(index, bottom, key=key)


def _sequence() -> bytes:
    bits = _Bits().put(77, 8).put(0, 8).put(30, 8).number(0)  # main profile, level 3
    bits.number(0).number(0).number(4)  # frame numbers of 4 bits, order of 8
    bits.number(1).put(0, 1).number(WIDTH // 16 - 1).number(HEIGHT // 32 - 1)
    bits.put(0, 1).put(0, 1).put(1, 1).put(0, 1)  # fields; none adaptive; direct_8x8_inference; no cropping
    bits.put(1, 1).put(0, 4).put(1, 1).put(1, 32).put(2 * FPS, 32).put(1, 1)  # rate
    return _unit(0x67, bits.put(0, 2).put(1, 1).put(0, 1).end())


def _picture_parameters() -> bytes:
    bits = _Bits().number(0).number(0).put(0, 2).number(0).number(0).number(0)
    return _unit(0x68, bits.put(0, 3).number(0).number(0).number(0).put(1, 1).put(0, 2).end())


def _slice(index: int, bottom: int, *, key: bool) -> bytes:
    number = index % GOP
    bits = _Bits().number(0).number(7).number(0).put(number % 16, 4).put(1, 1).put(bottom, 1)
    bits = (
        bits.number(0).put((2 * number + bottom) % 256, 8).put(0, 2)
        if key
        else bits.put(2 * number + bottom, 8).put(0, 1)
    )
    bits.number(0).number(1)  # no change of quality; no deblocking
    picture = av.VideoFrame.from_ndarray(numbered_frame(index, width=WIDTH, height=HEIGHT), format="rgb24")
    planes = picture.reformat(format="yuv420p").to_ndarray()
    luma = planes[:HEIGHT][bottom::2]
    chroma = planes[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)[:, bottom::2]
    for row in range(HEIGHT // 32):
        for column in range(WIDTH // 16):
            bits.number(25).align()
            bits.bytes(luma[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].tobytes())
            bits.bytes(chroma[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].tobytes())
    return _unit(0x65 if key else 0x61, bits.end())


def _unit(header: int, bits: _Bits) -> bytes:
    data, zeros = bytearray(), 0
    for byte in bits.whole():
        if zeros >= 2 and byte <= 3:  # nothing may look like a start
            data.append(3)
            zeros = 0
        data.append(byte)
        zeros = 0 if byte else zeros + 1
    return b"\0\0\0\1" + bytes([header]) + bytes(data)


class _Bits:
    def __init__(self) -> None:
        self._bits: list[int] = []

    def put(self, value: int, count: int) -> _Bits:
        self._bits += [value >> (count - 1 - place) & 1 for place in range(count)]
        return self

    def number(self, value: int) -> _Bits:
        """In Exp-Golomb code."""
        length = (value + 1).bit_length()
        return self.put(value + 1, 2 * length - 1)

    def bytes(self, data: bytes) -> _Bits:
        self._bits += np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
        return self

    def align(self) -> _Bits:
        return self.put(0, -len(self._bits) % 8)

    def end(self) -> _Bits:
        return self.put(1, 1).align()

    def whole(self) -> bytes:
        return np.packbits(np.array(self._bits, np.uint8)).tobytes()
