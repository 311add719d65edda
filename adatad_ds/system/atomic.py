"""Files that are there in full or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY = ".writing_"  # how names begin under which something is written


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 under a temporary name, flush it to the disk, then give it its name."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.rename(path)


def flush(path: Path) -> None:
    """Have the disk hold what a file or folder has by now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
