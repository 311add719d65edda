"""Reading of a data set to be checked: its annotations, its files, and what training has to exclude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adatad_ds.data.annotations import Video, load_annotations, subset_names
from adatad_ds.data.inspection.scan import Cache, Scan, scan_all
from adatad_ds.data.inspection.survey import frame_rate
from adatad_ds.data.video_files import present_videos
from adatad_ds.data.video_names import EXTENSIONS, read_names
from adatad_ds.errors import DataError

EXCLUDED_FILE = "excluded.txt"


@dataclass(frozen=True)
class DataSet:
    """An annotation file and its folder of videos.

    Attributes:
        videos: annotated videos, by subset.
        classes: all labels.
        scans: results of decoding the files that exist, by video name.
        missing: names of videos without a file.
        repaired: lines about repaired or dropped annotations.
        left_out: lines about videos that --exclude-file leaves out.
    """

    videos: Mapping[str, tuple[Video, ...]]
    classes: tuple[str, ...]
    scans: Mapping[str, Scan]
    missing: tuple[str, ...]
    repaired: tuple[str, ...]
    left_out: tuple[str, ...]


def read_data_set(annotations: Path, folder: Path, *, out: Path, workers: int, exclude_file: str) -> DataSet:
    """Read annotations and decode all annotated videos.

    Args:
        annotations: the annotation JSON.
        folder: folder of the videos.
        out: folder of the cache of earlier results.
        workers: decoding processes.
        exclude_file: list of videos to leave out; "": none.

    Raises:
        DataError: no annotations, or no videos.
    """
    videos, repaired, left_out, classes = {}, [], [], ()
    for subset in subset_names(annotations) or [""]:
        loaded, notes = load_annotations(annotations, subset=subset, exclude_file=exclude_file)
        videos[subset], classes = loaded.videos, loaded.classes
        if exclude_file:
            left_out.append(notes.pop())  # the last note is about the file
        repaired += [f"{subset}: {note}" for note in notes]
    names = [video.name for members in videos.values() for video in members]
    paths = present_videos(folder, names)
    if not paths:
        raise DataError(f"none of the {len(names)} annotated videos is in {folder} (e.g. {names[0]}{EXTENSIONS[0]})")
    out.mkdir(parents=True, exist_ok=True)
    scans = scan_all(list(paths.values()), workers=workers, cache=Cache(out / "check_cache.json"))
    if all(result.error for result in scans.values()):
        first = next(iter(scans.values())).error
        raise DataError(f"none of the {len(scans)} videos in {folder} can be decoded, e.g. {first}")
    return DataSet(
        videos=videos,
        classes=classes,
        scans={name: scans[path] for name, path in paths.items()},
        missing=tuple(name for name in names if name not in paths),
        repaired=tuple(repaired),
        left_out=tuple(left_out),
    )


def exclude(data: DataSet, exclude_file: str, *, out: Path) -> list[str]:
    """Names that training has to leave out, also listed in OUT: the user's, and those without a readable file."""
    unreadable = [name for name, result in data.scans.items() if result.error]
    names = [*(read_names(exclude_file) if exclude_file else ()), *data.missing, *unreadable]
    path = out / EXCLUDED_FILE
    path.unlink(missing_ok=True)  # it may be outdated
    if names:
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return names


def frame_rates(data: DataSet) -> dict[str, float]:
    """Frames per second of the videos whose rate is known, by name."""
    videos = [video for members in data.videos.values() for video in members]
    known = {video.name: frame_rate(video, data.scans.get(video.name)) for video in videos}
    return {name: rate for name, rate in known.items() if rate is not None}
