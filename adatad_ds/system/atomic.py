"""Atomic writing of files: complete, or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY = ".writing_"  # prefix of names under which something is being written


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file under a temporary name, flush it to disk, then rename it."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.rename(path)


def flush(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
