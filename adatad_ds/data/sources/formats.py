"""Readers of the annotation files that owners of data sets publish, all with the same kind of result.

Every reader takes files and folders as sources and returns `Annotations`. Subsets are "training" and "validation"; in
a challenge's test files, "testing", without actions. Actions stay as published, even beyond the end of their video: the
trainer repairs or drops them, and reports it.
Readers raise `DataError`, which names the file, the place and the fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from adatad_ds.data.annotations import NO_CLASSES, Action
from adatad_ds.data.sources.parsing import (
    decimal,
    find,
    find_one,
    items,
    read_json,
    read_lines,
    read_rows,
    seconds,
    shown,
    timestamp,
)
from adatad_ds.errors import DataError, summarize_list

TRAINING, VALIDATION = SUBSETS = "training", "validation"
TESTING = "testing"  # a challenge's videos, whose labels only its server knows
THUMOS_SUBSETS = {"video_validation_": TRAINING, "video_test_": VALIDATION}  # THUMOS14 trains on its validation set
EGO4D_RATES = 10, 100  # frames a second; clips outside this range are faulty, and customarily not used


@dataclass(frozen=True)
class Entry:
    """One video; `duration_sec` and `num_frames` are None if the files do not give them."""

    name: str
    subset: str
    duration_sec: float | None
    actions: tuple[Action, ...]
    num_frames: int | None = None


@dataclass(frozen=True)
class Annotations:
    """All videos with published labels, and notes about what was left out or is worth knowing."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def activitynet(sources: Sequence[Path]) -> Annotations:
    """ActivityNet 1.3."""
    return _activitynet_form(sources, "activity_net.v1-3.min.json")


def hacs(sources: Sequence[Path]) -> Annotations:
    """HACS Segments 1.1.1."""
    return _activitynet_form(sources, "HACS_segments_v1.1.1.json")


def fineaction(sources: Sequence[Path]) -> Annotations:
    """FineAction."""
    return _activitynet_form(sources, "annotations_gt.json")


def thumos14(sources: Sequence[Path]) -> Annotations:
    """The owners' CLASS_val.txt and CLASS_test.txt, with durations from a JSON if given; or that JSON alone."""
    texts = {ending: find(sources, f"*_{ending}.txt") for ending in ("val", "test")}
    files = find(sources, "*.json")
    if not any(texts.values()):
        path = find_one(sources, "*.json", ", or the owners' CLASS_val.txt and CLASS_test.txt")
        timings, entries, ambiguous = _timings(path), [], 0
        for name, video in _community_json(path).items():
            actions = _json_actions(video, f"{path}, {name}")
            kept = tuple(action for action in actions if action.label not in NO_CLASSES)
            ambiguous += len(actions) - len(kept)
            duration_sec, num_frames = timings[name]
            entries.append(Entry(name, _thumos_subset(name, f"{path}, {name}"), duration_sec, kept, num_frames))
        left = f"left out: actions labelled {', '.join(NO_CLASSES)}, which the owners do not evaluate: {ambiguous}"
        return Annotations(tuple(entries), (left,) if ambiguous else ())
    for ending, paths in texts.items():
        if not paths:
            raise DataError(
                f"{shown(sources)} hold no *_{ending}.txt: both of THUMOS14's annotation archives are needed"
            )
    paths = [path for ending in texts.values() for path in ending]
    classes = {path: path.stem.rsplit("_", 1)[0] for path in paths}
    ambiguous = [path for path, label in classes.items() if label in NO_CLASSES]
    labels = {path: label for path, label in classes.items() if label not in NO_CLASSES}
    notes = [f"left out: {path.name}, whose actions the owners do not evaluate" for path in ambiguous]
    return Annotations(_thumos_entries(labels, files), tuple(notes))


def multithumos(sources: Sequence[Path]) -> Annotations:
    """annotations/CLASS.txt, with durations from THUMOS14's JSON if given."""
    paths = [path for path in find(sources, "*.txt") if path.parent.name == "annotations"]
    if not paths:
        raise DataError(f"{shown(sources)} hold no annotations/CLASS.txt, as MultiTHUMOS's archive does")
    return Annotations(_thumos_entries({path: path.stem for path in paths}, find(sources, "*.json")))


def epic_verb(sources: Sequence[Path]) -> Annotations:
    """EPIC-Kitchens-100, labels by the verb's class."""
    return _epic(sources, "verb")


def epic_noun(sources: Sequence[Path]) -> Annotations:
    """EPIC-Kitchens-100, labels by the (first) noun's class."""
    return _epic(sources, "noun")


def epic_test(sources: Sequence[Path]) -> Annotations:
    """The test videos of EPIC-Kitchens-100's challenges."""
    _, durations = _epic_durations(sources)
    names = epic_test_names(sources)
    if unknown := [name for name in names if name not in durations]:
        raise DataError(f"EPIC_100_video_info.csv gives no duration for {summarize_list(unknown, separator=', ')}")
    return Annotations(tuple(Entry(name, TESTING, durations[name], ()) for name in names))


def epic_test_names(sources: Sequence[Path]) -> list[str]:
    """Names of the test videos of EPIC-Kitchens-100's challenges, from EPIC_100_test_timestamps.csv."""
    path = find_one(sources, "EPIC_100_test_timestamps.csv")
    return list(dict.fromkeys(row["video_id"] for _, row in read_rows(path, ("video_id",))))


def ego4d_test(sources: Sequence[Path]) -> Annotations:
    """The test clips of Ego4D's moment queries, from moments_test_unannotated.json."""
    path = find_one(sources, "moments_test_unannotated.json")
    entries = [_ego4d_clip(clip, TESTING, path)[0] for clip in _ego4d_clips(path)]
    return Annotations(_distinct(entries))


def ego4d_mq(sources: Sequence[Path]) -> Annotations:
    """Ego4D's moment queries: each clip is a video, with times from its start; primary labels only."""
    entries, unlabelled, faulty = [], [], []
    for subset, name in {TRAINING: "moments_train.json", VALIDATION: "moments_val.json"}.items():
        path = find_one(sources, name)
        for clip in _ego4d_clips(path):
            entry, frames = _ego4d_clip(clip, subset, path)
            duration_sec = entry.duration_sec or 0.0
            if not EGO4D_RATES[0] * duration_sec <= frames <= EGO4D_RATES[1] * duration_sec or duration_sec <= 0:
                faulty.append(entry.name)
            elif entry.actions:
                entries.append(entry)
            else:
                unlabelled.append(entry.name)
    what = {f"whose rate is not {EGO4D_RATES[0]} to {EGO4D_RATES[1]} frames per second": faulty}
    what["without a primary label"] = unlabelled
    notes = [
        f"left out: clips {why}: {len(names)} ({summarize_list(names, limit=3, separator=', ')})"
        for why, names in what.items()
        if names
    ]
    return Annotations(_distinct(entries), tuple(notes))


def charades(sources: Sequence[Path]) -> Annotations:
    """Charades_v1_train.csv and Charades_v1_test.csv, with class names from Charades_v1_classes.txt."""
    path = find_one(sources, "Charades_v1_classes.txt")
    classes: dict[str, str] = {}
    for place, line in read_lines(path):
        key, _, label = line.partition(" ")
        if not label or key in classes or label in classes.values():
            raise DataError(f"{place}: {line!r}, expected a class and its name (c000 Holding some clothes), each once")
        classes[key] = label
    entries = []
    for subset, name in {TRAINING: "Charades_v1_train.csv", VALIDATION: "Charades_v1_test.csv"}.items():
        for place, row in read_rows(find_one(sources, name), ("id", "actions", "length")):
            actions = []
            for triplet in filter(None, (part.strip() for part in row["actions"].split(";"))):
                fields = triplet.split()
                if len(fields) != 3 or fields[0] not in classes:
                    expected = f"class, start and end, the class one of {path.name}"
                    raise DataError(f"{place}, column 'actions': {triplet!r}, expected {expected}")
                start, end = (seconds(field, f"{place}, column 'actions'") for field in fields[1:])
                actions.append(Action(start, end, classes[fields[0]]))
            duration_sec = seconds(row["length"], f"{place}, column 'length'")
            entries.append(Entry(row["id"], subset, duration_sec, tuple(actions)))
    return Annotations(_distinct(entries))


def _activitynet_form(sources: Sequence[Path], name: str) -> Annotations:
    """ActivityNet's format, which others share; subsets without published labels are left out."""
    path = sources[0] if len(sources) == 1 and sources[0].is_file() else find_one(sources, name)
    entries, others = [], dict[str, int]()
    for name, video in _community_json(path).items():
        subset = video.get("subset")
        if subset in SUBSETS:
            actions = _json_actions(video, f"{path}, {name}")
            entries.append(Entry(name, subset, _duration(video, f"{path}, {name}"), actions))
        else:
            others[str(subset)] = others.get(str(subset), 0) + 1
    notes = [f"left out: videos of subset {subset!r}: {count}" for subset, count in others.items()]
    return Annotations(tuple(entries), tuple(notes))


def _epic(sources: Sequence[Path], kind: str) -> Annotations:
    column, notes = f"{kind}_class", []
    info, durations = _epic_durations(sources)
    names: dict[str, str] | None = None
    if find(sources, f"EPIC_100_{kind}_classes.csv"):
        path = find_one(sources, f"EPIC_100_{kind}_classes.csv")
        names = {row["id"]: row["key"] for _, row in read_rows(path, ("id", "key"))}
    else:
        notes.append(f"EPIC_100_{kind}_classes.csv is missing: labels are {kind}_0, {kind}_1, ... by class id")
    columns = "video_id", "start_timestamp", "stop_timestamp", column
    entries = []
    for subset, name in {TRAINING: "EPIC_100_train.csv", VALIDATION: "EPIC_100_validation.csv"}.items():
        actions: dict[str, list[Action]] = {}
        for place, row in read_rows(find_one(sources, name), columns):
            video, key = row["video_id"], row[column]
            if video not in durations:
                raise DataError(f"{place}, column 'video_id': {video!r} is not in {info}, which gives durations")
            if not key.isdecimal() or (names is not None and key not in names):
                where = "the id of a class" if names is None else f"an id of EPIC_100_{kind}_classes.csv"
                raise DataError(f"{place}, column {column!r}: {key!r}, expected {where}")
            start, end = (timestamp(row[key], f"{place}, column {key!r}") for key in columns[1:3])
            label = f"{kind}_{key}" if names is None else names[key]
            actions.setdefault(video, []).append(Action(start, end, label))
        entries += [Entry(video, subset, durations[video], tuple(found)) for video, found in actions.items()]
    return Annotations(_distinct(entries), tuple(notes))


def _epic_durations(sources: Sequence[Path]) -> tuple[Path, dict[str, float]]:
    """The file of the videos' durations, and the durations in seconds by name."""
    path = find_one(sources, "EPIC_100_video_info.csv")
    rows = read_rows(path, ("video_id", "duration"))
    return path, {row["video_id"]: seconds(row["duration"], f"{place}, column 'duration'") for place, row in rows}


def _ego4d_clips(path: Path) -> Iterator[Mapping[str, Any]]:
    for video in items(read_json(path), "videos", str(path)):
        yield from items(video, "clips", f"{path}, video {video.get('video_uid')}")


def _ego4d_clip(clip: Mapping[str, Any], subset: str, path: Path) -> tuple[Entry, int]:
    """A clip with its primary labels, and its number of frames; computed in decimals, so that times stay exact."""
    name, where = clip.get("clip_uid"), f"{path}, clip {clip.get('clip_uid')}"
    if not isinstance(name, str):
        raise DataError(f"{where}: clip_uid is {name!r}, expected a string")
    begin, end = (decimal(clip, f"video_{edge}_sec", where) for edge in ("start", "end"))
    frames = [decimal(clip, f"video_{edge}_frame", where) for edge in ("start", "end")]
    begin, first = max(begin, Decimal(0)), max(frames[0], Decimal(0))
    actions = []
    for annotator in items(clip, "annotations", where) if subset != TESTING else ():
        for item in items(annotator, "labels", where):
            if not item.get("primary"):
                continue
            if not isinstance(item.get("label"), str):
                raise DataError(f"{where}: label is {item.get('label')!r}, expected a string")
            times = [decimal(item, f"video_{edge}_time", where) - begin for edge in ("start", "end")]
            actions.append(Action(float(times[0]), float(times[1]), item["label"]))
    return Entry(name, subset, float(end - begin), tuple(actions)), int(frames[1] - first)


def _thumos_entries(labels: Mapping[Path, str], files: Sequence[Path]) -> tuple[Entry, ...]:
    """Entries from lines "video start end", one file per class."""
    timings = {name: timing for path in files for name, timing in _timings(path).items()}
    actions: dict[str, list[Action]] = {}
    subsets: dict[str, str] = {}
    for path, label in labels.items():
        for place, line in read_lines(path):
            fields = line.split()
            if len(fields) != 3:
                raise DataError(f"{place}: {line!r}, expected three columns: video, start and end in seconds")
            start, end = (seconds(fields[index], f"{place}, column {index + 1}") for index in (1, 2))
            subsets[fields[0]] = _thumos_subset(fields[0], f"{place}, column 1")
            actions.setdefault(fields[0], []).append(Action(start, end, label))
    return tuple(
        Entry(name, subsets[name], duration_sec, tuple(sorted(actions[name], key=lambda a: a.start_sec)), num_frames)
        for name in sorted(actions)
        for duration_sec, num_frames in [timings.get(name, (None, None))]
    )


def _thumos_subset(name: str, place: str) -> str:
    for start, subset in THUMOS_SUBSETS.items():
        if name.startswith(start):
            return subset
    raise DataError(f"{place}: {name!r} starts with none of {', '.join(THUMOS_SUBSETS)}")


def _timings(path: Path) -> dict[str, tuple[float | None, int | None]]:
    """Duration and number of frames of each video in a JSON of the community's format."""
    found = {}
    for name, video in _community_json(path).items():
        frames = video.get("frame")
        found[name] = _duration(video, f"{path}, {name}"), frames if isinstance(frames, int) else None
    return found


def _community_json(path: Path) -> Mapping[str, Mapping[str, Any]]:
    tree = read_json(path, exact=False)
    database = tree.get("database")
    if not isinstance(database, Mapping) or not all(isinstance(video, Mapping) for video in database.values()):
        raise DataError(f'{path} must hold {{"database": {{VIDEO: {{...}}}}}} at its top level')
    return database


def _json_actions(video: Mapping[str, Any], where: str) -> tuple[Action, ...]:
    actions = []
    for index, item in enumerate(items(video, "annotations", where)):
        place, segment = f"{where}, annotations[{index}]", item.get("segment")
        if not isinstance(segment, list) or len(segment) != 2 or not isinstance(item.get("label"), str):
            raise DataError(f"{place}: {item!r:.80}, expected a label and a segment of [start, end] in seconds")
        start, end = (seconds(time, f"{place}.segment") for time in segment)
        actions.append(Action(start, end, item["label"]))
    return tuple(actions)


def _duration(video: Mapping[str, Any], where: str) -> float | None:
    """Seconds; None if the file gives none, or 0."""
    value = video.get("duration")
    return None if value is None else seconds(value, f"{where}.duration") or None


def _distinct(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        raise DataError(f"the files list videos twice: {summarize_list(twice, separator=', ')}")
    return tuple(entries)
