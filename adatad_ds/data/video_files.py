"""Find the video files for given names, paths, folders or globs."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from os.path import commonpath
from pathlib import Path

from adatad_ds.data.video_names import EXTENSIONS, VideoNames
from adatad_ds.errors import DataError, summarize_list

ANNOTATED = ".annotated.mp4"  # suffix of the annotated copies that predict.py writes
LONGEST_NAME = 255  # bytes of a file's name


def find_videos(folder: str | Path, names: Sequence[str]) -> dict[str, Path]:
    """Find the file of every video, by the rules of `present_videos`.

    Raises:
        DataError: missing folder or files.
    """
    found = present_videos(folder, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"data.videos: {len(missing)} of {len(names)} annotated videos are not in {str(folder)!r}: "
            f"{summarize_list(missing, separator=', ')}. Add the files (NAME{EXTENSIONS[0]}, ...), or leave them out "
            f"with --set 'data.exclude={missing[:2]!r}' and so on, or list them with "
            "--set data.exclude_file=FILE"
        )
    return found


def present_videos(folder: str | Path, names: Sequence[str], *, setting: str = "data.videos") -> dict[str, Path]:
    """Find those videos that are present directly in a folder, with names matched by `VideoNames`.

    Args:
        folder: folder of the videos.
        names: names of the videos, with or without extension.
        setting: the setting that names the folder, for messages.

    Raises:
        DataError: missing or empty folder, or two names that match the same file.
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
    """Names of a folder's video files; files that differ only by extension are in the order of EXTENSIONS."""
    ordered = sorted(files, key=lambda path: (EXTENSIONS.index(path.suffix.lower()), path.name))
    return VideoNames(path.name for path in ordered)


def videos_in(folder: Path) -> list[Path]:
    """Files directly in a folder with a video extension."""
    return [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]


def check_distinct(files: Mapping[str, Path]) -> None:
    """Raise a `DataError` if two names match the same file."""
    names: dict[Path, list[str]] = {}
    for name, path in files.items():
        names.setdefault(path, []).append(name)
    shared = [f"{' and '.join(map(repr, same))} ({path.name})" for path, same in names.items() if len(same) > 1]
    if shared:
        raise DataError(f"videos with the same file: {summarize_list(shared)}. Merge the entries, or rename the files")


def find_files(arguments: Sequence[str], *, reserved: str, ending: str) -> tuple[dict[str, Path], list[str]]:
    """Find the video files given by arguments, each once, under a unique name.

    Args:
        arguments: files, folders (searched recursively, without annotated copies), globs.
        reserved: a name that no video gets.
        ending: the longest one of the files that are called after a video.

    Returns:
        Path by name: the file's name without its extension or, if that is not unique, its path relative to the common
        folder; its end is replaced by a checksum where a file system would not take it with the `ending`. And an error
        message for each argument that matches nothing.

    Raises:
        DataError: no argument matches a file.
    """
    found: dict[Path, Path] = {}  # by resolved path
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
        while (fitting := _fitting(name, most_bytes=LONGEST_NAME - len(ending))) in names:
            name += "_"
        names[fitting] = path
    return names, absent


def length_sec(path: Path) -> float:
    """Duration from a file's header, without reading the file; 0 if not given.

    Raises:
        VideoError: not a video.
    """
    from adatad_ds.data.decoding.video import opened  # here: names of files need no decoder

    with opened(path, num_threads=1) as (container, _):
        return (container.duration or 0) / 1_000_000


def _fitting(name: str, *, most_bytes: int) -> str:
    if len(os.fsencode(name)) <= most_bytes:
        return name
    checksum = f"_{zlib.crc32(os.fsencode(name)):08x}"
    while len(os.fsencode(name)) > most_bytes - len(checksum):
        name = name[:-1]
    return name + checksum


def _is_input(path: Path) -> bool:
    known = path.suffix.lower() in EXTENSIONS and not path.name.endswith(ANNOTATED)
    return known and path.is_file()
