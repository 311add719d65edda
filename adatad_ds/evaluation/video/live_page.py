"""A page on a live video, which updates while it is open, from a file and without a server."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from adatad_ds.system.atomic import write_text

PAGE, DATA = "live.html", "live.js"
MOST_DETECTIONS, MOST_EVENTS = 200, 20


class LivePage:
    """The page and its data, of bounded size.

    The page asks for its data again and again as a script, which browsers also allow pages that are opened as files.

    Args:
        folder: of both files.
        name: the stream's.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        self.path = folder / PAGE
        self._data, self._name = folder / DATA, name
        self._detections: deque[Mapping[str, Any]] = deque(maxlen=MOST_DETECTIONS)
        self._events: deque[Mapping[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._start: Mapping[str, Any] = {}
        self._window: Mapping[str, Any] = {}
        self._told = 0
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path, (files("adatad_ds.evaluation.video") / PAGE).read_text(encoding="utf-8"))
        self.write()

    def add(self, message: Mapping[str, Any]) -> None:
        """Take a message of `inference.live.watch`."""
        if message["type"] == "detection":
            self._detections.append(message)
            self._told += 1
        elif message["type"] == "window":
            self._window = message
        elif message["type"] == "start":
            self._start = message
        else:
            self._events.append({"at_sec": message["at_sec"], "text": message.get("text", "the end of this part")})
            if message["type"] == "end":
                self._window = {**self._window, "pending": [], "at_sec": message["at_sec"]}

    def write(self, *, ended: bool = False) -> None:
        """Write the data as it is now."""
        tree = {
            "name": self._name,
            "ended": ended,
            "told": self._told,
            "start": self._start,
            "window": self._window,
            "detections": list(self._detections),
            "events": list(self._events),
        }
        write_text(self._data, f"show({json.dumps(tree)});\n")
