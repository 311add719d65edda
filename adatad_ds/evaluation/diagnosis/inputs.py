"""What a diagnosis is made of: detections and annotations from their files, held against each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adatad_ds.data.annotations import ANY_ACTION, Video, load_annotations, subset_names
from adatad_ds.data.video_names import VideoNames
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.evaluation.detections_file import read_results
from adatad_ds.evaluation.diagnosis.diagnosis import Diagnosis, diagnose
from adatad_ds.evaluation.metrics_files import METRICS_FILE
from adatad_ds.system.unicode_text import TextLookup

DEFAULT_TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Detections, and the annotations that they are held against.

    Attributes:
        detections: file of the former.
        annotations: file of the latter.
        subset: of the annotations.
        videos: as annotated.
        truths: the same, labelled as the detections are; see `labelled_as`.
        results: detections under the annotations' names.
        notes: for the reader: what was repaired, and what counts nowhere.
    """

    detections: Path
    annotations: Path
    subset: str
    videos: Sequence[Video]
    truths: Sequence[Video]
    results: Results
    notes: list[str]


def diagnose_files(
    detections: Path,
    annotations: Path,
    *,
    subset: str,
    tiou: float,
    average_tiou: Sequence[float] | None,
    min_precision: float,
    exclude: Sequence[str] = (),
    exclude_file: str = "",
) -> tuple[Diagnosis, Source]:
    """Read and diagnose.

    Args:
        detections: detections.json of an evaluation, or any file of that format.
        annotations: the annotation JSON.
        subset: of the annotations.
        tiou: from this overlap on a detection is right.
        average_tiou: thresholds of average mAP; None: those of the metrics beside the detections, else 0.3 to 0.7.
        min_precision: a segment found only where its class's precision is no higher is missed.
        exclude: names of annotated videos to leave out.
        exclude_file: a list of more of them; "": none.

    Raises:
        DataError: the files cannot be used, or not together.
    """
    source = read_source(detections, annotations, subset=subset, exclude=exclude, exclude_file=exclude_file)
    evaluated_tiou, evaluated_map = evaluated_beside(detections)
    averaged = tuple(average_tiou or evaluated_tiou or DEFAULT_TIOU)
    diagnosis = diagnose(source.results, source.truths, average_tiou=averaged, tiou=tiou, min_precision=min_precision)
    if averaged == evaluated_tiou and not math.isclose(evaluated_map, diagnosis.metrics.average_map, abs_tol=1e-6):
        source.notes.append(
            f"{METRICS_FILE} beside the detections says average mAP {100 * evaluated_map:.2f} %: that is of other "
            "annotations, videos or detections"
        )
    return diagnosis, source


def read_source(
    detections: Path, annotations: Path, *, subset: str, exclude: Sequence[str], exclude_file: str
) -> Source:
    """Read detections and annotations, and hold them against each other; arguments: see `diagnose_files`.

    Raises:
        DataError: the files cannot be used, or not together.
    """
    results = read_results(detections)
    subsets = subset_names(annotations)
    if subset not in subsets:
        raise DataError(
            f"{annotations} has no video of subset {subset!r}; its subsets: "
            f"{', '.join(subsets) or 'none'}. Give one of these as --subset"
        )
    loaded, notes = load_annotations(
        annotations, subset=subset, exclude=exclude, exclude_file=exclude_file, as_published=True
    )
    results = named_as(loaded.videos, results, where=detections)
    truths, relabelled = labelled_as(results, loaded.videos)
    return Source(
        detections=detections,
        annotations=annotations,
        subset=subset,
        videos=loaded.videos,
        truths=truths,
        results=results,
        notes=[
            *notes,
            *relabelled,
            *check(results, truths, detections=detections, annotations=annotations, subset=subset),
        ],
    )


def named_as(videos: Sequence[Video], results: Results, *, where: Path) -> Results:
    """Detections with the names that annotations give their videos and classes; those of others with their own.

    Raises:
        DataError: two names of the detections mean one video.
    """
    known = VideoNames(video.name for video in videos)
    named = {name: known.find(name) or name for name in results}
    if twice := [name for name, count in Counter(named.values()).items() if count > 1]:
        raise DataError(f"{where} names these videos in two ways: {summarize_list(twice)}. Merge their detections")
    classes = TextLookup(action.label for video in videos for action in video.actions)
    labels = {record["label"] for records in results.values() for record in records}
    renamed = {label: name for label in labels if (name := classes.find(label)) not in (None, label)}
    return {
        named[name]: [
            record | {"label": renamed[record["label"]]} if record["label"] in renamed else record for record in records
        ]
        for name, records in results.items()
    }


def labelled_as(results: Results, videos: Sequence[Video]) -> tuple[Sequence[Video], list[str]]:
    """The annotations that detections are held against: any action, where a class-agnostic detector made them.

    Returns:
        The videos, whose actions are all labelled `ANY_ACTION` if all detections are and no annotation is; and a note
        that says so.
    """
    found = {record["label"] for records in results.values() for record in records}
    annotated = {action.label for video in videos for action in video.actions}
    if found != {ANY_ACTION} or not annotated or ANY_ACTION in annotated:
        return videos, []
    alike = [
        replace(video, actions=tuple(replace(action, label=ANY_ACTION) for action in video.actions)) for video in videos
    ]
    return alike, [
        f"all detections are labelled {ANY_ACTION!r}, as of a class-agnostic detector: they are held against any "
        f"action, whatever its class ({len(annotated)} are annotated)"
    ]


def check(results: Results, videos: Sequence[Video], *, detections: Path, annotations: Path, subset: str) -> list[str]:
    """What of the detections cannot be measured, a line each.

    Raises:
        DataError: nothing can.
    """
    where = f"subset {subset!r} of {annotations}"
    classes = {action.label for video in videos for action in video.actions}
    if not classes:
        raise DataError(
            f"the {len(videos)} videos of {where} have no annotated action, so there is nothing to measure detections "
            "against. Give a --subset that is annotated"
        )
    shared = {video.name: results[video.name] for video in videos if video.name in results}
    if not shared:
        raise DataError(
            f"{detections} and {where} have no video in common: detections are of {_some(results)}, "
            f"annotations of {_some([video.name for video in videos])}. Give the annotations and the "
            "--subset that the detections were made for"
        )
    records = [record for of_video in shared.values() for record in of_video]
    if not records:
        raise DataError(f"{detections} holds no detection in any of the {len(shared)} videos it shares with {where}")
    unknown = Counter(record["label"] for record in records if record["label"] not in classes)
    names = summarize_list([f"{label!r} ({count:,})" for label, count in unknown.most_common()])
    if unknown.total() == len(records):
        raise DataError(
            f"none of the detections of {detections} has a label that {where} annotates: {names}. "
            f"Annotated are {summarize_list(sorted(classes))}"
        )
    empty = sum(record["segment"][1] <= record["segment"][0] for record in records)
    others, absent = len(results) - len(shared), len(videos) - len(shared)
    notes = (
        (
            len(unknown),
            f"labels of detections that are not annotated in {where}; such detections are not counted: {names}",
        ),
        (others, f"videos of the detections that are not in {where}, and are not counted: {others:,}"),
        (
            absent,
            f"videos of {where} that are not in the detections: {absent:,}; their segments are missed (--exclude?)",
        ),
        (empty, f"detections that end at or before their start, and are on background: {empty:,}"),
    )
    return [note for count, note in notes if count]


def evaluated_beside(detections: Path) -> tuple[tuple[float, ...], float]:
    """Thresholds and average mAP of the metrics.json that evaluate.py wrote beside the detections; none without."""
    try:
        metrics = json.loads((detections.parent / METRICS_FILE).read_text(encoding="utf-8"))
        tiou = tuple(float(key.removeprefix("mAP@")) for key in metrics if key.startswith("mAP@"))
        return tiou, float(metrics["average_mAP"])
    except (OSError, ValueError, TypeError, KeyError):
        return (), math.nan


def _some(names: Sequence[str] | Results) -> str:
    return summarize_list(list(names), limit=3, separator=", ") or "no video"
