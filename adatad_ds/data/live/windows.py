"""Windows of a live video as they fill: those that the same video as a file would have.

F frames of a window, S pixels per side.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.batch import Batch, collate, window_sample
from adatad_ds.data.live.pictures import Began, Ended, LiveEvent, Picture, StreamEvent
from adatad_ds.data.windows import Timing, WindowSource, window_at, window_hop


@dataclass(frozen=True, kw_only=True)
class LiveWindow:
    """A window whose pictures have all come.

    Attributes:
        batch: the window alone.
        end_sec: its end.
        horizon_sec: where the earliest window that may still come begins.
        arrived: when its last picture was read (time.monotonic).
    """

    batch: Batch
    end_sec: float
    horizon_sec: float
    arrived: float


def live_windows(
    events: Iterable[LiveEvent], config: DataConfig, *, name: str
) -> Iterator[Began | LiveWindow | Ended | StreamEvent]:
    """A live video's windows, and everything else in its events but the pictures.

    At most a window's pictures and those of the step to the next are held.

    Args:
        events: in order.
        config: how windows are cut; sampling must be sliding windows.
        name: the video's, for samples.
    """
    part: _Windows | None = None
    for event in events:
        if isinstance(event, Began):
            part = _Windows(event, config, name=name)
            yield event
        elif isinstance(event, Picture):
            assert part is not None
            yield from part.add(event)
        elif isinstance(event, Ended):
            assert part is not None
            yield from part.end(event)
            yield event
        else:
            yield event


class _Windows:
    """The windows of one part."""

    def __init__(self, began: Began, config: DataConfig, *, name: str) -> None:
        self._began, self._config, self._name = began, config, name
        self._hop = window_hop(config) * config.frames_per_feature
        self._held: deque[Tensor] = deque()
        self._first_held, self._slots = 0, 0
        self._start, self._done, self._arrived = 0, -1, 0.0  # slots: of the next window, of the last one made

    def add(self, picture: Picture) -> Iterator[LiveWindow]:
        self._held.append(picture.pixels)
        self._slots, self._arrived = self._slots + 1, picture.arrived
        if self._slots == self._start + self._config.window_frames:
            yield self._window(self._start, num_frames=self._slots * self._config.frame_stride, end_sec=math.inf)
            self._start += self._hop

    def end(self, ended: Ended) -> Iterator[LiveWindow]:
        """The last window, which ends with the part, unless it has been made."""
        config = self._config
        steps = -(-ended.num_frames // (config.frame_stride * config.frames_per_feature))
        last = max(0, steps - config.window_size) * config.frames_per_feature
        if last > self._done:
            yield self._window(last, num_frames=ended.num_frames, end_sec=ended.end_sec)

    def _window(self, start: int, *, num_frames: int, end_sec: float) -> LiveWindow:
        config, began = self._config, self._began
        while self._first_held < start:
            self._held.popleft()
            self._first_held += 1
        pictures = list(self._held)[: config.window_frames]
        pictures += pictures[-1:] * (config.window_frames - len(pictures))
        source = WindowSource(
            video=Video(self._name, "", end_sec, None, None, ()),
            video_index=0,
            timing=Timing(num_frames=num_frames, fps=began.fps, start_sec=began.first_sec),
            config=config,
            label_ids={},
        )
        window = window_at(source, start_slot=start)
        self._done = start
        sample = window_sample(
            window, torch.stack(pictures), steps=config.window_size, video=self._name, damage=None, sample_id=0
        )
        shown_sec = (start + config.window_frames) * config.frame_stride / began.fps
        return LiveWindow(
            batch=collate([sample]),
            end_sec=min(end_sec, began.first_sec + shown_sec),
            horizon_sec=window.grid.to_sec(1.0),
            arrived=self._arrived,
        )
