"""What an annotation tool's export says, in one form for all tools: marks on videos, in seconds or frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from adatad_ds.data.video_names import VideoNames
from adatad_ds.errors import DataError, summarize_list

LISTED = 5  # examples in a note
UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One labelled segment of a video, as a tool exports it.

    Attributes:
        video: the video as the tool names it: a name, a path or an address.
        start: seconds on a player's clock, or a frame of the file, counted from 0.
        end: seconds, or the first frame after the segment.
        in_frames: whether start and end are frames.
        label: the class.
        place: file and place in it, for messages.
        tier: what the tool sorts labels by (ELAN's tiers, VIA's attributes, ...); "": nothing.
        annotator: who made it; "": not said.
    """

    video: str
    start: float
    end: float
    label: str
    place: str
    in_frames: bool = False
    tier: str = ""
    annotator: str = ""


@dataclass(frozen=True)
class Export:
    """What the files of a tool hold.

    Attributes:
        marks: all segments.
        videos: the videos that the files name, each after the file that names it, also those without a mark.
        subsets: subset by video, as the files name both.
        notes: lines about what was not used, for the user.
    """

    marks: tuple[Mark, ...]
    videos: tuple[tuple[str, str], ...]
    subsets: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Unused:
    """Counts what a file holds that is not used, by reason, with a few examples."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one thing; `example`: where, or what it is called."""
        self._examples.setdefault(reason, []).append(example)

    def notes(self) -> tuple[str, ...]:
        """A line for each reason."""
        return tuple(
            f"not used: {reason}: {len(found)} ({summarize_list(list(dict.fromkeys(found)), limit=3, separator=', ')})"
            for reason, found in self._examples.items()
        )


def parse_xml(path: Path, root: str, tool: str) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        DataError: not XML, or of another root than `root`.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if tree.tag != root:
        raise DataError(f"{path}: its outermost element is <{tree.tag}>; {tool} writes <{root}>")
    return tree


def file_name(video: str) -> str:
    """The name of the file in a path or an address, of any operating system."""
    text = video
    if "?" in text or "://" in text:
        parts = urlsplit(text)
        inner = parse_qs(parts.query).get("d")  # Label Studio: /data/local-files/?d=folder/name.mp4
        text = inner[0] if inner else unquote(parts.path)
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def match_videos(export: Export, names: Sequence[str]) -> dict[str, str | None]:
    """The file name for each video of an export; None: no such file.

    Args:
        export: of any tool.
        names: names of the folder's files.

    Raises:
        DataError: one file of the export names a video in two folders, so that they are not the same one.
    """
    known = VideoNames(names)
    found: dict[str, str | None] = {}
    where: dict[tuple[str, str], str] = {}
    for source, video in export.videos:
        name, (folder, _, last) = file_name(video), video.replace("\\", "/").rpartition("/")
        match = None if "://" in video else known.find(last)  # a file's name may have a ? of its own
        match = match or known.find(name)
        if match is None and UPLOADED.match(name):
            match = known.find(UPLOADED.sub("", name, count=1))
        found[video] = match
        other = where.setdefault((source, match or name), folder)
        if other != folder:
            raise DataError(
                f"{source} names {match or name} in two folders, {other or '.'!r} and {folder or '.'!r}: are they one "
                "video? Videos are found by name, directly in --videos; give each its own name there and in the file"
            )
    return found


def chosen_marks(
    marks: Sequence[Mark],
    named: Mapping[str, str | None],
    *,
    tiers: Sequence[str],
    annotators: Sequence[str],
    several: str,
) -> tuple[list[Mark], list[str]]:
    """The marks of the chosen tiers and annotators, and notes about the others.

    Args:
        marks: all marks.
        named: the file's name for each video, as by `match_videos`.
        tiers: names; "all" alone: all; none: the only one there is.
        annotators: names; "all" alone: all; none: the only one of each video.
        several: what the tool calls its tiers, for messages.

    Raises:
        DataError: an unknown name, or a choice that is not made.
    """
    kept, notes = _chosen(marks, tiers, option="--tiers", what=several, of=lambda mark: mark.tier)
    if len(tiers) == 0 and len({mark.tier for mark in marks}) > 1:
        raise DataError(
            f"there are several {several}: {_counts(m.tier for m in marks)}. Choose: --tiers NAME ... (all)"
        )
    who: dict[str, set[str]] = {}
    for mark in kept:
        who.setdefault(named[mark.video] or file_name(mark.video), set()).add(mark.annotator)
    shared = [video for video, people in who.items() if len(people) > 1]
    if shared and not annotators:
        raise DataError(
            f"videos that several have annotated: {summarize_list(shared, limit=LISTED, separator=', ')}; annotators "
            f"and their segments: {_counts(mark.annotator for mark in kept)}. Choose: --annotators NAME ... (all: all)"
        )
    kept, more = _chosen(kept, annotators, option="--annotators", what="annotators", of=lambda mark: mark.annotator)
    return kept, notes + more


def _chosen(
    marks: Sequence[Mark], names: Sequence[str], *, option: str, what: str, of: Callable[[Mark], str]
) -> tuple[list[Mark], list[str]]:
    present = {of(mark) for mark in marks}
    if not names or list(names) == ["all"]:
        return list(marks), []
    if unknown := [name for name in names if name not in present]:
        raise DataError(
            f"{option}: there is no {summarize_list([repr(name) for name in unknown], separator=', ')}; "
            f"{what} and their segments: {_counts(map(of, marks)) or 'none'}"
        )
    others = [mark for mark in marks if of(mark) not in names]
    notes = [f"not chosen by {option}: {_counts(map(of, others))}"] if others else []
    return [mark for mark in marks if of(mark) in names], notes


def _counts(names: Iterable[str]) -> str:
    counted = Counter(names)
    return summarize_list([f"{name or '(no name)'} ({count})" for name, count in counted.items()], separator=", ")
