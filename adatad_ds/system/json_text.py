"""JSON files: users' are read so that a duplicate key is an error, own ones are written atomically."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adatad_ds.errors import summarize_list
from adatad_ds.system.atomic import write_text


def read_json(path: Path, *, parse_float: Callable[[str], Any] | None = None) -> Any:
    """Parse a JSON file; a byte order mark is skipped.

    Args:
        path: the file, in UTF-8.
        parse_float: parser of numbers with a fraction; None: `float`.

    Raises:
        OSError: the file cannot be read.
        ValueError: neither JSON nor UTF-8, or a duplicate key in an object.
    """
    twice: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    tree = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=mapping, parse_float=parse_float)
    if twice:
        names = summarize_list([repr(key) for key in twice], separator=", ")
        raise ValueError(f"{names} stands twice, and JSON keeps only the last; merge the entries")
    return tree


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file that people can read, atomically."""
    write_text(path, json.dumps(tree, indent=1) + "\n")
