"""Annotations in the community's JSON: database -> video -> subset, duration, annotations.

Structural errors raise one `DataError` that lists them; invalid values of single actions are repaired or dropped, and
reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adatad_ds.data.video_names import VideoNames, read_names, without_extension
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.system.json_text import read_json
from adatad_ds.system.unicode_text import TextLookup, composed

NO_CLASSES = ("Ambiguous",)  # THUMOS14's label of uncertain actions; a class only if data.classes names it
ANY_ACTION = "action"  # the only class of a class-agnostic detector
MOST_BEYOND = 0.5  # share of actions that may start after the end of their video before all times are doubted
SAME_SEC = 1e-3  # times closer than this are equal for the metric, as in the published evaluation
LISTED_EXAMPLES = 3  # per report
FRAME_FIELDS = ("frame", "num_frames", "frames")  # names of the number of frames in published files


@dataclass(frozen=True)
class Action:
    """One labelled segment; 0 <= start_sec < end_sec <= the video's duration."""

    start_sec: float
    end_sec: float
    label: str


@dataclass(frozen=True)
class Video:
    """One annotated video; `num_frames` and `fps` are None if not annotated."""

    name: str
    subset: str
    duration_sec: float
    num_frames: int | None
    fps: float | None
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class AnnotationSet:
    """Videos of one subset, in the file's order, and the class names by class index."""

    videos: tuple[Video, ...]
    classes: tuple[str, ...]


def load_annotations(
    path: str | Path,
    *,
    subset: str,
    classes: Sequence[str] = (),
    exclude: Sequence[str] = (),
    exclude_file: str | Path = "",
    as_published: bool = False,
    min_share: float = 0.0,
) -> tuple[AnnotationSet, list[str]]:
    """Read one subset of an annotation file.

    Args:
        path: the JSON file; times in seconds.
        subset: read the videos of this subset.
        classes: class names by index, which labels then have, whatever their Unicode form in the file; empty: all
            labels of the whole file (every subset), sorted.
        exclude: names of videos to leave out.
        exclude_file: a list of more such names (`read_names`), which need not all be in the file; "": none.
        as_published: for the metric: keep actions beyond the video's end, as published results count them (THUMOS14
            has some); drop invalid segments, and duplicates (same label, times equal to 1 ms).
        min_share: drop actions of at most this share of their video, as annotated.

    Returns:
        The videos, and one line for each kind of repaired or dropped action, and for `exclude_file`.

    Raises:
        DataError: unreadable file, missing or mistyped fields, unknown classes, subsets or excluded names.
    """
    database = _read_database(Path(path))
    names = VideoNames(database)
    faults = [f"data.exclude names {name!r}, which is not in the file" for name in exclude if names.find(name) is None]
    from_file = {names.find(name) for name in read_names(exclude_file)} if exclude_file else set()
    excluded = from_file.union(map(names.find, exclude))
    if len(set(classes)) != len(classes):
        faults.append(f"data.classes names a class twice: {', '.join(classes)}")
    chosen, notes = {}, _Notes()
    for name, entry in database.items():
        if name in excluded:
            continue
        if not isinstance(entry, Mapping):
            faults.append(f"{name}: must be a mapping, not {entry!r:.60}")
        elif not isinstance(entry.get("subset"), str):
            faults.append(f"{name}.subset: {_found(entry, 'subset')}, expected a string")
        elif entry["subset"] == subset:
            chosen[name] = entry
    labels = Counter(_labels(database))
    known_classes = tuple(classes) or tuple(sorted(label for label in labels if label not in NO_CLASSES))
    faults += [] if classes else doubtful_labels(labels)
    known = TextLookup(known_classes)
    videos = [_video(name, entry, known, faults, notes, as_published, min_share) for name, entry in chosen.items()]
    faults += _beyond(chosen)
    if faults:
        raise DataError(f"{path} cannot be used: {summarize_list(faults)}")
    if not videos:
        subsets = sorted({str(entry["subset"]) for entry in database.values()})
        raise DataError(
            f"{path} has no video of subset {subset!r}{' that is not excluded' if excluded else ''}; its subsets: "
            f"{', '.join(subsets) or 'none'}. Set data.train_subset and data.test_subset to two of these"
        )
    lines = notes.lines()
    if exclude_file:
        entries = [database[name] for name in from_file if name is not None]
        count = sum(isinstance(entry, Mapping) and entry.get("subset") == subset for entry in entries)
        none = "" if entries else ": it names none of the annotated videos"
        lines.append(f"{count} videos of {subset!r} left out by {exclude_file}{none}")
    return AnnotationSet(videos=tuple(v for v in videos if v is not None), classes=known_classes), lines


def subset_names(path: str | Path) -> list[str]:
    """Names of the subsets in an annotation file, in its order.

    Raises:
        DataError: unreadable file.
    """
    entries = [entry for entry in _read_database(Path(path)).values() if isinstance(entry, Mapping)]
    return list(dict.fromkeys(entry["subset"] for entry in entries if isinstance(entry.get("subset"), str)))


def _read_database(path: Path) -> Mapping[str, Any]:
    try:
        tree = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.annotations: cannot read {str(path)!r}: {error}. It must be a JSON file: "
            '{"database": {VIDEO: {"subset": ..., "duration": ..., "annotations": [...]}}}'
        ) from error
    database = tree.get("database") if isinstance(tree, Mapping) else None
    if not isinstance(database, Mapping):
        raise DataError(f'{path} must hold {{"database": {{VIDEO: ...}}}} at its top level')
    names = Counter(map(composed, database))
    stems = {name: without_extension(name) for name in names}
    if twice := [name for name, count in names.items() if count > 1 or (stems[name] != name and stems[name] in names)]:
        raise DataError(
            f"{path} cannot be used: {summarize_list([repr(name) for name in twice], separator=', ')} is also "
            "listed without its extension, or in another Unicode form (NFC, NFD); merge the entries"
        )
    return database


def doubtful_labels(labels: Mapping[str, int]) -> list[str]:
    """Errors for labels (with their counts) that cannot be meant as separate classes."""
    faults = []
    if empty := sum(count for label, count in labels.items() if not label.strip()):
        faults.append(f"annotations with an empty label: {empty}")
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault(composed(" ".join(label.split()).casefold()), []).append(label)
    for spellings in alike.values():
        if len(spellings) > 1:
            forms = len(set(map(composed, spellings))) < len(spellings)
            shown, how = (ascii, "Unicode form (NFC, NFD)") if forms else (repr, "case or spaces")
            counted = ", ".join(f"{shown(label)} ({labels[label]})" for label in spellings)
            remedy = f"spell them alike, or name {'one' if forms else 'both'} in data.classes"
            faults.append(f"the labels {counted} differ only by {how}; {remedy}")
    return faults


def _beyond(chosen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """An error if most actions start after the end of their video, since times are then not in seconds."""
    starts = [
        (segment[0], entry["duration"])
        for entry in chosen.values()
        if _is_positive(entry.get("duration")) and isinstance(entry.get("annotations"), list)
        for action in entry["annotations"]
        if isinstance(action, Mapping) and isinstance(segment := action.get("segment"), list)
        if segment and _is_number(segment[0]) and segment[0] > 0
    ]
    beyond = sum(start >= duration for start, duration in starts)
    if beyond <= MOST_BEYOND * len(starts):
        return []
    in_ms = sum(start / 1000 < duration for start, duration in starts) > MOST_BEYOND * len(starts)
    meant = "; if they are in milliseconds, divide them by 1000" if in_ms else ""
    return [f"{beyond} of {len(starts)} actions begin beyond the end of their video: times must be in seconds{meant}"]


def _labels(database: Mapping[str, Any]) -> Iterator[str]:
    """Labels of the whole file; errors in other subsets are ignored."""
    for entry in database.values():
        actions = entry.get("annotations") if isinstance(entry, Mapping) else None
        for action in actions if isinstance(actions, list) else ():
            if isinstance(action, Mapping) and isinstance(action.get("label"), str):
                yield action["label"]


def _video(
    name: str,
    entry: Mapping[str, Any],
    classes: TextLookup,
    faults: list[str],
    notes: _Notes,
    as_published: bool,
    min_share: float,
) -> Video | None:
    """Check one video, adding to `faults` and `notes`; None if its duration is unusable."""
    duration_sec = entry.get("duration")
    if not _is_positive(duration_sec):
        faults.append(f"{name}.duration: {_found(entry, 'duration')}, expected seconds > 0")
        duration_sec = None
    frame_field = next((key for key in FRAME_FIELDS if entry.get(key) is not None), None)
    num_frames = entry[frame_field] if frame_field else None
    if num_frames is not None and not (_is_positive(num_frames) and num_frames == int(num_frames)):
        faults.append(f"{name}.{frame_field}: {num_frames!r}, expected a whole number > 0")
        num_frames = None
    fps = entry.get("fps")
    if fps is not None and not _is_positive(fps):
        faults.append(f"{name}.fps: {fps!r}, expected a number > 0")
        fps = None
    actions = entry.get("annotations")
    if not isinstance(actions, list):
        faults.append(f"{name}.annotations: {_found(entry, 'annotations')}, expected a list ([] for no actions)")
        actions = []
    parsed = [_action(f"{name}.annotations[{i}]", action, classes, faults) for i, action in enumerate(actions)]
    if duration_sec is None:
        return None
    segments = _well_formed(name, parsed, notes, duration_sec=float(duration_sec), min_share=min_share)
    return Video(
        name=name,
        subset=entry["subset"],
        duration_sec=float(duration_sec),
        num_frames=None if num_frames is None else int(num_frames),
        fps=None if fps is None else float(fps),
        actions=_once(segments, notes) if as_published else _repaired(segments, float(duration_sec), notes),
    )


def _action(where: str, action: Any, classes: TextLookup, faults: list[str]) -> Action | None:
    """Check the structure of one action; its times may still be invalid."""
    if not isinstance(action, Mapping):
        faults.append(f"{where}: must be a mapping, not {action!r:.60}")
        return None
    segment, label = action.get("segment"), action.get("label")
    if not (isinstance(segment, list) and len(segment) == 2 and all(_is_number(time) for time in segment)):
        segment = None
        faults.append(f"{where}.segment: {_found(action, 'segment')}, expected [start, end] in seconds")
    if not isinstance(label, str):
        faults.append(f"{where}.label: {_found(action, 'label')}, expected a string")
    elif (known := classes.find(label)) is None:
        faults += [] if label in NO_CLASSES else [f"{where}.label: {label!r} is not in data.classes"]
    elif segment is not None:
        return Action(start_sec=float(segment[0]), end_sec=float(segment[1]), label=known)
    return None


def _well_formed(
    name: str, actions: Sequence[Action | None], notes: _Notes, *, duration_sec: float, min_share: float
) -> dict[str, Action]:
    """Actions with valid times and of more than `min_share` of the video, by their position in the file."""
    kept = {}
    for index, action in enumerate(actions):
        where = f"{name} #{index}"
        if action is None:
            continue
        if not (math.isfinite(action.start_sec) and math.isfinite(action.end_sec)):
            notes.add("dropped: a time is not a finite number", where)
        elif action.end_sec <= action.start_sec:
            notes.add("dropped: end <= start", where)
        elif (action.end_sec - action.start_sec) / duration_sec <= min_share:
            notes.add(f"dropped: at most {min_share:g} of the video (data.min_action_share)", where)
        else:
            kept[where] = action
    return kept


def _once(actions: Mapping[str, Action], notes: _Notes) -> tuple[Action, ...]:
    """Remove duplicate actions, whose times differ by at most SAME_SEC; the first one stays."""
    kept: list[Action] = []
    for where, action in actions.items():
        if any(_are_equal(action, other) for other in kept):
            notes.add("counted once: duplicates", where)
        else:
            kept.append(action)
    return tuple(kept)


def _are_equal(one: Action, other: Action) -> bool:
    return (
        one.label == other.label
        and abs(one.start_sec - other.start_sec) <= SAME_SEC
        and abs(one.end_sec - other.end_sec) <= SAME_SEC
    )


def _repaired(actions: Mapping[str, Action], duration_sec: float, notes: _Notes) -> tuple[Action, ...]:
    """Drop actions outside the video, clip those that extend beyond it, and drop duplicates."""
    # differs: where its window shows a whole video, the reference trains on what lies beyond the end, too.
    kept: dict[Action, None] = {}
    for where, action in actions.items():
        if action.start_sec >= duration_sec:
            notes.add("dropped: start at or beyond the video's duration", where)
        elif action.end_sec <= 0:
            notes.add("dropped: end before the video's start", where)
        else:
            inside = replace(action, start_sec=max(action.start_sec, 0.0), end_sec=min(action.end_sec, duration_sec))
            if inside in kept:
                notes.add("dropped: exact duplicates", where)
                continue
            if inside.start_sec != action.start_sec:
                notes.add("clipped: start before 0", where)
            if inside.end_sec != action.end_sec:
                notes.add("clipped: end beyond the video's duration", where)
            kept[inside] = None
    return tuple(kept)


class _Notes:
    """Counts changes of single actions, with a few examples of each kind."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        self.places.setdefault(what, []).append(where)

    def lines(self) -> list[str]:
        return [
            f"{len(places)} annotation{'s' if len(places) > 1 else ''} {what} "
            f"({summarize_list(places, limit=LISTED_EXAMPLES, separator=', ')})"
            for what, places in self.places.items()
        ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value > 0


def _found(entry: Mapping[str, Any], key: str) -> str:
    return f"{entry[key]!r:.60}" if key in entry else "missing"
