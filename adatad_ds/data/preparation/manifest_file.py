"""Writing of a manifest of prepared videos: line by line, by one process, whenever that is killed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from adatad_ds.data.decoding.prepared import MANIFEST, Entry, Header, Manifest, header_line, manifest_of
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.system.atomic import TEMPORARY, flush, write_text

LOCK = ".prepare_videos.lock"


@contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """Make the folder, and let only one process prepare videos in it.

    Raises:
        ConfigError: another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--out {folder}: another prepare-videos is at work in this folder") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def begin_manifest(folder: Path, header: Header) -> Manifest:
    """The folder's manifest, made if there is none; what a killed process left unfinished there is removed.

    Raises:
        ConfigError: the folder's videos are coded or scaled in another way.
        DataError: an unreadable manifest, or one of another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(f"{TEMPORARY}*"):
        unfinished.unlink(missing_ok=True)
    path = folder / MANIFEST
    if not path.exists():
        write_text(path, header_line(header))
    found = Manifest(path)
    if found.header != header:
        differing = ", ".join(
            f"{name} is {theirs}, not {vars(header)[name]}"
            for name, theirs in vars(found.header).items()
            if theirs != vars(header)[name]
        )
        raise ConfigError(f"--out {folder}: of its prepared videos, {differing}; give the same, or another folder")
    if path.stat().st_size != found.complete_bytes:
        os.truncate(path, found.complete_bytes)
    return found


def add_entry(folder: Path, entry: Entry) -> None:
    """Add a line to the folder's manifest, flushed to disk.

    Raises:
        OSError: it cannot be written.
    """
    with (folder / MANIFEST).open("ab") as file:
        file.write(json.dumps(asdict(entry)).encode() + b"\n")
    flush(folder / MANIFEST)


def must_be_originals(folder: Path) -> None:
    """Check that a folder holds no prepared videos.

    Raises:
        DataError: it does.
    """
    if manifest_of(folder) is not None:
        raise DataError(f"{folder} holds prepared videos; name the folder of their originals")
