"""Conversion of a data set's published annotation files to the community's JSON, which this project reads.

Counts are compared with the published ones; docs/reference/datasets.md describes each data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from adatad_ds.data.annotations import load_annotations
from adatad_ds.data.decoding.video import VideoError, probe
from adatad_ds.data.sources.facts import Counts, Dataset
from adatad_ds.data.sources.formats import SUBSETS, TESTING, TRAINING, Entry
from adatad_ds.data.video_files import present_videos
from adatad_ds.data.video_names import VideoNames, read_names
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.system.atomic import write_text

LISTED_MISSING = 10
PROBING_THREADS = 4


def prepare(
    dataset: Dataset,
    *,
    sources: Sequence[Path],
    out: Path,
    videos: Path | None,
    exclude_missing: bool,
    exclude_file: Path | None,
    with_test: bool,
    report: Callable[[str], None],
) -> int:
    """Read a data set's annotations, report counts and faults, and write the JSON.

    Args:
        dataset: facts about the data set.
        sources: the owners' files, and folders that hold them.
        out: the JSON file to write.
        videos: folder of the videos; None: files are not checked.
        exclude_missing: leave out videos that are missing or have no duration, instead of writing nothing.
        exclude_file: a list of videos to leave out; None: none.
        with_test: also the challenge's test videos, which have no published labels.
        report: called with each line for the user.

    Returns:
        The exit code: 1 if videos are missing and nothing was written.

    Raises:
        DataError: unusable files.
    """
    if any(source.is_file() and source.resolve() == out.resolve() for source in sources):
        raise DataError(f"--out: {out} is one of the sources, which are not overwritten")
    annotations = dataset.read(sources)
    report(f"{dataset.title}: annotations from {dataset.annotations_from}")
    for note in annotations.notes:
        report(note)
    names = {entry.name for entry in annotations.entries}
    for name, reason in dataset.exclusions.items():
        report(f"left out, as is customary: {name} ({reason}{'' if name in names else '; not in these files'})")
    entries = [entry for entry in annotations.entries if entry.name not in dataset.exclusions]
    if with_test:
        if dataset.read_test is None:
            raise DataError(f"--with-test: {dataset.title} has no challenge whose test files are known here")
        entries += dataset.read_test(sources).entries
    report("\n".join(count_table(dataset, entries)))
    report(f"videos: {dataset.videos_from}\nterms: {dataset.terms}")
    report(f"features: {dataset.features_from}\nterms of features: {dataset.feature_terms}")

    listed_names = excluded_names(entries, exclude_file, report=report) if exclude_file is not None else set()
    entries = [entry for entry in entries if entry.name not in listed_names]
    missing: dict[str, str] = {}
    if videos is not None:
        files = present_videos(videos, [entry.name for entry in entries], setting="--videos")
        missing = {entry.name: "no file" for entry in entries if entry.name not in files}
        entries, unreadable = _probed(entries, files)
        missing |= unreadable
    missing |= {e.name: "no duration known" for e in entries if e.duration_sec is None and e.name not in missing}
    if missing:
        report(f"{len(missing)} of {len(entries)} videos cannot be used{f' from {videos}' if videos else ''}:")
        report("\n".join(f"  {name}: {reason}" for name, reason in list(missing.items())[:LISTED_MISSING]))
        if len(missing) > LISTED_MISSING:
            report(f"  and {len(missing) - LISTED_MISSING} more")
        if not exclude_missing:
            durations = "" if videos else " Durations come from the videos: name their folder with --videos."
            report(f"Nothing was written.{durations} To continue without these videos, add --exclude-missing.")
            return 1
        entries = [entry for entry in entries if entry.name not in missing]
    write_annotations(entries, out, excluded=[*sorted(listed_names), *missing], report=report)
    return 0


def excluded_names(entries: Sequence[Entry], path: Path, *, report: Callable[[str], None]) -> set[str]:
    """Names of the videos that a list leaves out; reports how many."""
    known, names = VideoNames(entry.name for entry in entries), read_names(path)
    found = {name for listed_name in names if (name := known.find(listed_name)) is not None}
    report(f"left out by {path}: {len(found)} videos; {len(names)} are listed there")
    return found


def count_table(dataset: Dataset, entries: Sequence[Entry]) -> list[str]:
    """Lines of a table that compares found and published counts."""
    rows = [("", "", "found", "published", "")]
    if tested := sum(entry.subset == TESTING for entry in entries):
        rows.append((TESTING, "videos", *_compared(tested, dataset.published.get(TESTING, Counts()).videos)))
    for subset in SUBSETS:
        chosen = [entry for entry in entries if entry.subset == subset]
        published = dataset.published.get(subset, Counts())
        found = len(chosen), sum(len(entry.actions) for entry in chosen), _classes(chosen)
        expected = published.videos, published.instances, published.classes
        for index, what in enumerate(("videos", "instances", "classes")):
            rows.append((subset if index == 0 else "", what, *_compared(found[index], expected[index])))
    rows.append(("together", "classes", *_compared(_classes(entries), dataset.num_classes)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    return [*lines, f"published: {dataset.counts_from}"]


def _compared(found: int, published: int | None) -> tuple[str, str, str]:
    if published is None:
        return str(found), "-", "no published count known"
    return str(found), str(published), "as published" if found == published else f"differs by {found - published:+}"


def _classes(entries: Sequence[Entry]) -> int:
    return len({action.label for entry in entries for action in entry.actions})


def _probed(entries: Sequence[Entry], files: Mapping[str, Path]) -> tuple[list[Entry], dict[str, str]]:
    """Entries, with missing durations and frame counts taken from files; and errors of unreadable files by name."""
    paths = {e.name: files[e.name] for e in entries if e.duration_sec is None and e.name in files}

    def measured(path: Path) -> tuple[float, int] | str:
        try:
            info = probe(path)
        except VideoError as error:
            return str(error)
        return info.duration_sec, info.num_frames

    with ThreadPoolExecutor(PROBING_THREADS) as pool:
        results = tqdm(pool.map(measured, paths.values()), total=len(paths), unit="video", disable=not paths)
        found = dict(zip(paths, results, strict=True))
    unreadable = {name: result for name, result in found.items() if isinstance(result, str)}
    timings = {name: result for name, result in found.items() if not isinstance(result, str)}
    return [
        replace(entry, duration_sec=timings[entry.name][0], num_frames=timings[entry.name][1])
        if entry.name in timings
        else entry
        for entry in entries
    ], unreadable


def write_annotations(
    entries: Sequence[Entry], out: Path, *, excluded: Sequence[str], report: Callable[[str], None]
) -> None:
    """Write the JSON and the names of excluded videos, then read the JSON as the trainer does.

    Raises:
        DataError: a subset without videos.
    """
    for subset in SUBSETS:
        if not any(entry.subset == subset for entry in entries):
            raise DataError(f"no video of subset {subset!r} is left; nothing was written")
    database = {}
    for entry in entries:
        frames = {} if entry.num_frames is None else {"frame": entry.num_frames}
        actions = [{"segment": [a.start_sec, a.end_sec], "label": a.label} for a in entry.actions]
        timing = {"duration": entry.duration_sec} | frames
        database[entry.name] = {"subset": entry.subset} | timing | {"annotations": actions}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({"database": database}))
    report(f"{out}: {len(entries)} videos, {sum(len(entry.actions) for entry in entries)} instances")
    names = out.with_suffix(".excluded.txt")
    names.unlink(missing_ok=True)
    if excluded:
        names.write_text("".join(f"{name}\n" for name in excluded), encoding="utf-8")
        report(f"{names}: the {len(excluded)} videos that were left out: {summarize_list(excluded, separator=', ')}")
    for subset in SUBSETS:
        notes = load_annotations(out, subset=subset)[1]
        for note in notes:
            report(f"in {subset}: {note}")
        if notes and subset != TRAINING:
            report("(that is for training; evaluation counts actions beyond a video's ends as they are written)")
