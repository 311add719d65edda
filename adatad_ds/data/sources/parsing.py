"""Parsing of the files that owners of data sets publish: JSON, CSV, lines of text; numbers and times.

All functions raise `DataError`, which names the file and the place in it.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from adatad_ds.errors import DataError, summarize_list
from adatad_ds.system import json_text

TIMESTAMP = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")  # hours:minutes:seconds


def items(tree: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """The list of mappings under `key` of parsed JSON; `where`: the place, for the message."""
    found = tree.get(key)
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise DataError(f"{where}: {key} is {found!r:.60}, expected a list of mappings")
    return found


def decimal(tree: Mapping[str, Any], key: str, where: str) -> Decimal:
    """The exact number under `key` of parsed JSON; `where`: the place, for the message."""
    value = tree.get(key)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise DataError(f"{where}: {key} is {value!r}, expected a number")
    return Decimal(value)


def seconds(value: Any, place: str) -> float:
    """A finite number of seconds, given as a number or as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: {value!r}, expected a number of seconds")
    return number


def timestamp(text: str, place: str) -> float:
    """Seconds of a time hours:minutes:seconds, without rounding errors."""
    match = TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{place}: {text!r}, expected a time like 00:00:01.089")
    return float(3600 * int(match[1]) + 60 * int(match[2]) + Decimal(match[3]))


def read_json(path: Path, *, exact: bool = True) -> Mapping[str, Any]:
    """Read a JSON object; with `exact`, fractions become `Decimal`."""
    try:
        tree = json_text.read_json(path, parse_float=Decimal if exact else None)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, Mapping):
        raise DataError(f"{path} must hold an object at its top level")
    return tree


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Non-empty lines, each after its place for messages."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    yield from ((f"{path}, line {index}", line.strip()) for index, line in enumerate(lines, 1) if line.strip())


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file that must have these columns, each after its place for messages."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for column in columns:
                if column not in (reader.fieldnames or ()):
                    raise DataError(f"{path}, line 1: there is no column {column!r}")
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                for column in columns:
                    if row[column] is None:
                        raise DataError(f"{place}: the line ends before column {column!r}")
                yield place, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def find(sources: Sequence[Path], pattern: str) -> list[Path]:
    """Files that match a pattern, among the sources and anywhere in those that are folders."""
    paths = []
    for source in sources:
        if not source.exists():
            raise DataError(f"--source: there is no {str(source)!r}")
        paths += sorted(source.rglob(pattern)) if source.is_dir() else [source] * source.match(pattern)
    return list(dict.fromkeys(path for path in paths if path.is_file() and not path.name.startswith(".")))


def find_one(sources: Sequence[Path], pattern: str, otherwise: str = "") -> Path:
    """The only file that `find` finds; `otherwise`: alternatives, for the message."""
    paths = find(sources, pattern)
    if len(paths) != 1:
        found = f"hold {summarize_list([str(path) for path in paths], separator=', ')}" if paths else "do not hold it"
        raise DataError(f"--source: exactly one {pattern} is needed{otherwise}; {shown(sources)} {found}")
    return paths[0]


def shown(sources: Sequence[Path]) -> str:
    """The sources, for messages."""
    return ", ".join(str(source) for source in sources)
