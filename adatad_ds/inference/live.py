"""Detect in a live video: each detection once, when no later window can change it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from adatad_ds.config.schema import Config
from adatad_ds.data.live.pictures import Began, StreamEvent, live_events
from adatad_ds.data.live.source import LiveSource
from adatad_ds.data.live.windows import LiveWindow, live_windows
from adatad_ds.data.windows import window_hop
from adatad_ds.detection.decoding import Candidates
from adatad_ds.detection.settling import Settled, Settling
from adatad_ds.detection.suppression import keep_best
from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.detections_file import to_records
from adatad_ds.inference.video_detector import VideoDetector

NAME = "live"
REACH_WINDOWS, LONGEST_WINDOWS = 0.125, 8.0  # defaults, in windows
ROUNDED = 1e-4  # scores are rounded before they are compared with the least one

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LiveTiming:
    """How long detections wait; all in seconds of the stream.

    Attributes:
        window_sec: length of a window.
        every_sec: from one window's end to the next one's.
        reach_sec: a detection is expected to begin at most so long before its window.
        max_delay_sec: what later windows may still change is told after so long all the same.
    """

    window_sec: float
    every_sec: float
    reach_sec: float
    max_delay_sec: float

    @classmethod
    def choose(cls, config: Config, *, fps: float, reach_sec: float | None, max_delay_sec: float | None) -> LiveTiming:
        """Those of a detector's windows at a frame rate; None: the default.

        Raises:
            ConfigError: the detector has no sliding windows.
        """
        data = config.data
        if data.sampling != "random_trunc":
            raise ConfigError(
                "this detector looks at a whole video at once (data.sampling=resize), and a live one has no end; "
                "record a part of it and predict that, or use a detector of sliding windows"
            )
        step_sec = data.frame_stride * data.frames_per_feature / fps
        window_sec = data.window_size * step_sec
        return cls(
            window_sec=window_sec,
            every_sec=window_hop(data) * step_sec,
            reach_sec=REACH_WINDOWS * window_sec if reach_sec is None else reach_sec,
            max_delay_sec=LONGEST_WINDOWS * window_sec if max_delay_sec is None else max_delay_sec,
        )

    @property
    def final_after_sec(self) -> tuple[float, float]:
        """The least and the most time from an action's end to its detection, without that of computing."""
        least = self.window_sec + self.reach_sec
        return least, least + self.every_sec


def watch(
    detector: VideoDetector,
    source: LiveSource,
    *,
    least_score: float,
    reach_sec: float | None = None,
    max_delay_sec: float | None = None,
) -> Generator[Message]:
    """Messages about a live video, JSON-ready, each with a `type`.

    - `start`: a part of the stream begins: `at_sec`, `fps`, `window_sec`, `every_sec`, `reach_sec`, `final_after_sec`.
    - `detection`: `segment` in seconds of the stream, `label`, `score`; `final`: whether it is that of the whole
      video; `delay_sec`: from its end to now.
    - `window`: one has been searched: `at_sec` its end, `behind_sec` how long ago its last picture came, `pending`
      detections that may still change, `held` candidates, `late` ones so far (see `Settling`).
    - `gap`, `size`, `damaged`, `rate`, `stalled`, `jump`, `lost`, `gone`: what befell the stream, `at_sec` and `text`.
    - `end`: a part has ended: `at_sec`.

    Args:
        detector: of sliding windows.
        source: the video.
        least_score: detections below are not told.
        reach_sec: see `LiveTiming`; None: an eighth of a window.
        max_delay_sec: see `LiveTiming`; None: eight windows.

    Raises:
        ConfigError: the detector has no sliding windows.
        VideoError: the video cannot be opened, or gives no picture.
    """
    config = detector.config
    choose = partial(LiveTiming.choose, config, reach_sec=reach_sec, max_delay_sec=max_delay_sec)
    choose(fps=1.0)  # a detector that cannot watch says so before the stream is opened
    closed, part = Event(), None
    try:
        for item in live_windows(live_events(source, config.data, closed=closed), config.data, name=NAME):
            if isinstance(item, StreamEvent):
                yield {"type": item.kind, "at_sec": round(item.at_sec, 2), "text": item.text}
            elif isinstance(item, Began):
                part = _Part(detector, item, choose(fps=item.fps), least_score=least_score)
                yield part.started()
            elif isinstance(item, LiveWindow):
                assert part is not None
                yield from part.search(item)
            else:
                assert part is not None
                yield from part.end(item.end_sec)
    finally:
        closed.set()


class _Part:
    """Detections of one part of the stream."""

    def __init__(self, detector: VideoDetector, began: Began, timing: LiveTiming, *, least_score: float) -> None:
        test = detector.config.test
        least = max(least_score - ROUNDED, test.min_score)
        keep = partial(
            keep_best,
            method=test.suppression,
            sigma=test.sigma,
            tiou=test.tiou_suppression,
            min_score=least,
            max_per_video=2**31,  # a stream has no end, so no number of detections for all of it
            per_class=test.per_class,
        )
        self._detector, self._began, self._timing, self._least_score = detector, began, timing, least_score
        self._arrived = 0.0
        self._settling = Settling(
            keep=keep,
            least_score=least,
            per_class=test.per_class,
            voting_thresh=test.voting_thresh,
            max_delay_sec=timing.max_delay_sec,
            begin_sec=began.begin_sec,
        )

    def started(self) -> Message:
        began, timing = self._began, self._timing
        return {
            "type": "start",
            "at_sec": round(began.begin_sec, 2),
            "fps": began.fps,
            "window_sec": round(timing.window_sec, 2),
            "every_sec": round(timing.every_sec, 2),
            "reach_sec": round(timing.reach_sec, 2),
            "final_after_sec": [round(sec, 2) for sec in timing.final_after_sec],
        }

    def search(self, window: LiveWindow) -> Iterator[Message]:
        """A window's candidates, and what they settle."""
        (found,) = self._detector.find_candidates([window.batch]).values()
        horizon_sec = window.horizon_sec - self._timing.reach_sec
        settled = self._settling.add(found.candidates, now_sec=window.end_sec, horizon_sec=horizon_sec)
        self._arrived = window.arrived
        yield from self._tell(settled, now_sec=window.end_sec)
        yield {
            "type": "window",
            "at_sec": round(window.end_sec, 2),
            "behind_sec": round(time.monotonic() - window.arrived, 2),
            "pending": self._records(self._settling.unsettled()),
            "held": len(self._settling),
            "late": self._settling.late,
        }

    def end(self, end_sec: float) -> Iterator[Message]:
        """All that is left: nothing can change it any more."""
        yield from self._tell(self._settling.finish(end_sec=end_sec), now_sec=end_sec)
        yield {"type": "end", "at_sec": round(end_sec, 2)}

    def _tell(self, settled: Settled, *, now_sec: float) -> Iterator[Message]:
        computing_sec = time.monotonic() - self._arrived
        finals = settled.final.tolist()
        for record, final in zip(to_records(settled.detections, self._detector.classes), finals, strict=True):
            if record["score"] >= self._least_score:
                delay_sec = now_sec - min(record["segment"][1], now_sec) + computing_sec
                yield {"type": "detection", **record, "final": final, "delay_sec": round(delay_sec, 2)}

    def _records(self, candidates: Candidates) -> list[Mapping[str, Any]]:
        return [
            record for record in to_records(candidates, self._detector.classes) if record["score"] >= self._least_score
        ]
