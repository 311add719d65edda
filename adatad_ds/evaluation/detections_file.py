"""The community's result file: video -> detections with segment in seconds, label, score."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adatad_ds.errors import DataError
from adatad_ds.system.atomic import write_text
from adatad_ds.system.json_text import read_json

if TYPE_CHECKING:  # reading results needs no PyTorch
    from adatad_ds.detection.decoding import Candidates

VERSION = "VERSION 1.3"  # of ActivityNet's format, expected by evaluation servers
DETECTIONS_FILE = "detections.json"  # of an evaluation
_MOST_LISTED = 10


def to_records(candidates: Candidates, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Detections as file entries: seconds rounded to 2 digits (10 ms), scores to 4."""
    columns = (candidates.segments_sec.tolist(), candidates.scores.tolist(), candidates.labels.tolist())
    return [
        {"segment": [round(start, 2), round(end, 2)], "label": classes[label], "score": round(score, 4)}
        for (start, end), score, label in zip(*columns, strict=True)
    ]


def write_results(
    path: Path,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    damaged: Mapping[str, str] | None = None,
    files: Sequence[str] = (),
) -> None:
    """Write a result file atomically.

    Args:
        path: the file.
        results: detections of each video.
        damaged: what is missing in damaged files, by video; written under "damaged" if there are any.
        files: written beside it, for whoever may overwrite them; under "files" if there are any.
    """
    tree: dict[str, Any] = {"version": VERSION, "results": results, "external_data": {}}
    tree |= {"damaged": damaged} if damaged else {}
    tree |= {"files": list(files)} if files else {}
    write_text(path, json.dumps(tree))


def read_results(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a result file; a single detection that stands without a list, as MATLAB writes it, gets one.

    Raises:
        DataError: missing or malformed file, or malformed records, of which the first ten are listed.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the detections {path}: {error}") from error
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise DataError(f'{path} is not a detection file: it must hold {{"results": {{video: [...]}}}}')
    listed = {video: records if isinstance(records, list) else [records] for video, records in results.items()}
    faults = [
        f"{video} #{number}: {fault}"
        for video, records in listed.items()
        for number, record in enumerate(records)
        if (fault := _fault(record))
    ]
    if faults:
        more = f", and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
        raise DataError(f"{path} contains records that are not detections: {'; '.join(faults[:_MOST_LISTED])}{more}")
    return listed


def _fault(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "not an object"
    segment = record.get("segment")
    if not (isinstance(segment, list) and len(segment) == 2 and all(_is_number(time) for time in segment)):
        return f"segment must be [start, end] in seconds, not {segment!r}"
    if not isinstance(record.get("label"), str):
        return f"label must be a text, not {record.get('label')!r}"
    if not _is_number(record.get("score")):
        return f"score must be a number, not {record.get('score')!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
