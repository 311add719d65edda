"""Names of videos, as annotations, lists and results write them: which mean the same video, and lists of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adatad_ds.errors import DataError
from adatad_ds.system.json_text import read_json

EXTENSIONS = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".gif"),
    *(".h264", ".264", ".hevc", ".h265", ".265"),  # elementary streams, of cameras
)
PREFIX = "v_"  # of ActivityNet's files, which its annotations and classifiers' scores leave out


def without_extension(name: str) -> str:
    """`clip_01.mp4` as `clip_01`; a name without the extension of a video, such as `match.01`, as it is."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and (dot + suffix).lower() in EXTENSIONS else name


class VideoNames:
    """Names to look videos up by, whichever way they are written elsewhere.

    The same name is preferred; then one that differs by a video's extension, then one that also differs by
    ActivityNet's "v_"; of several, the first.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._tiers: tuple[dict[str, str], ...] = ({}, {}, {})
        for name in names:
            for tier, key in zip(self._tiers, _keys(name), strict=True):
                tier.setdefault(key, name)

    def find(self, name: str) -> str | None:
        """The known name of the video that `name` means; None where it is not known."""
        return next((tier[key] for tier, key in zip(self._tiers, _keys(name), strict=True) if key in tier), None)


def read_names(path: str | Path) -> list[str]:
    """Names of a list file: one a line, as OpenTAD's block lists have them, or a JSON list of texts, as ActivityNet's.

    Raises:
        DataError: unreadable, or no such list.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark at the beginning
        names = read_json(path) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the list of videos {str(path)!r}: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path} is no list of videos: it must be a name a line, or a JSON list of names")
    return [name.strip() for name in names if name.strip()]


def _keys(name: str) -> tuple[str, str, str]:
    stem = without_extension(name)
    return name, stem, stem.removeprefix(PREFIX)
