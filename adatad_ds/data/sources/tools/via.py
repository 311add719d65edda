"""Projects of VIA 3, the VGG Image Annotator for video (JSON): temporal segments in seconds.

Format: https://gitlab.com/vgg/via/-/blob/master/via-3.x.y/CodeDoc.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad_ds.data.sources.parsing import find, read_json, seconds, shown
from adatad_ds.data.sources.tools.marks import Export, Mark, Unused
from adatad_ds.errors import DataError

PARTS = "attribute", "file", "metadata", "view"
KNOWN = {*PARTS, "project", "config"}
CHECKBOX, VIDEO = 2, 4  # VIA's numbers of a kind of attribute, and of a kind of file
SEGMENT = "FILE1_Z2_XY0"  # VIA's name of attributes of temporal segments
UNSET = "_DEFAULT"  # what VIA stores where nothing was chosen


def read_via(sources: Sequence[Path]) -> Export:
    """Read projects: each temporal segment is a mark by each attribute that it has, under the attribute's name.

    Raises:
        DataError: no such file, or one that contradicts the format.
    """
    paths = find(sources, "*.json")
    if not paths:
        raise DataError(f"--source: {shown(sources)} hold no *.json, as VIA saves projects")
    marks, videos, unused = [], {}, Unused()
    for path in paths:
        project = _project(path)
        for key in project.keys() - KNOWN:
            unused.add("unknown fields", f"{key!r} in {path.name}")
        for view in project["view"]:
            for video in _videos(project, view, f"{path}, view {view}"):
                videos[str(path), video] = None
        for name, item in project["metadata"].items():
            marks += _marks(project, item, f"{path}, metadata {name}", unused)
    return Export(tuple(marks), tuple(videos), {}, unused.notes())


def _project(path: Path) -> Mapping[str, Any]:
    project = read_json(path, exact=False)
    if "_via_img_metadata" in project or all(
        isinstance(item, Mapping) and "regions" in item for item in project.values()
    ):
        raise DataError(
            f"{path} was saved by VIA 2, which annotates images and has no times; label the videos with VIA 3 "
            "(via_video_annotator.html) and save its project"
        )
    for key in PARTS:
        if not isinstance(project.get(key), Mapping):
            found = f"{project[key]!r:.60}" if key in project else "missing"
            raise DataError(f"{path}: {key} is {found}, expected an object, as VIA 3 saves projects")
        for name, item in project[key].items():
            if not isinstance(item, Mapping):
                raise DataError(f"{path}, {key} {name}: {item!r:.60}, expected an object")
    return project


def _videos(project: Mapping[str, Any], view: str, place: str) -> list[str]:
    """Names of a view's videos."""
    ids = project["view"][view].get("fid_list")
    if not isinstance(ids, list) or any(str(file) not in project["file"] for file in ids):
        raise DataError(f"{place}: fid_list is {ids!r:.60}, expected ids of the project's files")
    files = [project["file"][str(file)] for file in ids]
    names = [file.get("fname") or file.get("src") for file in files if file.get("type") == VIDEO]
    if any(not isinstance(name, str) for name in names):
        raise DataError(f"{place}: one of its files has no fname")
    return [str(name) for name in names]


def _marks(project: Mapping[str, Any], item: Mapping[str, Any], place: str, unused: Unused) -> Iterator[Mark]:
    view, times, values = str(item.get("vid")), item.get("z"), item.get("av")
    if view not in project["view"]:
        raise DataError(f"{place}: vid is {view!r}, expected the id of a view")
    if not isinstance(times, list) or not isinstance(values, Mapping):
        raise DataError(f"{place}: z is {times!r:.40} and av {values!r:.40}, expected a list and an object")
    if len(times) != 2:
        unused.add("regions of single frames" if times else "attributes of whole files", place)
        return
    start, end = (seconds(time, f"{place}, z") for time in times)
    videos = _videos(project, view, f"{place}, view {view}")
    if len(videos) != 1:
        raise DataError(f"{place}: view {view} shows {len(videos)} videos, and a segment must be of one")
    if end <= start:
        unused.add("segments that end where they start", place)
        return
    labels = list(_labels(project["attribute"], values, place, unused))
    if not labels:
        unused.add("segments without a value", place)
    for tier, label in labels:
        yield Mark(video=videos[0], start=start, end=end, label=label, place=place, tier=tier)


def _labels(
    attributes: Mapping[str, Any], values: Mapping[str, Any], place: str, unused: Unused
) -> Iterator[tuple[str, str]]:
    """Name of the attribute, and its value in words, of all attributes of a segment."""
    for key, value in values.items():
        attribute = attributes.get(key)
        if attribute is None or attribute.get("anchor_id", SEGMENT) != SEGMENT:
            unused.add("values of attributes that are not those of segments", f"{key}={value!r:.30} in {place}")
            continue
        options = attribute.get("options") or {}
        chosen = str(value).split(",") if attribute.get("type") == CHECKBOX else [str(value)]
        for one in (text.strip() for text in chosen):
            label = str(options.get(one, one)).strip()
            if label and one != UNSET:
                yield str(attribute.get("aname", key)), label
