"""JSON as users write it: a key that stands twice in an object is a fault, not an entry lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adatad_ds.errors import summarize_list


def read_json(path: Path, *, parse_float: Callable[[str], Any] | None = None) -> Any:
    """What a JSON file holds; byte order marks are read over.

    Args:
        path: the file, in UTF-8.
        parse_float: what makes fractions of their text; None: `float`.

    Raises:
        OSError: there is no such file.
        ValueError: neither JSON nor UTF-8, or an object names a key twice.
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
