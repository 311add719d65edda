"""What the packets of H.264 and HEVC hold, without decoding them.

Their data are units (NAL units), whose headers tell of pictures that no other refers to, of keyframes that nothing
reaches across, and of fields (ITU-T H.264, sections 7.3 and 7.4; H.265, 7.3.1.2 and 7.4.2.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

START = b"\0\0\1"  # of a unit, where units are not preceded by their length
SLICES = range(1, 6)  # types of H.264's units that hold a picture's data
IDR, SEQUENCE = 5, 7  # of them: a keyframe that no picture reaches across; what all pictures have in common
HEVC_SLICES, HEVC_IDR = range(32), (19, 20)
HEADER_BYTES = 32  # of a slice, enough for what is read of it
EXTENDED_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # that tell of colour and scaling


class Units:
    """The units in the packets of one video stream, in the order of the file.

    Args:
        codec: "h264" or "hevc".
        head: what the container says of the stream (FFmpeg's extradata): the sequence, and how units are told apart.

    Attributes:
        fields: whether pictures of H.264 may be fields, of which two make a frame.
    """

    def __init__(self, codec: str, head: bytes) -> None:
        self._hevc = codec == "hevc"
        self._length_bytes = 0  # 0: units begin with START
        counted = 21 if self._hevc else 4
        if len(head) > counted and head[0] == 1:
            self._length_bytes = (head[counted] & 3) + 1
        self._sequence = None if self._hevc else _sequence_of(head)
        self.fields = self._sequence is not None and self._sequence.fields
        self._first_field: tuple[int, int] | None = None  # frame number and parity of one that lacks the second

    @classmethod
    def of(cls, stream: Any) -> Units | None:
        """The units of PyAV's stream; None: of another codec."""
        context = stream.codec_context
        return cls(context.name, bytes(context.extradata or b"")) if context.name in ("h264", "hevc") else None

    def unreferenced(self, packet: bytes) -> bool:
        """Whether a packet of H.264 holds a picture that no other refers to."""
        for begin, _ in _places(packet, self._length_bytes):
            if packet[begin] & 31 in SLICES:
                return packet[begin] & 0x60 == 0
        return False

    def is_idr(self, packet: bytes) -> bool:
        """Whether a packet holds a keyframe after which no picture refers to, or is shown before, earlier ones."""
        for begin, _ in _places(packet, self._length_bytes):
            kind = packet[begin] >> 1 & 63 if self._hevc else packet[begin] & 31
            if kind in (HEVC_SLICES if self._hevc else SLICES):
                return kind in HEVC_IDR if self._hevc else kind == IDR
        return False

    def begins_frame(self, packet: bytes) -> bool:
        """Whether the next packet of H.264 begins a frame: it does not where it holds the second field of one alone."""
        if not self.fields:
            return True
        assert self._sequence is not None
        pictures = [
            self._sequence.field_of(packet[begin + 1 : begin + HEADER_BYTES])
            for begin, _ in _places(packet, self._length_bytes)
            if packet[begin] & 31 in (1, IDR)
            and packet[begin + 1 : begin + 2] >= b"\x80"  # the first slice of a picture
        ]
        begun = not pictures
        for field in pictures:
            pairs = field is not None and self._first_field == (field[0], 1 - field[1])
            begun = begun or not pairs
            self._first_field = None if pairs else field
        return begun


@dataclass(frozen=True)
class _Sequence:
    """What a sequence of H.264 says of its pictures: whether they may be fields, and how slices' headers are read."""

    fields: bool
    frame_number_bits: int
    separate_colours: bool

    @classmethod
    def read(cls, unit: bytes) -> _Sequence | None:
        """From its unit (sequence parameter set); None: damaged."""
        try:
            return cls._read(_Bits(unit[1:]))
        except ValueError:
            return None

    @classmethod
    def _read(cls, bits: _Bits) -> _Sequence:
        profile, separate = bits.take(8), False
        bits.take(16)  # constraints, level
        bits.number()
        if profile in EXTENDED_PROFILES:
            format_ = bits.number()
            separate = format_ == 3 and bits.take(1) == 1
            bits.numbers(2)  # depths
            bits.take(1)  # lossless coding
            if bits.take(1):
                for index in range(12 if format_ == 3 else 8):
                    if bits.take(1):
                        bits.scaling_list(16 if index < 6 else 64)
        frame_number_bits = bits.number() + 4
        order = bits.number()
        if order == 0:
            bits.number()
        elif order == 1:
            bits.take(1)
            bits.numbers(2)
            bits.numbers(bits.number())
        bits.number()  # reference frames
        bits.take(1)  # gaps
        bits.numbers(2)  # width, height
        return cls(fields=bits.take(1) == 0, frame_number_bits=frame_number_bits, separate_colours=separate)

    def field_of(self, slice_: bytes) -> tuple[int, int] | None:
        """Frame number and parity of a slice's picture; None: it is no field, or damaged."""
        bits = _Bits(slice_)
        try:
            bits.numbers(3)  # place, type, picture parameters
            bits.take(2 * self.separate_colours)
            number = bits.take(self.frame_number_bits)
            return (number, bits.take(1)) if bits.take(1) else None
        except ValueError:
            return None


class _Bits:
    """Bits of a unit, from the first one on.

    Raises:
        ValueError: of each call, where the unit has ended.
    """

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # a 3 keeps zeros from looking like a start
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def number(self) -> int:
        """A number in Exp-Golomb code; of signed ones only the length is of use."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def numbers(self, count: int) -> None:
        """Pass over so many numbers."""
        for _ in range(count):
            self.number()

    def scaling_list(self, size: int) -> None:
        last = following = 8
        for _ in range(size):
            if following:
                coded = self.number()
                following = (last + (coded + 1 >> 1) * (1 if coded & 1 else -1)) % 256
            last = following or last


def _sequence_of(head: bytes) -> _Sequence | None:
    """The sequence that a container tells: a unit of it after its size, or among units as in packets."""
    if len(head) > 8 and head[0] == 1:
        size = int.from_bytes(head[6:8], "big")
        return _Sequence.read(head[8 : 8 + size]) if head[5] & 31 else None
    places = _places(head, 0)
    return next((_Sequence.read(head[begin:end]) for begin, end in places if head[begin] & 31 == SEQUENCE), None)


def _places(data: bytes, length_bytes: int) -> Iterator[tuple[int, int]]:
    """Where each unit begins and ends; they are preceded by START, or by their length in so many bytes."""
    place, size = 0, len(data)
    while length_bytes and place < size:
        begin = place + length_bytes
        place = begin + int.from_bytes(data[place:begin], "big")
        if begin < size:
            yield begin, place
    place = size if length_bytes else data.find(START)
    while 0 <= place < size:
        begin = place + len(START)
        place = data.find(START, begin)
        if begin < size:
            yield begin, place if place >= 0 else size
