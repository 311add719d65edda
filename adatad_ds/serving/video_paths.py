"""Which files the server may read: ordinary videos inside one folder, whatever a request calls them."""

from __future__ import annotations

from pathlib import Path

from adatad_ds.errors import DataError

HEAD_BYTES = 400
_TS_PACKETS = (0, 188, 376)


class OutsideError(DataError):
    """A path that leads to no file inside the folder; the message does not tell whether there is one outside."""


def file_inside(folder: Path, asked: str) -> Path:
    """The real path of a file inside a folder, given relative to it.

    Args:
        folder: what may be read.
        asked: by a request; `/` separates.

    Raises:
        OutsideError: there is no such file, or it is outside: an absolute path, `..`, a link that leads out.
    """
    nothing = OutsideError(f"the server's folder holds no file {asked!r}")
    parts = asked.replace("\\", "/").split("/")
    if not asked or "\0" in asked or asked.startswith(("/", "\\", "~")) or ".." in parts:
        raise nothing
    try:
        root = folder.resolve(strict=True)
        found = (root / asked).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise nothing from None
    if not found.is_relative_to(root) or not found.is_file():
        raise nothing
    return found


def check_video(path: Path) -> None:
    """Refuse what does not begin as a video container.

    Playlists and other texts that FFmpeg would open may name further files or addresses, which it would read.

    Raises:
        DataError: not the beginning of a known container or elementary stream.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    known = (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")  # MP4, MOV
        or head.startswith((b"\x1a\x45\xdf\xa3", b"FLV", b"\x30\x26\xb2\x75", b"OggS", b"\0\0\1", b"\0\0\0\1"))
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or all(head[at : at + 1] == b"\x47" for at in _TS_PACKETS)
    )
    if not known:
        raise DataError("not a video: it begins as none of MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV, Ogg")
