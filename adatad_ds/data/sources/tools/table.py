"""A table of segments: CSV with the columns file, start, end, label, as spreadsheets and scripts write it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from adatad_ds.data.sources.parsing import find, shown
from adatad_ds.data.sources.tools.marks import Export, Mark
from adatad_ds.errors import DataError

COLUMNS = "file", "start", "end", "label"
OPTIONAL = "subset", "annotator", "tier"
SUBSETS = "training", "validation"
DELIMITERS = ",;\t"
CLOCK = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d(?:\.\d+)?)")  # [hours:]minutes:seconds


def read_table(sources: Sequence[Path], *, in_frames: bool) -> Export:
    """Read tables; a line with a file alone names a video without actions.

    Args:
        sources: `.csv` files, or folders that hold them.
        in_frames: start and end are the first and the last frame of the action, counted from 0, not seconds.

    Raises:
        DataError: no table, missing columns, or a line that is no segment.
    """
    paths = find(sources, "*.csv")
    if not paths:
        raise DataError(f"--source: {shown(sources)} hold no *.csv with the columns {', '.join(COLUMNS)}")
    marks, videos, subsets, notes = [], {}, {}, []
    for path in paths:
        delimiter, columns = _head(path)
        if extra := [column for column in columns if column and column not in COLUMNS + OPTIONAL]:
            notes.append(f"not used: columns of {path}: {', '.join(extra)}")
        for place, row in _rows(path, delimiter, columns):
            if not any(row.values()):
                continue
            if not row["file"]:
                raise DataError(f"{place}, column 'file': it is empty; every line needs the name of its video")
            videos[str(path), row["file"]] = None
            if subset := row.get("subset"):
                if subset not in SUBSETS:
                    raise DataError(f"{place}, column 'subset': {subset!r}, expected {' or '.join(SUBSETS)}")
                if subsets.setdefault(row["file"], subset) != subset:
                    raise DataError(f"{place}, column 'subset': {row['file']} is of {subsets[row['file']]} above")
            if any(row[column] for column in COLUMNS[1:]):
                marks.append(_mark(row, place, in_frames=in_frames))
    return Export(tuple(marks), tuple(videos), subsets, tuple(notes))


def _head(path: Path) -> tuple[str, list[str]]:
    """What separates the columns, and their names."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    found = {mark: [name.strip() for name in next(csv.reader([line], delimiter=mark), [])] for mark in DELIMITERS}
    delimiter = max(found, key=lambda mark: len(set(COLUMNS) & set(found[mark])))
    if missing := [column for column in COLUMNS if column not in found[delimiter]]:
        raise DataError(
            f"{path}, line 1: there is no column {missing[0]!r}; the first line must name the columns "
            f"{','.join(COLUMNS)} (also: {', '.join(OPTIONAL)}), and is {line.strip()!r:.80}"
        )
    return delimiter, found[delimiter]


def _rows(path: Path, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            next(reader)
            for cells in reader:
                place = f"{path}, line {reader.line_num}"
                if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
                    raise DataError(f"{place}: {len(cells)} cells, but {len(columns)} columns; quote what has a comma")
                padded = [*cells, *[""] * (len(columns) - len(cells))]
                yield place, {name: cell.strip() for name, cell in zip(columns, padded, strict=False)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _mark(row: dict[str, str], place: str, *, in_frames: bool) -> Mark:
    if not row["label"]:
        raise DataError(f"{place}, column 'label': it is empty; leave start and end empty, too, if there is no action")
    read = _frame if in_frames else _seconds
    start, end = (read(row[column], f"{place}, column {column!r}") for column in ("start", "end"))
    end += in_frames
    if end <= start:
        raise DataError(f"{place}, column 'end': {row['end']!r} is not after the start, {row['start']!r}")
    return Mark(
        video=row["file"],
        start=start,
        end=end,
        in_frames=in_frames,
        label=row["label"],
        place=place,
        tier=row.get("tier", ""),
        annotator=row.get("annotator", ""),
    )


def _seconds(text: str, place: str) -> float:
    if match := CLOCK.fullmatch(text):
        return 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3])
    if re.fullmatch(r"\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+", text):
        return float(text)
    comma = "; decimals take a point" if re.fullmatch(r"\d+,\d+", text) else ""
    raise DataError(f"{place}: {text!r}, expected seconds (3.5) or a time (1:02.5, 0:01:02.5){comma}")


def _frame(text: str, place: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise DataError(f"{place}: {text!r}, expected a frame, counted from 0 (--unit frames)")
    return int(text)
