"""Label Studio's exports (JSON, JSON_MIN): ranges and tracks in frames, regions of sound in seconds.

Format: https://labelstud.io/guide/export and https://labelstud.io/tags/timelinelabels. Frames count from 1, at the
frameRate of the <Video> tag, whatever the file's own rate; the last frame belongs to a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad_ds.data.sources.parsing import find, items, shown
from adatad_ds.data.sources.tools.marks import Export, Mark, Unused, file_name
from adatad_ds.data.video_names import EXTENSIONS
from adatad_ds.errors import DataError
from adatad_ds.system.json_text import read_json

FROM_FILE = "video"  # --frame-rate video
TASK_FIELDS = {  # of JSON_MIN, beside the data and the results
    *("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"),
}
Spans = Iterator[tuple[float, float, bool]]  # start, end, whether they are frames of the file


def read_label_studio(sources: Sequence[Path], *, frame_rate: str) -> Export:
    """Read exports: ranges of TimelineLabels, tracks of VideoRectangle and labelled regions of the sound.

    Args:
        sources: `.json` files, or folders that hold them.
        frame_rate: the <Video> tag's frameRate: a number; "$NAME", from the tasks' data; "video", the file's own rate;
            "": not given.

    Raises:
        DataError: no such file, one that contradicts the format, or frames without a rate.
    """
    paths = find(sources, "*.json")
    if not paths:
        raise DataError(f"--source: {shown(sources)} hold no *.json, as Label Studio exports")
    marks, videos, unused = [], {}, Unused()
    for path in paths:
        for index, task in enumerate(_tasks(path)):
            place = f"{path}, task {task.get('id', index)}"
            data = task["data"] if "annotations" in task and isinstance(task.get("data"), Mapping) else task
            video = _video(data, place)
            videos[str(path), video] = None
            spans = _Frames(frame_rate, data, place).spans
            for annotator, tier, kind, value in _results(task, place, unused):
                labels, found = _read(kind, value, spans, place)
                if not labels:
                    unused.add(f"results of type {kind!r}" if found is None else "regions without a label", place)
                    continue
                for start, end, in_frames in found or ():
                    marks += [
                        Mark(
                            video=video,
                            start=start,
                            end=end,
                            in_frames=in_frames,
                            label=label,
                            place=place,
                            tier=tier,
                            annotator=annotator,
                        )
                        for label in labels
                    ]
    return Export(tuple(marks), tuple(videos), {}, unused.notes())


def _tasks(path: Path) -> list[Mapping[str, Any]]:
    try:
        tree = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, list) or not all(isinstance(task, Mapping) for task in tree):
        raise DataError(f"{path} must hold a list of tasks: export from Label Studio as JSON or JSON_MIN")
    return tree


def _video(data: Mapping[str, Any], place: str) -> str:
    """The only value of a task that names a video file."""
    found = {
        key: value
        for key, value in data.items()
        if isinstance(value, str) and file_name(value).lower().endswith(EXTENSIONS)
    }
    if len(set(found.values())) != 1:
        names = ", ".join(found) or f"none of {', '.join(data) or 'no fields'}"
        raise DataError(
            f"{place}: exactly one field of its data must name a video file ({EXTENSIONS[0]}, ...): {names}"
        )
    return next(iter(found.values()))


def _results(task: Mapping[str, Any], place: str, unused: Unused) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Annotator, control's name, type and value of each result of a task."""
    if "annotations" not in task:
        for tier, found in task.items():
            if isinstance(found, list) and all(isinstance(value, Mapping) for value in found):
                for value in found:
                    yield str(task.get("annotator", "")), tier, _kind(value), value
            elif tier not in TASK_FIELDS and isinstance(found, list | Mapping):
                unused.add("fields", f"{tier} in {place}")
        return
    if task.get("predictions"):
        unused.add("predictions", place)
    for annotation in items(task, "annotations", place):
        if annotation.get("was_cancelled"):
            unused.add("skipped annotations", place)
            continue
        who = annotation.get("completed_by", "")
        name = who.get("email", who.get("id", "")) if isinstance(who, Mapping) else who
        for result in items(annotation, "result", place) if annotation.get("result") else ():
            value = result.get("value")
            if isinstance(value, Mapping):
                yield str(name), str(result.get("from_name", "")), str(result.get("type", "")), value
            else:
                unused.add(f"results of type {result.get('type')!r}", place)


def _kind(value: Mapping[str, Any]) -> str:
    """The type of a result of JSON_MIN, which does not name it."""
    if "timelinelabels" in value:
        return "timelinelabels"
    return "videorectangle" if "sequence" in value else "labels"


def _read(
    kind: str, value: Mapping[str, Any], spans: Callable[..., Spans], place: str
) -> tuple[list[str], Spans | list[tuple[float, float, bool]] | None]:
    """Labels and segments of a result; None as segments: of a type without times."""
    if kind == "timelinelabels":
        return _names(value, "timelinelabels"), spans(_ranges(value, place))
    if kind == "videorectangle":
        return _names(value, "labels"), spans(_tracked(value, place))
    if kind == "labels" and "text" not in value and "start" in value and "end" in value:
        ends = [value["start"], value["end"]]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends) or ends[1] <= ends[0]:
            raise DataError(f"{place}: a region of the sound is from {ends[0]!r} to {ends[1]!r}, expected seconds")
        return _names(value, "labels"), [(float(ends[0]), float(ends[1]), False)]
    return [], None


def _names(value: Mapping[str, Any], key: str) -> list[str]:
    return [str(label) for label in value.get(key) or ()]


def _ranges(value: Mapping[str, Any], place: str) -> Iterator[tuple[int, int]]:
    """First and last frame of each range."""
    for found in items(value, "ranges", place) if value.get("ranges") else ():
        yield _frame(found, "start", place), _frame(found, "end", place)


def _tracked(value: Mapping[str, Any], place: str) -> Iterator[tuple[int, int]]:
    """First and last frame of each part of a track: it goes on from a key frame until one that is not enabled."""
    keys = items(value, "sequence", place) if value.get("sequence") else ()
    keys = sorted(keys, key=lambda key: _frame(key, "frame", place))
    start: int | None = None
    for key in keys:
        frame: int = key["frame"]
        start = frame if start is None else start
        if not key.get("enabled", True):
            yield start, frame
            start = None
    if start is not None:
        if not isinstance(value.get("framesCount"), int):
            raise DataError(f"{place}: a track has no framesCount, so that its end is unknown")
        yield start, max(start, value["framesCount"])


def _frame(found: Mapping[str, Any], key: str, place: str) -> int:
    frame = found.get(key)
    if not isinstance(frame, int) or isinstance(frame, bool) or frame < 0:
        raise DataError(f"{place}: {key} is {frame!r}, expected a frame, counted from 1")
    return frame


class _Frames:
    """Conversion of a task's frames.

    Args:
        rate: as for `read_label_studio`.
        data: the task's data.
        place: for messages.
    """

    def __init__(self, rate: str, data: Mapping[str, Any], place: str) -> None:
        self._rate, self._data, self._place = rate, data, place

    def spans(self, frames: Iterator[tuple[int, int]]) -> Spans:
        """First and last frames, counted from 1, as start and end."""
        for first, last in frames:
            if last < first:
                raise DataError(f"{self._place}: a range is from frame {first} to {last}")
            before = max(first - 1, 0)
            if self._rate == FROM_FILE:
                yield before, last, True
            else:
                fps = self._frames_per_sec()
                yield before / fps, last / fps, False

    def _frames_per_sec(self) -> float:
        text, place = self._rate, f"--frame-rate {self._rate}"
        if not text:
            raise DataError(
                f"{self._place} counts frames at the frameRate of the <Video> tag in the labelling interface, which "
                "exports do not contain: give it as --frame-rate (24 if the tag has none; '$NAME' for a field of the "
                "tasks; video for the rate of each file)"
            )
        if text.startswith("$"):
            place = f"{self._place}: its data's {text[1:]}"
            text = str(self._data.get(text[1:], "missing"))
        try:
            fps = float(text)
        except ValueError:
            fps = 0.0
        if not 0 < fps < float("inf"):
            raise DataError(f"{place} is {text!r}, expected frames per second")
        return fps
