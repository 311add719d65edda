"""Shared by tests: cues."""

from __future__ import annotations

import re

TIME = r"(\d\d+):(\d\d):(\d\d)[.,](\d{3})"


def seconds(hours: str, minutes: str, whole: str, milliseconds: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + int(whole) + int(milliseconds) / 1000


def cues(text: str) -> list[tuple[float, float, str]]:
    """Start, end and text of each cue; a cue ends at an empty line."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = [line for line in block.split("\n") if line != "WEBVTT" and not line.isdecimal()]
        if lines:
            times = re.fullmatch(f"{TIME} --> {TIME}", lines[0])
            assert times, lines
            found.append((seconds(*times.groups()[:4]), seconds(*times.groups()[4:]), "\n".join(lines[1:])))
    return found
