"""Atomic writing of files: complete, or not there at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".writing_"  # prefix of names under which something is being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path in the same folder to write to; at the end of the block it is flushed to disk and renamed to `path`.

    If the block ends in an error, or is interrupted, `path` is left as it was and the unfinished file is removed.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # the name with a prefix could be too long
    temporary = path.with_name(f"{TEMPORARY}{digest}")
    try:
        yield temporary
        flush(temporary)
        temporary.rename(path)
    finally:  # of a complete file, nothing is left here
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; what UTF-8 cannot say, as of file names in another encoding, as escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def flush(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
