"""What is wrong with detections: false positives by kind, missed segments, and what mending them would gain.

    python tools/analyse_errors.py runs/NAME/evaluate/detections.json ANNOTATIONS.json [--subset validation]

Writes report.html, report.md, CSV tables and pictures; docs/errors.md says what each number means.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

from adatad_ds.data.annotations import Video, load_annotations, subset_names
from adatad_ds.data.video_names import VideoNames
from adatad_ds.errors import DataError, UserError, summarize_list
from adatad_ds.evaluation.detections_file import read_results
from adatad_ds.evaluation.diagnosis.diagnosis import BINS, MIN_PRECISION, Diagnosis, diagnose, suitable_bins
from adatad_ds.evaluation.diagnosis.report import HTML_FILE, MARKDOWN_FILE, Source, summary, write_report
from adatad_ds.system.utf8 import use_utf8

METRICS_FILE = "metrics.json"  # as adatad_ds/runs/folder.py has it, which takes seconds to import
DEFAULT_TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
Results = dict[str, list[dict[str, Any]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    try:
        diagnosis, source = analyse(arguments)
        output = arguments.output or arguments.detections.parent / "errors"
        write_report(
            output, diagnosis, source=source, bins=arguments.bins or suitable_bins(diagnosis.truths), report=_warn
        )
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in source.notes:
        print(f"note: {note}")
    print(summary(diagnosis))
    print(f"written: {output / HTML_FILE}, {MARKDOWN_FILE}, tables and pictures")
    return 0


def analyse(arguments: argparse.Namespace) -> tuple[Diagnosis, Source]:
    """Read and diagnose.

    Raises:
        DataError: the files cannot be used, or not together.
    """
    results = read_results(arguments.detections)
    subsets = subset_names(arguments.annotations)
    if arguments.subset not in subsets:
        raise DataError(
            f"{arguments.annotations} has no video of subset {arguments.subset!r}; its subsets: "
            f"{', '.join(subsets) or 'none'}. Give one of these as --subset"
        )
    annotations, notes = load_annotations(
        arguments.annotations,
        subset=arguments.subset,
        exclude=arguments.exclude,
        exclude_file=arguments.exclude_file,
        as_published=True,
    )
    videos = annotations.videos
    results = named_as(videos, results, where=arguments.detections)
    notes += check(results, videos, arguments=arguments)
    evaluated_tiou, evaluated_map = evaluated_beside(arguments.detections)
    average_tiou = tuple(arguments.average_tiou or evaluated_tiou or DEFAULT_TIOU)
    diagnosis = diagnose(
        results, videos, average_tiou=average_tiou, tiou=arguments.tiou, min_precision=arguments.min_precision
    )
    if average_tiou == evaluated_tiou and not math.isclose(evaluated_map, diagnosis.metrics.average_map, abs_tol=1e-6):
        notes.append(
            f"{METRICS_FILE} beside the detections says average mAP {100 * evaluated_map:.2f} %: that is of other "
            "annotations, videos or detections"
        )
    source = Source(
        detections=str(arguments.detections),
        annotations=str(arguments.annotations),
        subset=arguments.subset,
        videos=len(videos),
        notes=notes,
    )
    return diagnosis, source


def named_as(videos: Sequence[Video], results: Results, *, where: Path) -> Results:
    """Detections under the names that annotations give their videos; those of other videos under their own.

    Raises:
        DataError: two names of the detections mean one video.
    """
    known = VideoNames(video.name for video in videos)
    named = {name: known.find(name) or name for name in results}
    if twice := [name for name, count in Counter(named.values()).items() if count > 1]:
        raise DataError(f"{where} names these videos in two ways: {summarize_list(twice)}. Merge their detections")
    return {named[name]: records for name, records in results.items()}


def check(results: Results, videos: Sequence[Video], *, arguments: argparse.Namespace) -> list[str]:
    """What of the detections cannot be measured, a line each.

    Raises:
        DataError: nothing can.
    """
    where = f"subset {arguments.subset!r} of {arguments.annotations}"
    classes = {action.label for video in videos for action in video.actions}
    if not classes:
        raise DataError(
            f"the {len(videos)} videos of {where} have no annotated action, so there is nothing to measure detections "
            "against. Give a --subset that is annotated"
        )
    shared = {video.name: results[video.name] for video in videos if video.name in results}
    if not shared:
        raise DataError(
            f"{arguments.detections} and {where} have no video in common: detections are of {_some(results)}, "
            f"annotations of {_some([video.name for video in videos])}. Give the annotations and the "
            "--subset that the detections were made for"
        )
    records = [record for of_video in shared.values() for record in of_video]
    if not records:
        raise DataError(
            f"{arguments.detections} holds no detection in any of the {len(shared)} videos it shares with {where}"
        )
    unknown = Counter(record["label"] for record in records if record["label"] not in classes)
    names = summarize_list([f"{label!r} ({count:,})" for label, count in unknown.most_common()])
    if unknown.total() == len(records):
        raise DataError(
            f"none of the detections of {arguments.detections} has a label that {where} annotates: {names}. "
            f"Annotated are {summarize_list(sorted(classes))}"
        )
    empty = sum(record["segment"][1] <= record["segment"][0] for record in records)
    others, absent = len(results) - len(shared), len(videos) - len(shared)
    notes = (
        (len(unknown), f"labels of detections that {where} never annotates; such detections count nowhere: {names}"),
        (others, f"videos of the detections that are not in {where}, and count nowhere: {others:,}"),
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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Analyse the errors of detections.", allow_abbrev=False)
    parser.add_argument("detections", type=Path, help="detections.json of an evaluation, or any file of that format")
    parser.add_argument("annotations", type=Path, help="the annotation JSON")
    parser.add_argument("--subset", default="validation", help="of the annotations, %(default)s")
    parser.add_argument("--output", type=Path, help="folder; default: errors/ beside the detections")
    parser.add_argument(
        "--tiou", type=_share, default=0.5, help="from this overlap on a detection is right, %(default)s"
    )
    parser.add_argument(
        "--average-tiou",
        type=_share,
        nargs="+",
        metavar="TIOU",
        help=f"thresholds of average mAP; default: those of {METRICS_FILE} beside the detections, else "
        f"{' '.join(map(str, DEFAULT_TIOU))}",
    )
    parser.add_argument("--exclude", nargs="+", default=[], metavar="VIDEO", help="annotated videos to leave out")
    parser.add_argument(
        "--exclude-file", default="", metavar="FILE", help="a list of more of them, as data.exclude_file"
    )
    parser.add_argument(
        "--bins",
        choices=sorted(BINS),
        help="DETAD's sizes for missed segments; default: by the segments' median length",
    )
    parser.add_argument(
        "--min-precision",
        type=float,
        default=MIN_PRECISION,
        help="a segment found only where its class's precision is no higher is missed, %(default)s",
    )
    return parser.parse_args(argv)


def _warn(message: str) -> None:
    print(message, file=sys.stderr)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no tIoU: give a number above 0, up to 1")
    return value


def _some(names: Sequence[str] | Results) -> str:
    return summarize_list(list(names), limit=3, separator=", ") or "no video"


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
