"""Recognition data: videos with one label each, from a list file or from one folder per class."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adatad_ds.config.schema import DataConfig, RecognitionConfig
from adatad_ds.data.annotations import doubtful_labels
from adatad_ds.data.video_files import check_distinct, file_names, videos_in
from adatad_ds.data.video_names import EXTENSIONS, VideoNames, read_names
from adatad_ds.errors import ConfigError, DataError, summarize_list
from adatad_ds.system.unicode_text import TextLookup

LINE_FORM = "PATH LABEL or PATH,LABEL"


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """One video: its name (the path below the root folder), its file and its class index."""

    name: str
    path: Path
    label: int


@dataclass(frozen=True)
class VideoList:
    """Labelled videos, each name once, and the class names by class index."""

    videos: tuple[LabelledVideo, ...]
    classes: tuple[str, ...]


def listed_videos(
    settings: RecognitionConfig, data: DataConfig, *, training: bool, classes: Sequence[str] = ()
) -> VideoList:
    """The labelled videos that a config trains or tests on.

    Args:
        settings: where they are listed.
        data: where they are, and which are left out.
        training: those to train on, or to test on.
        classes: names by index, where they are known already.

    Raises:
        DataError: no usable videos or lists.
        ConfigError: no folder of videos is set.
    """
    known = classes or (read_class_names(settings.class_names) if settings.class_names else data.classes)
    source, other = Path(settings.train_list), Path(settings.test_list)
    if not training:
        source, other = other, source
    found = _listed(source, data, known)
    names = VideoNames(video.name for video in found.videos)
    absent = [name for name in data.exclude if names.find(name) is None]
    if absent and training:  # an evaluation may be where the training videos are not
        others = VideoNames(video.name for video in _listed(other, data, found.classes).videos)
        if unknown := [name for name in absent if others.find(name) is None]:
            raise DataError(
                f"data.exclude names {summarize_list(unknown, separator=', ')}, which neither {source} nor {other} has"
            )
    exclude = [*data.exclude, *(read_names(data.exclude_file) if data.exclude_file else ())]
    excluded = set(map(names.find, exclude))
    kept = tuple(video for video in found.videos if video.name not in excluded)
    if not kept:
        raise DataError(f"{source}: data.exclude and data.exclude_file leave out every video")
    return VideoList(videos=kept, classes=found.classes)


def _listed(source: Path, data: DataConfig, classes: Sequence[str]) -> VideoList:
    """The videos of a list or of folders of classes.

    Raises:
        DataError: as for `read_list` and `read_folders`.
        ConfigError: no folder of videos is set.
    """
    if source.is_dir():
        return read_folders(source, classes=classes)
    if not data.videos:
        raise ConfigError(f"data.videos must name the folder that the paths in {source} are below")
    return read_list(source, root=data.videos, classes=classes)


def read_list(path: str | Path, *, root: str | Path, classes: Sequence[str] = ()) -> VideoList:
    """Read a list file, the usual form of Kinetics, Something-Something and Diving-48.

    A line is `PATH LABEL` or, with a comma anywhere, CSV: `PATH,LABEL`, with quotes around fields with commas. There is
    no header; empty lines are skipped. A label is a class name or, if no class has that name, a class index from 0.
    Files may have another video extension than in the list, which may also have none (`VideoNames`).

    Args:
        path: the list file.
        root: the folder that its paths are relative to.
        classes: class names by index; empty: the labels of the file, which are indices if all are integers (with names
            "0", "1", ...), else sorted names.

    Raises:
        DataError: unreadable or malformed list, unknown or too similar labels, repeated or missing videos, empty list.
    """
    path, root = Path(path), Path(root)
    lines = _parsed(path)
    names, labels = [name for name, _ in lines], [label for _, label in lines]
    if not classes and (alike := doubtful_labels(Counter(labels))):
        raise DataError(f"{path} cannot be used: {summarize_list(alike)}")
    known = _checked_classes(classes) or _classes_of(labels)
    numbers = _indices(path, labels, known)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {len(repeated)} videos are listed twice: {summarize_list(repeated, separator=', ')}")
    files = _located(path, root, names)
    check_distinct(dict(zip(names, files, strict=True)))
    videos = zip(names, files, numbers, strict=True)
    return VideoList(videos=tuple(LabelledVideo(*video) for video in videos), classes=known)


def read_folders(root: str | Path, *, classes: Sequence[str] = ()) -> VideoList:
    """Read one folder per class: root/CLASS/*.mp4 (or .mkv, ...), in sorted order.

    Args:
        root: the folder of the class folders; those whose name begins with a dot are ignored.
        classes: class names by index; empty: the folders' names, sorted.

    Raises:
        DataError: missing folder, unknown or too similar classes, classes without a folder or without videos.
    """
    root = Path(root)
    _check_root(root)
    folders = {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if not folders:
        raise DataError(f"{str(root)!r} has no folders of classes; it must hold CLASS/VIDEO{EXTENSIONS[0]}")
    if not classes and (alike := doubtful_labels(Counter(folders))):
        raise DataError(f"{str(root)!r} cannot be used: {summarize_list(alike)}")
    known = _checked_classes(classes) or tuple(sorted(folders))
    names = TextLookup(known)
    unknown = sorted(name for name in folders if names.find(name) is None)
    if unknown:
        raise DataError(f"{str(root)!r} has folders of unknown classes: {summarize_list(unknown, separator=', ')}")
    files_of: dict[str | None, list[Path]] = {}
    for name, folder in folders.items():
        files_of.setdefault(names.find(name), []).extend(videos_in(folder))
    videos, empty = [], []
    for label, name in enumerate(known):
        files = sorted(files_of.get(name, []))
        videos += [LabelledVideo(name=f"{file.parent.name}/{file.name}", path=file, label=label) for file in files]
        if not files:
            empty.append(name)
    if empty:
        raise DataError(
            f"{str(root)!r} has no video ({', '.join(EXTENSIONS)}) of {len(empty)} classes: "
            f"{summarize_list(empty, separator=', ')}"
        )
    return VideoList(videos=tuple(videos), classes=known)


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read class names by index from a text file with one name per line; empty lines are skipped.

    Raises:
        DataError: unreadable or empty file, or a duplicate name.
    """
    names = [line for _, line in _lines(Path(path))]
    if not names:
        raise DataError(f"{path} holds no class name")
    return _checked_classes(names)


def class_assignments(path: Path | None) -> list[str]:
    """The `--set` assignment that `--classes FILE` stands for; empty without a file."""
    return [] if path is None else [f"data.classes={list(read_class_names(path))!r}"]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the non-empty lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _parsed(path: Path) -> list[tuple[str, str]]:
    """Paths and labels, as written in the file."""
    pairs, faults = [], []
    for number, line in _lines(path):
        fields = next(csv.reader([line], skipinitialspace=True)) if "," in line else line.rsplit(None, 1)
        fields = [field.strip() for field in fields]
        if len(fields) == 2 and all(fields):
            pairs.append((fields[0], fields[1]))
        else:
            faults.append(f"line {number}: {line:.80}")
    if faults:
        raise DataError(f"{path}: {len(faults)} lines are not {LINE_FORM}: {summarize_list(faults)}")
    if not pairs:
        raise DataError(f"{path} lists no video; a line must be {LINE_FORM}")
    return pairs


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise DataError(f"classes are named twice: {summarize_list(repeated, separator=', ')}")
    return tuple(classes)


def _is_index(label: str) -> bool:
    return label.isascii() and label.isdecimal()


def _classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    if all(_is_index(label) for label in labels):
        return tuple(str(index) for index in range(max(int(label) for label in labels) + 1))
    return tuple(sorted(set(labels)))


def _indices(path: Path, labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    names, index = TextLookup(classes), {name: index for index, name in enumerate(classes)}
    distinct = dict.fromkeys(labels)
    known = {label: index[name] for label in distinct if (name := names.find(label)) is not None}
    by_number = {label: int(label) for label in distinct if _is_index(label) and int(label) < len(classes)}
    unknown = [label for label in distinct if label not in known and label not in by_number]
    if unknown:
        raise DataError(
            f"{path} has {len(unknown)} unknown labels: {summarize_list(unknown, separator=', ')}; it must be one of "
            f"{len(classes)} classes ({summarize_list(classes, limit=3, separator=', ')}) or an index "
            f"below {len(classes)}"
        )
    return [known.get(label, by_number.get(label, -1)) for label in labels]


def _located(list_file: Path, root: Path, names: Sequence[str]) -> list[Path]:
    """Find the file of every name; each folder is listed once, rather than testing hundreds of thousands of files."""
    _check_root(root)
    listings: dict[Path, tuple[Path, VideoNames]] = {}
    found: list[Path | None] = []
    for name in names:
        path = root / name
        if path.parent not in listings:
            listings[path.parent] = _files_of(path.parent)
        folder, files = listings[path.parent]
        file = files.find(path.name)
        found.append(None if file is None else folder / file)
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{list_file}: {len(missing)} of {len(names)} videos are not in {str(root)!r}: "
            f"{summarize_list(missing, separator=', ')}. Add the files, or remove these lines from a copy of the list"
        )
    return [path for path in found if path is not None]


def _files_of(folder: Path) -> tuple[Path, VideoNames]:
    """A folder as it is spelled on the disk, and names of its video files; none if it cannot be read."""
    try:
        folder = _on_disk(folder)
        return folder, file_names(videos_in(folder))
    except OSError:
        return folder, VideoNames(())


def _on_disk(folder: Path) -> Path:
    """A folder whose name may have another Unicode form there."""
    if folder.is_dir():
        return folder
    parent = _on_disk(folder.parent)
    return parent / (TextLookup(path.name for path in parent.iterdir()).find(folder.name) or folder.name)


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"there is no folder {str(root)!r} of videos")
