"""CVAT's annotation files ("CVAT for video 1.1", "CVAT for images 1.1"): tracks and tags of frames.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Frames are those of the video file, counted
from 0, also where a task begins later or leaves frames out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from adatad_ds.data.sources.parsing import find, shown
from adatad_ds.data.sources.tools.marks import Export, Mark, Unused, parse_xml
from adatad_ds.errors import DataError

TRACKS, TAGS = "tracks", "tags"
Run = tuple[int, int, str]  # first frame, first frame after it, label


@dataclass(frozen=True)
class Task:
    """One task, of one video; each of its frames stands for `step` frames of the file."""

    video: str
    step: int


def read_cvat(sources: Sequence[Path], *, attribute: str) -> Export:
    """Read annotation files: a track is a mark wherever it is visible, and so are successive frames with the same tag.

    Args:
        sources: `.xml` files, or folders that hold them.
        attribute: labels are the values of this attribute of tracks and tags; "": they are CVAT's labels.

    Raises:
        DataError: no such file, or one that contradicts the format.
    """
    paths = find(sources, "*.xml")
    if not paths:
        raise DataError(f"--source: {shown(sources)} hold no *.xml; unpack CVAT's export, which holds annotations.xml")
    marks, videos, unused = [], {}, Unused()
    for path in paths:
        root = parse_xml(path, "annotations", "CVAT")
        tasks = _tasks(root, path)
        for task in tasks.values():
            videos[str(path), task.video] = None
        for element in root:
            if element.tag not in ("version", "meta", "track", "image"):
                unused.add("unknown elements", f"<{element.tag}> in {path.name}")
        for task, tier, (start, end, label), place in _runs(root, path, tasks, attribute, unused):
            marks.append(
                Mark(video=task.video, start=start, end=end, in_frames=True, label=label, place=place, tier=tier)
            )
    return Export(tuple(marks), tuple(videos), {}, unused.notes())


def _tasks(root: Element, path: Path) -> dict[str, Task]:
    """All tasks by id, and by "" the only one."""
    found = [element for place in ("task", "job", "project/tasks/task") for element in root.iterfind(f"meta/{place}")]
    tasks: dict[str, Task] = {}
    for element in found:
        video = (element.findtext("source") or element.findtext("name") or "").strip()
        if not video:
            raise DataError(f"{path}: <meta> names no video in <source>; export the task of a video, with its <meta>")
        rule = (element.findtext("frame_filter") or "").strip()
        match = re.fullmatch(r"(?:step\s*=\s*([1-9]\d*))?", rule)
        if match is None:
            raise DataError(f"{path}: <frame_filter> is {rule!r}, expected step=N")
        tasks[(element.findtext("id") or "").strip()] = Task(video, int(match[1] or 1))
    if not tasks:
        raise DataError(f"{path}: <meta> holds no <task>, so that the video is unknown; export it with CVAT as XML 1.1")
    return tasks if len(tasks) > 1 else tasks | {"": next(iter(tasks.values()))}


def _runs(
    root: Element, path: Path, tasks: dict[str, Task], attribute: str, unused: Unused
) -> Iterator[tuple[Task, str, Run, str]]:
    """Task, kind, frames and label of each segment, and its place."""

    def task_of(element: Element, place: str) -> Task:
        name = element.get("task_id", "")
        task = tasks.get(name) or tasks.get("")
        if task is None:
            raise DataError(f"{place}: task_id is {name!r}, which <meta> does not list: {', '.join(tasks)}")
        return task

    for track in root.iterfind("track"):
        place = f"{path}, track {track.get('id')}"
        task = task_of(track, place)
        for run in _track_runs(track, task.step, place, attribute, unused):
            yield task, TRACKS, run, place
    tagged: dict[tuple[Task, str], set[int]] = {}
    for image in root.iterfind("image"):
        place = f"{path}, image {image.get('id')}"
        task, frame = task_of(image, place), _number(image, "id", place)
        for element in image:
            if element.tag != "tag":
                unused.add("shapes of single frames, without a track", f"<{element.tag}> in {place}")
            elif label := _label(element, element, attribute, place, unused):
                tagged.setdefault((task, label), set()).add(frame)
    for (task, label), frames in tagged.items():
        for start, end in _joined(sorted(frames), task.step):
            yield task, TAGS, (start, end, label), f"{path}, frames {start} to {end - 1}"


def _track_runs(track: Element, step: int, place: str, attribute: str, unused: Unused) -> Iterator[Run]:
    """Where a track is visible, without a break of its label; it goes on from shape to shape."""
    shapes = sorted(((_number(shape, "frame", place), shape) for shape in track), key=lambda item: item[0])
    start, label = 0, ""  # of the run that is open; "": none is
    for frame, shape in shapes:
        hidden = shape.get("outside", "0") == "1"
        now = "" if hidden else _label(track, shape, attribute, f"{place}, frame {frame}", unused)
        if now != label:
            if label and frame > start:
                yield start, frame, label
            start, label = frame, now
    if label:
        yield start, shapes[-1][0] + step, label


def _label(labelled: Element, shape: Element, attribute: str, place: str, unused: Unused) -> str:
    """CVAT's label, or the attribute's value, of a shape or of the track as a whole."""
    label = labelled.get("label", "").strip()
    if not label:
        raise DataError(f"{place}: it has no label")
    if not attribute:
        return label
    for element in (shape, labelled):
        for found in element.iterfind("attribute"):
            if found.get("name") == attribute:
                return (found.text or "").strip()
    unused.add(f"what has no attribute {attribute!r}", f"{label} in {place}")
    return ""


def _joined(frames: Sequence[int], step: int) -> Iterator[tuple[int, int]]:
    """Runs of frames that are `step` apart, as first frame and first frame after."""
    start = frames[0]
    for frame, following in zip(frames, [*frames[1:], None], strict=True):
        if following is None or following - frame > step:
            yield start, frame + step
            start = following if following is not None else start


def _number(element: Element, key: str, place: str) -> int:
    value = element.get(key, "")
    if not value.isdecimal():
        raise DataError(f"{place}: {key} is {value!r}, expected a frame, counted from 0")
    return int(value)
