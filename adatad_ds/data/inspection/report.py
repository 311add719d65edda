"""The results of inspecting a data set, as text: lengths, classes, problems, advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.inspection.data_set import DataSet
from adatad_ds.data.inspection.survey import Lengths, count_classes, disagreements, fit, uneven_rate
from adatad_ds.errors import summarize_list

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)

Videos = Mapping[str, Sequence[Video]]  # annotated videos, by subset


def describe(videos: Videos, lengths: Mapping[str, Lengths], *, train: str, test: str) -> list[str]:
    """Size and segment lengths of each subset."""
    lines = []
    for subset, members in videos.items():
        use = " (training)" * (subset == train) + " (test)" * (subset == test)
        hours = sum(video.duration_sec for video in members) / 3600
        lines.append(f"{subset}{use}: {len(members)} videos, {hours:.2f} h, {len(lengths[subset].sec)} segments")
        if len(lengths[subset].sec):
            marks = np.quantile(lengths[subset].sec, QUANTILES)
            row = "  ".join(f"{share:.0%} {mark:.2f}" for share, mark in zip(QUANTILES, marks, strict=True))
            lines.append(f"  lengths in seconds, by quantile: {row}")
    return lines


def describe_classes(videos: Videos, classes: Sequence[str], train: str, *, limit: int | None) -> list[str]:
    """Instances of each class, most frequent in training first; `limit`: most classes, None: all."""
    counts = count_classes(videos, classes)
    width = max(map(len, classes), default=0)
    rows = [
        f"{label:<{width}}  " + "  ".join(f"{counts[subset][label]:>6}" for subset in counts)
        for label in sorted(classes, key=lambda name: -counts[train][name])
    ]
    return [
        f"{len(classes)} classes; instances in {', '.join(counts)}:",
        f"  {summarize_list(rows, limit=limit or len(rows), separator=chr(10) + '  ')}",
    ]


def describe_fit(what: str, lengths: Lengths, config: Config) -> list[str]:
    """Lines on how a recipe's window and pyramid fit the training segments."""
    result = fit(lengths, config)
    levels = ", ".join(f"{share:.0%}" for share in result.per_level)
    return [
        "",
        f"{what}, on the training segments:",
        f"  {result.longer:.1%} longer than a window, {result.under_step:.1%} shorter than a feature step, "
        f"{result.outside:.1%} with a half-length outside of all regression ranges",
        f"  by pyramid level, from the finest: {levels}",
    ]


def find_problems(data: DataSet, *, train: str, test: str) -> dict[str, list[str]]:
    """Lines by kind of problem; kinds without any are omitted."""
    videos = {video.name: video for members in data.videos.values() for video in members}
    readable = {name: result for name, result in data.scans.items() if result.error is None}
    errors = [result.error for result in data.scans.values() if result.error]
    without = [error for error in errors if "no video stream" in error]
    found = {
        "files missing": list(data.missing),
        "files that cannot be read": [error for error in errors if error not in without],
        "files without a video stream": without,
        "truncated or damaged files": [
            f"{name}: {fault}" for name, result in readable.items() for fault in result.faults
        ],
        "annotations that contradict their file": [
            f"{name}: {text}" for name, result in readable.items() for text in disagreements(videos[name], result)
        ],
        "annotations repaired or dropped": list(data.repaired),
        "classes without a segment to train on": absent_classes(data, train),
        "subsets": [f"{train} is the only one with actions: nothing to test on"] if train == test else [],
    }
    return {kind: lines for kind, lines in found.items() if lines}


def find_advice(data: DataSet, *, train: str, test: str) -> dict[str, list[str]]:
    """Lines by kind of what is worth knowing, though no problem; kinds without any are omitted."""
    uneven = {name: text for name, result in data.scans.items() if (text := uneven_rate(result)) is not None}
    found = {
        "videos left out by --exclude-file": list(data.left_out),
        "files whose frames are read by their own times": [f"{name}: {text}" for name, text in uneven.items()],
        "classes that cannot be measured": absent_classes(data, test) if test != train else [],
    }
    return {kind: lines for kind, lines in found.items() if lines}


def absent_classes(data: DataSet, subset: str) -> list[str]:
    """A line for each class without an instance in a subset."""
    counts = count_classes(data.videos, data.classes)[subset]
    return [f"{label}: no instance in {subset}" for label, count in counts.items() if count == 0]


def list_advice(advice: Mapping[str, Sequence[str]], *, limit: int | None) -> list[str]:
    """All advice, or the first few of each kind."""
    lines = []
    for kind, members in advice.items():
        shown = summarize_list(members, limit=limit or len(members), separator="\n  ")
        lines.append(f"note: {kind} ({len(members)})\n  {shown}")
    return lines


def list_problems(problems: Mapping[str, Sequence[str]], *, limit: int | None) -> list[str]:
    """All problems, or the first few of each kind."""
    if not problems:
        return ["no problems found"]
    lines = []
    for kind, members in problems.items():
        shown = summarize_list(members, limit=limit or len(members), separator="\n  ")
        lines += [f"PROBLEM: {kind} ({len(members)})", f"  {shown}"]
    return lines
