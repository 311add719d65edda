"""Write detections of one video as subtitles or as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad_ds.evaluation.tables import write_table

COLUMNS: tuple[str, ...] = ("start_sec", "end_sec", "label", "score")
# SubRip has no escapes: players interpret <i>, {\an8} and \N, and parsers -->
_SRT_SIGNS = str.maketrans("<>{}\\", "\u2039\u203a()\u2216")  # single angle quotes, set minus
LEAST_MS = 1  # players reject subtitles of zero duration


def write_csv(path: Path, detections: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a header, sorted by time; records have `segment` in seconds, `label`, `score`."""
    cells = ((*record["segment"], record["label"], record["score"]) for record in by_time(detections))
    write_table(path, (dict(zip(COLUMNS, row, strict=True)) for row in cells), columns=COLUMNS)


def write_vtt(path: Path, detections: Sequence[Mapping[str, Any]]) -> None:
    """Write WebVTT, one cue per detection with its label and score."""
    cues = [f"{_times(record, decimal='.')}\n{_escaped(_text(record))}\n" for record in by_time(detections)]
    path.write_text("\n".join(["WEBVTT\n", *cues]), encoding="utf-8")


def write_srt(path: Path, detections: Sequence[Mapping[str, Any]]) -> None:
    """Write SubRip, one cue per detection; characters that players take for markup are replaced by similar ones."""
    cues = [
        f"{number}\n{_times(record, decimal=',')}\n{_text(record).translate(_SRT_SIGNS)}\n"
        for number, record in enumerate(by_time(detections), start=1)
    ]
    path.write_text("\n".join(cues), encoding="utf-8")


def by_time(detections: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records by start, then end, then decreasing score."""
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
