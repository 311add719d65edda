"""The pictures of a live video that windows show, as they come, with what befalls the stream.

A window's pictures are a fixed time apart ("slots", see data/windows.py). Each slot gets the frame nearest in time, so
that a stutter or lost frames leave the later ones in their places. Where times jump, or the stream was opened again, a
new part begins: no window reaches across.

S pixels per side.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter
from torch import Tensor

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.augmentation.transforms import center_crop
from adatad_ds.data.decoding.damage import GAP_INTERVALS, GAP_SEC
from adatad_ds.data.decoding.frames import upright
from adatad_ds.data.decoding.scaling import scale_frame, scaled_size
from adatad_ds.data.decoding.video import (
    ASSUMED_FPS,
    LATE_INTERVALS,
    VideoError,
    clock_zero_sec,
    decoded_frames,
    packets_of,
    told_fps,
)
from adatad_ds.data.live.source import LiveSource

BACK_SEC = 1.0  # a time that goes back by less is a frame out of order, which is left out
LEAST_JUMP_SEC = 10.0  # a time that goes on by more, and by more than a window, is a new clock
DAMAGE_EVERY_SEC = 10.0  # damaged pictures are told no more often
STALLED_SHARE = 0.5  # of the time after which a stream is opened again: then it is told that nothing comes
FIRST_PAUSE_SEC, LONGEST_PAUSE_SEC = 0.5, 8.0  # between attempts to open a stream again


@dataclass(frozen=True, kw_only=True)
class Began:
    """A part of the stream begins.

    Attributes:
        begin_sec: its beginning on the stream's clock, whose zero is that of the first part's player.
        first_sec: when its first frame is shown.
        fps: of the slots' numbers, see `Timing`.
    """

    begin_sec: float
    first_sec: float
    fps: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The picture of the next slot: `pixels` (S, S, 3) uint8, read at `arrived` (time.monotonic)."""

    pixels: Tensor
    arrived: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The part has ended, at `end_sec`, after `num_frames` frames, see `Timing`."""

    end_sec: float
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """What befell the stream: `kind` for programs, `text` for people."""

    kind: str
    at_sec: float
    text: str


LiveEvent = Began | Picture | Ended | StreamEvent


def live_events(source: LiveSource, config: DataConfig, *, closed: Event) -> Iterator[LiveEvent]:
    """Everything from a live video, read in a thread at most a window ahead of the caller.

    Args:
        source: the video.
        config: how windows are cut.
        closed: once set, reading ends.

    Raises:
        VideoError: it cannot be opened, or gives no picture.
    """
    waiting: queue.Queue[LiveEvent | BaseException | None] = queue.Queue(max(2, config.window_frames))

    def put(item: LiveEvent | BaseException | None) -> None:
        while not closed.is_set():
            try:
                return waiting.put(item, timeout=0.2)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for event in _Reader(source, config, closed=closed).events():
                put(event)
            put(None)
        except BaseException as error:  # raised where the events are used
            put(error)

    Thread(target=read, daemon=True, name="live video").start()
    patience_sec = STALLED_SHARE * source.idle_sec or None
    at_sec, stalled = 0.0, False
    while True:
        try:
            item = waiting.get(timeout=None if stalled else patience_sec)
        except queue.Empty:
            stalled = True
            yield StreamEvent(kind="stalled", at_sec=at_sec, text=f"no picture for {patience_sec:g} s; waiting")
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        stalled = isinstance(item, StreamEvent) and item.kind == "lost"  # which has been told
        at_sec = item.end_sec if isinstance(item, Ended) else at_sec
        yield item


class _Reader:
    """Reads a source part by part, and opens it again where it comes back.

    Args:
        source: the video.
        config: how windows are cut.
        closed: once set, reading ends.
    """

    def __init__(self, source: LiveSource, config: DataConfig, *, closed: Event) -> None:
        self._source, self._config, self._closed = source, config, closed
        self._part: _Part | None = None  # the last one, which may have ended

    def events(self) -> Iterator[LiveEvent]:
        """All parts, and what happens between them."""
        yield from self._read_once()
        if self._part is None:
            hint = "; an MP4 that has its index at its end cannot be read from a pipe, MPEG-TS or Matroska can"
            raise VideoError(
                f"{self._source.name}: no frame can be decoded{hint if self._source.kind == 'pipe' else ''}"
            )
        while self._source.comes_back and not self._closed.is_set():
            last = self._part
            yield StreamEvent(
                kind="lost", at_sec=last.end_sec, text="the stream has ended or broken off; opening it again"
            )
            until, pause = time.monotonic() + self._source.reconnect_sec, FIRST_PAUSE_SEC
            while self._part is last:
                if self._closed.wait(pause) or time.monotonic() > until:
                    text = f"not back within {self._source.reconnect_sec:g} s"
                    yield StreamEvent(kind="gone", at_sec=last.end_sec, text=text)
                    return
                try:
                    yield from self._read_once()
                except VideoError:
                    pause = min(2 * pause, LONGEST_PAUSE_SEC)

    def _read_once(self) -> Iterator[LiveEvent]:
        """From opening the source to its end."""
        opened_part: _Part | None = None
        with self._source.opened(self._closed) as (container, stream):
            frames, fps, assumed = _frames(container, stream)
            for frame in frames:
                if self._closed.is_set():
                    break
                arrived = time.monotonic()
                if opened_part is not None and (jump := opened_part.jump_sec(frame)):
                    yield from opened_part.end()
                    yield StreamEvent(
                        kind="jump", at_sec=opened_part.end_sec, text=f"the stream's clock jumps {jump:+.1f} s"
                    )
                    opened_part = None
                if opened_part is None:
                    before = self._part
                    opened_part = self._part = _Part(self._config, frame, stream, fps=fps, arrived=arrived)
                    yield opened_part.begin(container, after=before)
                    if assumed and before is None:
                        text = f"its headers give no frame rate: all times assume {fps:g} per second"
                        yield StreamEvent(kind="rate", at_sec=opened_part.end_sec, text=text)
                yield from opened_part.add(frame, arrived=arrived)
        if opened_part is not None:
            yield from opened_part.end()


def _frames(container: Any, stream: Any) -> tuple[Iterator[Any], float, bool]:
    """Decoded frames, their rate by the headers, and whether it is only assumed."""
    packets = packets_of(container, stream)
    first = next(packets, None)
    fps = told_fps(stream, None, timed=first is not None and first.dts is not None)

    def decoded() -> Iterator[Any]:
        if first is not None:
            yield from decoded_frames(stream, first)
        for packet in packets:
            yield from decoded_frames(stream, packet)
        yield from decoded_frames(stream, None)

    return decoded(), fps or ASSUMED_FPS, fps is None


class _Part:
    """Chooses the frames of one part's slots.

    Args:
        config: how windows are cut.
        frame: the first one.
        stream: of the container.
        fps: of the stream.
        arrived: when the first frame was read (time.monotonic).
    """

    def __init__(self, config: DataConfig, frame: Any, stream: Any, *, fps: float, arrived: float) -> None:
        self._config, self._fps = config, fps
        self._tick_sec, self._first_pts = float(stream.time_base or 0), frame.pts
        self._slot_fps = config.fixed_fps or fps
        self._jump_sec = max(LEAST_JUMP_SEC, config.window_frames * config.frame_stride / self._slot_fps)
        self._converter = VideoReformatter()
        self._first_sec = 0.0
        self._frame, self._sec, self.arrived = None, 0.0, arrived  # the newest, and when it is shown
        self._pixels: Tensor | None = None  # of the newest, once made
        self._count, self._slots = 0, 0
        self._size: tuple[int, int] = (frame.width, frame.height)
        self._damaged, self._damage_told_sec = 0, -np.inf

    @property
    def end_sec(self) -> float:
        """When the newest frame ends."""
        return self._first_sec + self._num_frames / self._fps

    @property
    def _num_frames(self) -> int:
        return round((self._sec - self._first_sec) * self._fps) + 1

    def begin(self, container: Any, *, after: _Part | None) -> Began:
        """Place the part on the stream's clock: as a player would or, if it is not the first, by the time between."""
        if after is not None:
            pause_sec = max(0.0, self.arrived - after.arrived - 1 / self._fps)
            self._first_sec = begin_sec = after.end_sec + pause_sec
        else:
            late_sec = (self._first_pts or 0) * self._tick_sec - clock_zero_sec(container)
            self._first_sec = late_sec if late_sec > LATE_INTERVALS / self._fps else 0.0
            begin_sec = 0.0
        self._sec = self._first_sec
        return Began(begin_sec=begin_sec, first_sec=self._first_sec, fps=self._slot_fps)

    def jump_sec(self, frame: Any) -> float:
        """By how much the clock jumps from the newest frame to this one; 0 if it does not."""
        step_sec = self._time(frame) - self._sec
        return step_sec if step_sec <= -BACK_SEC or step_sec > self._jump_sec else 0.0

    def add(self, frame: Any, *, arrived: float) -> Iterator[LiveEvent]:
        """The next frame: pictures of the slots that are nearer to the one before."""
        now_sec, self.arrived = self._time(frame), arrived
        if self._frame is not None and now_sec <= self._sec:
            return  # out of order
        if (size := (frame.width, frame.height)) != self._size:
            text = f"pictures change from {self._size[0]}x{self._size[1]} to {size[0]}x{size[1]} pixels"
            yield StreamEvent(kind="size", at_sec=now_sec, text=text)
            self._size = size
        self._damaged += frame.is_corrupt
        if self._damaged and now_sec - self._damage_told_sec > DAMAGE_EVERY_SEC:
            yield StreamEvent(kind="damaged", at_sec=now_sec, text=f"{self._damaged} damaged pictures")
            self._damaged, self._damage_told_sec = 0, now_sec
        if self._frame is not None:
            if now_sec - self._sec > max(GAP_SEC, GAP_INTERVALS / self._fps):
                text = f"no picture from {self._sec:.2f} to {now_sec:.2f} s"
                yield StreamEvent(kind="gap", at_sec=now_sec, text=text)
            yield from self._pictures(until_sec=(self._sec + now_sec) / 2)
        self._frame, self._sec, self._pixels = frame, now_sec, None
        self._count += 1

    def end(self) -> Iterator[LiveEvent]:
        """No more frames: the slots that are left, and the end."""
        shown_sec = self._num_frames / self._fps
        fixed = self._config.fixed_fps
        num_frames = max(1, round(shown_sec * fixed)) if fixed else self._num_frames
        slots = -(-num_frames // self._config.frame_stride)
        while self._slots < slots:
            yield self._picture()
        yield Ended(end_sec=self._first_sec + shown_sec, num_frames=num_frames)

    def _time(self, frame: Any) -> float:
        if frame.pts is None or self._first_pts is None:
            return self._first_sec + self._count / self._fps
        return (frame.pts - self._first_pts) * self._tick_sec + self._first_sec

    def _pictures(self, *, until_sec: float) -> Iterator[Picture]:
        while self._first_sec + self._slots * self._config.frame_stride / self._slot_fps < until_sec:
            yield self._picture()

    def _picture(self) -> Picture:
        if self._pixels is None:
            config = self._config
            rgb = upright(self._frame, converter=self._converter)
            height, width = scaled_size(height=rgb.shape[0], width=rgb.shape[1], short_side=config.resolution)
            rgb = scale_frame(rgb, height=height, width=width, scaling=config.scaling)
            self._pixels = center_crop(rgb[None], resolution=config.resolution, scaling=config.scaling)[0]
        self._slots += 1
        return Picture(pixels=self._pixels, arrived=self.arrived)
