"""Which video files a user means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from os.path import commonpath
from pathlib import Path

from adatad_ds.data.decoding.video import opened
from adatad_ds.data.video_names import EXTENSIONS, VideoNames
from adatad_ds.errors import DataError, summarize_list

ANNOTATED = ".annotated.mp4"  # how the name of what is written by us ends


def find_videos(folder: str | Path, names: Sequence[str]) -> dict[str, Path]:
    """The file of every video; see `present_videos`.

    Raises:
        DataError: no such folder, or files are missing.
    """
    found = present_videos(folder, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"data.videos: {len(missing)} of {len(names)} annotated videos are not in {str(folder)!r}: "
            f"{summarize_list(missing, separator=', ')}. Add the files (NAME{EXTENSIONS[0]}, ...), or leave them out "
            f"on purpose with --set 'data.exclude={missing[:2]!r}' and so on, or by a list, --set "
            "data.exclude_file=FILE"
        )
    return found


def present_videos(folder: str | Path, names: Sequence[str], *, setting: str = "data.videos") -> dict[str, Path]:
    """The files of the videos that are there: directly in a folder, under the name in any way `VideoNames` knows it.

    Args:
        folder: of the videos.
        names: of the videos, with or without extension.
        setting: what named the folder, for messages.

    Raises:
        DataError: no such folder, it holds no video, or two names mean the same file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{setting}: there is no folder {str(folder)!r}; it must hold VIDEO_NAME.mp4 (or .mkv, ...)")
    files = videos_in(folder)
    if not files:
        raise DataError(f"{setting}: the folder {str(folder)!r} holds no video ({', '.join(EXTENSIONS)})")
    known = file_names(files)
    found = {name: folder / file for name in names if (file := known.find(name)) is not None}
    check_distinct(found)
    return found


def file_names(files: Iterable[Path]) -> VideoNames:
    """The names of a folder's video files; of several that differ by their extension only, in that one's order."""
    ordered = sorted(files, key=lambda path: (EXTENSIONS.index(path.suffix.lower()), path.name))
    return VideoNames(path.name for path in ordered)


def videos_in(folder: Path) -> list[Path]:
    """The files directly in a folder that are videos by their extension."""
    return [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]


def check_distinct(files: Mapping[str, Path]) -> None:
    """Raise a `DataError` where two names of videos mean the same file."""
    names: dict[Path, list[str]] = {}
    for name, path in files.items():
        names.setdefault(path, []).append(name)
    shared = [f"{' and '.join(map(repr, same))} ({path.name})" for path, same in names.items() if len(same) > 1]
    if shared:
        raise DataError(f"videos with one file: {summarize_list(shared)}. Merge their entries, or rename the files")


def find_files(arguments: Sequence[str], *, reserved: str) -> tuple[dict[str, Path], list[str]]:
    """The video files that arguments name, each once, under a name of its own.

    Args:
        arguments: files, folders (the videos in and below them, but for annotated ones), globs.
        reserved: a name that no video gets.

    Returns:
        Path by name: the file's name without its extension, or where several have that, their path from the folder
        that they share; and a line for each argument that names nothing.

    Raises:
        DataError: no argument names a file.
    """
    found: dict[Path, Path] = {}  # by where it really is
    absent = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            named = sorted(file for file in path.rglob("*") if _is_input(file))
            missing = f"the folder {argument} holds no video ({', '.join(EXTENSIONS)})"
        else:
            named = [path] if path.exists() else [Path(match) for match in sorted(glob(str(path), recursive=True))]
            missing = f"there is no file {argument}"
        found |= {file.resolve(): file for file in named if file.is_file()}
        if not named:
            absent.append(missing)
    if not found:
        raise DataError("; ".join(absent))
    paths = list(found.values())
    stems = Counter(path.stem for path in paths)
    shared = Path(commonpath([path.absolute().parent for path in paths]))
    names: dict[str, Path] = {}
    for path in paths:
        alone = stems[path.stem] == 1 and path.stem != reserved
        name = path.stem if alone else "_".join(path.absolute().relative_to(shared).parts)
        while name in names:
            name += "_"
        names[name] = path
    return names, absent


def length_sec(path: Path) -> float:
    """How long a file says that it lasts, without reading it; 0 where it does not say.

    Raises:
        VideoError: no video.
    """
    with opened(path, num_threads=1) as (container, _):
        return (container.duration or 0) / 1_000_000


def _is_input(path: Path) -> bool:
    known = path.suffix.lower() in EXTENSIONS and not path.name.endswith(ANNOTATED)
    return known and path.is_file()
