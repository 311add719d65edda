"""Detections of one video as subtitles, which players show over it, and as a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("start_sec", "end_sec", "label", "score")
LEAST_MS = 1  # players refuse a subtitle that is over as it begins


def write_csv(path: Path, detections: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header, by time; `detections` are records with `segment` in seconds, `label`, `score`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for record in by_time(detections):
            writer.writerow([*record["segment"], record["label"], record["score"]])


def write_vtt(path: Path, detections: Sequence[Mapping[str, Any]]) -> None:
    """WebVTT, one cue a detection: its label and score, as long as it lasts."""
    cues = [f"{_times(record, decimal='.')}\n{_escaped(_text(record))}\n" for record in by_time(detections)]
    path.write_text("\n".join(["WEBVTT\n", *cues]), encoding="utf-8")


def write_srt(path: Path, detections: Sequence[Mapping[str, Any]]) -> None:
    """SubRip, the same."""
    cues = [
        f"{number}\n{_times(record, decimal=',')}\n{_text(record)}\n"
        for number, record in enumerate(by_time(detections), start=1)
    ]
    path.write_text("\n".join(cues), encoding="utf-8")


def by_time(detections: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records by start, then end; of equals the surer first."""
    return sorted(detections, key=lambda record: (*record["segment"], -record["score"]))


def clock(seconds: float, *, decimal: str = ".") -> str:
    """Seconds as hours:minutes:seconds.milliseconds."""
    total_ms = round(seconds * 1000)
    minutes, milliseconds = divmod(total_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{decimal}{milliseconds % 1000:03}"


def _times(record: Mapping[str, Any], *, decimal: str) -> str:
    start, end = record["segment"]
    end = max(end, start + LEAST_MS / 1000)
    return f"{clock(start, decimal=decimal)} --> {clock(end, decimal=decimal)}"


def _text(record: Mapping[str, Any]) -> str:
    label = " ".join(str(record["label"]).split())  # an empty line would end the cue
    return f"{label} {record['score']:.2f}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
