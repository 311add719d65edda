"""What `predict --live` prints and writes: detections as lines of JSON, events for people, a page that updates."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from adatad_ds.data.live.source import LiveSource
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.video.live_page import LivePage
from adatad_ds.inference.live import Message, watch
from adatad_ds.inference.video_detector import VideoDetector

PAGE_EVERY_SEC = 1.0


def report_live(
    detector: VideoDetector,
    source: LiveSource,
    *,
    shown: ShownFrom,
    folder: Path | None,
    reach_sec: float | None,
    max_delay_sec: float | None,
) -> None:
    """Print what `watch` tells, one JSON object a line, until the stream ends; to stderr, what befalls it.

    Args:
        detector: of sliding windows.
        source: the video.
        shown: least score of what is printed.
        folder: where the page is written; None: no page.
        reach_sec: see `watch`.
        max_delay_sec: see `watch`.
    """
    print(f"detections of score {shown.score:g} or more ({shown.reason})", file=sys.stderr)
    page = LivePage(folder, name=source.name) if folder else None
    if page:
        print(f"page: {page.path}", file=sys.stderr)
    written, late = 0.0, 0
    messages = watch(detector, source, least_score=shown.score, reach_sec=reach_sec, max_delay_sec=max_delay_sec)
    try:
        for message in messages:
            print(json.dumps(message), flush=True)
            if line := _for_people(message):
                print(line, file=sys.stderr)
            if message["type"] == "window" and message["late"] > late:
                late = message["late"]
                text = f"{late} candidates began before what --reach-sec allows; what they overlap may not be final"
                print(f"{message['at_sec']:.1f} s: {text}", file=sys.stderr)
            if page:
                page.add(message)
                if time.monotonic() - written >= PAGE_EVERY_SEC:
                    page.write()
                    written = time.monotonic()
    finally:
        messages.close()
        if page:
            page.write(ended=True)


def _for_people(message: Message) -> str:
    """A line about a beginning, an end or an event; empty for others."""
    kind = message["type"]
    if kind in ("detection", "window"):
        return ""
    if kind == "start":
        least, most = message["final_after_sec"]
        text = (
            f"windows of {message['window_sec']:g} s, one every {message['every_sec']:g} s: detections are final "
            f"{least:g} to {most:g} s after their end, and the time of computing"
        )
    else:
        text = message.get("text", "the end of this part")
    return f"{message['at_sec']:.1f} s: {text}"
