"""Names of videos in annotations, lists and results: matching of different spellings, and lists of names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adatad_ds.errors import DataError
from adatad_ds.system.json_text import read_json
from adatad_ds.system.unicode_text import composed

EXTENSIONS = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".gif"),
    *(".h264", ".264", ".hevc", ".h265", ".265"),  # elementary streams, e.g. of cameras
)
PREFIX = "v_"  # of ActivityNet's files, omitted in its annotations and classifier scores


def without_extension(name: str) -> str:
    """Remove a video extension: `clip_01.mp4` to `clip_01`; other names, such as `match.01`, are unchanged."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and (dot + suffix).lower() in EXTENSIONS else name


class VideoNames:
    """Lookup of video names that may be written differently elsewhere.

    An exact match is preferred, then one in another Unicode form (`composed`), then one that differs by a video
    extension, then one that also differs by ActivityNet's "v_"; of several, the first. So `talk.mov` is `talk.mov.mp4`,
    where that is there, rather than `talk.mkv`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = dict.fromkeys(names)
        self._tables: tuple[dict[str, str], ...] = ({}, {}, {}, {})
        for name in self._exact:
            for table, key in zip(self._tables, _keys(name), strict=True):
                table.setdefault(key, name)

    def find(self, name: str) -> str | None:
        """The known name that matches `name`; None if there is none."""
        if name in self._exact:
            return name
        full, stem, bare, bare_stem = _keys(name)
        names, stems, bare_names, bare_stems = self._tables
        tried = (
            *((names, full), (stems, full), (stems, stem), (names, stem)),
            *((bare_stems, bare), (bare_stems, bare_stem), (bare_names, bare_stem)),
        )
        return next((table[key] for table, key in tried if key in table), None)


def read_names(path: str | Path) -> list[str]:
    """Read a list of names: one per line, as in OpenTAD's block lists, or a JSON list of strings, as in ActivityNet's.

    Raises:
        DataError: unreadable or malformed list.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
        names = read_json(path) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the list of videos {str(path)!r}: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path} is not a list of videos: it must have one name per line, or be a JSON list of names")
    return [name.strip() for name in names if name.strip()]


def _keys(name: str) -> tuple[str, str, str, str]:
    """With and without its extension; the same without "v_"."""
    name = composed(name)
    stem = without_extension(name)
    return name, stem, name.removeprefix(PREFIX), stem.removeprefix(PREFIX)
