"""Pages that show annotations on their videos, before training: an overview, and a player for each video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad_ds.data.annotations import Video, load_annotations, subset_names
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.video_files import present_videos
from adatad_ds.errors import DataError
from adatad_ds.evaluation.plots.figures import Look, class_looks
from adatad_ds.evaluation.video.overlay import write_annotated
from adatad_ds.evaluation.video.page import plays_in_browsers, video_address, write_page, write_template

OVERVIEW_FILE = "index.html"
LONGEST_STEM = 200  # characters of a page's name, which file systems limit
COPIES = "copies"  # folder of what browsers play of videos that they do not


def write_annotation_pages(
    folder: Path, *, annotations: Path, videos: Path, exclude_file: str = "", report: Callable[[str], None]
) -> int:
    """Write FOLDER/index.html and a page for each video, with the segments as training reads them.

    Videos are linked where they lie; those that browsers do not play are copied as H.264, with the labels in the
    picture.

    Args:
        folder: output folder.
        annotations: the annotation JSON.
        videos: folder of the videos.
        exclude_file: list of videos to leave out; "": none.
        report: called with lines for the user.

    Returns:
        How many videos cannot be shown.

    Raises:
        DataError: unusable annotations, or no videos.
    """
    members, notes = _read(annotations, exclude_file)
    paths = present_videos(videos, [video.name for video in members], setting="--videos")
    folder.mkdir(parents=True, exist_ok=True)
    pages = page_names([video.name for video in members])
    played, problems = _playable(members, paths, folder)
    shown = [video for video in members if video.name not in problems]
    counts = Counter(action.label for video in members for action in video.actions)
    looks = class_looks([label for label, _ in counts.most_common()])
    for number, video in enumerate(shown):
        around = {"previous": number - 1, "next": number + 1}
        links = [("all videos", OVERVIEW_FILE)]
        links += [(text, pages[shown[at].name]) for text, at in around.items() if 0 <= at < len(shown)]
        about = f"annotated for {video.subset}; {paths[video.name]}"
        _write_video(folder, pages[video.name], video, played[video.name], about, links, looks)
    overview = {
        "name": f"Annotations of {annotations}",
        "about": f"{len(members)} videos of {videos}, {sum(len(video.actions) for video in members)} segments, as "
        "training reads them. A click on a bar plays it.",
        "notes": [*notes, *(f"{name}: {problem}" for name, problem in problems.items())],
        "classes": [
            {"label": label, "color": look.color, "hatch": look.hatch, "ink": look.ink, "count": counts[label]}
            for label, look in looks.items()
        ],
        "videos": [
            {
                "name": video.name,
                "subset": video.subset,
                "duration_sec": video.duration_sec,
                "page": "" if video.name in problems else pages[video.name],
                "problem": problems.get(video.name, ""),
                "segments": [(action.start_sec, action.end_sec, action.label) for action in video.actions],
            }
            for video in members
        ],
    }
    write_template(folder / OVERVIEW_FILE, "videos.html", overview)
    report(f"open in a browser: {folder / OVERVIEW_FILE}, {len(members)} videos")
    for name, problem in problems.items():
        report(f"cannot be shown: {name}: {problem}")
    return len(problems)


def page_names(names: Sequence[str]) -> dict[str, str]:
    """A file name for each video's page, which needs no quotation in an address; all differ in any file system."""
    plain = {name: re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[:LONGEST_STEM] for name in names}
    counts = Counter(text.lower() for text in plain.values())
    alone = {text for text, count in counts.items() if count == 1} - {Path(OVERVIEW_FILE).stem}
    pages, taken = {}, set(alone)
    for number, (name, text) in enumerate(plain.items()):
        stem = text if text.lower() in alone else f"{text}.{number}"
        while stem != text and stem.lower() in taken:  # a video is called "NAME.NUMBER"
            stem += "_"
        taken.add(stem.lower())
        pages[name] = f"{stem}.html"
    return pages


def segment_records(video: Video) -> list[dict[str, Any]]:
    """A video's actions in the form of detections."""
    return [
        {"segment": [action.start_sec, action.end_sec], "label": action.label, "score": 1.0} for action in video.actions
    ]


def played_file(path: Path, folder: Path, records: Sequence[Mapping[str, Any]], *, scored: bool) -> Path:
    """A file that browsers play: the video, or a copy in FOLDER/copies with the records in the picture.

    Raises:
        VideoError: the video cannot be decoded.
    """
    if plays_in_browsers(path):
        return path
    copy = folder / COPIES / f"{path.name}.mp4"
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_annotated(path, copy, detections=records, scored=scored)
    except VideoError:
        copy.unlink(missing_ok=True)  # what has been written of it
        raise
    return copy


def _read(annotations: Path, exclude_file: str) -> tuple[list[Video], list[str]]:
    """All videos of all subsets, and what was repaired or dropped."""
    members: list[Video] = []
    notes: list[str] = []
    subsets = subset_names(annotations)
    if not subsets:
        raise DataError(f"{annotations} lists no videos")
    for subset in subsets:
        loaded, found = load_annotations(annotations, subset=subset, exclude_file=exclude_file)
        members += loaded.videos
        notes += [f"{subset}: {note}" for note in found]
    return members, notes


def _playable(
    members: Sequence[Video], paths: Mapping[str, Path], folder: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """What browsers play of each video, copied if need be, and why others cannot be shown; both by name."""
    played, problems = {}, {}
    for video in members:
        if video.name not in paths:
            problems[video.name] = "its file is missing"
            continue
        try:
            played[video.name] = played_file(paths[video.name], folder, segment_records(video), scored=False)
        except VideoError as error:
            problems[video.name] = str(error)
    return played, problems


def _write_video(
    folder: Path,
    page: str,
    video: Video,
    played: Path,
    about: str,
    links: Sequence[tuple[str, str]],
    looks: Mapping[str, Look],
) -> None:
    write_page(
        folder / page,
        name=video.name,
        video=video_address(played, folder=folder, most_bytes=0),
        duration_sec=video.duration_sec,
        detections=segment_records(video),
        shown=None,
        about=about,
        links=links,
        looks=looks,
    )
