"""Report of an error analysis: report.html (self-contained), report.md, a CSV of each table, and the figures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adatad_ds.evaluation.diagnosis.diagnosis import BANDS, BINS, Diagnosis
from adatad_ds.evaluation.diagnosis.inputs import Source
from adatad_ds.evaluation.diagnosis.matching import LOW_TIOU, Kind
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.tables import write_table
from adatad_ds.system.atomic import write_text

HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
MOST_MISTAKEN = 15  # pairs of labels in the report; the CSV has all

Row = Mapping[str, str | int | float | None]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; }
th { white-space: nowrap; } th:first-child, td:first-child, td.text { text-align: left; }
"""


@dataclass(frozen=True)
class Table:
    """Rows with equal keys; floats are shares from 0 to 1, shown in %.

    Attributes:
        name: name of the CSV, without extension.
        rows: all rows, for the CSV.
        columns: columns of the CSV.
        shown: those of the report.
        most: maximum number of rows in the report.
    """

    name: str
    rows: Sequence[Row]
    columns: tuple[str, ...]
    shown: tuple[str, ...]
    most: int | None = None

    def header(self) -> list[str]:
        """Names of the shown columns, with % for shares."""
        shares = {key for row in self.rows for key, value in row.items() if isinstance(value, float)}
        return [f"{column} %" if column in shares else column for column in self.shown]

    def cells(self) -> list[list[str]]:
        """Cells of the shown rows, as text."""
        return [[_shown(row[column]) for column in self.shown] for row in self.rows[: self.most]]


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, a picture, a table."""

    title: str
    text: str
    table: Table
    picture: str | None = None


def write_report(
    folder: Path, diagnosis: Diagnosis, *, source: Source, bins: str, report: Callable[[str], object]
) -> None:
    """Write all files, replacing those of an earlier analysis: tables first, then figures, then the reports.

    Args:
        folder: output folder; created if needed.
        diagnosis: results of the analysis.
        source: shown at the top of the report.
        bins: name of the size bins, in BINS.
        report: called with a message for each figure that could not be drawn; the reports omit these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = _sections(diagnosis, bins)
    for section in sections:
        write_table(folder / f"{section.table.name}.csv", section.table.rows, columns=section.table.columns)
    from adatad_ds.evaluation.diagnosis import plots  # here, as matplotlib takes half a second

    pictures: dict[str, Callable[[Path], None]] = {
        "profile.png": lambda path: plots.draw_profile(path, diagnosis),
        "gains.png": lambda path: plots.draw_gains(path, diagnosis),
        "missed.png": lambda path: plots.draw_missed(path, diagnosis, BINS[bins]),
        "classes.png": lambda path: plots.draw_classes(path, diagnosis),
    }
    for name, draw in pictures.items():
        path = folder / name
        path.unlink(missing_ok=True)
        try_to_draw(str(path), partial(draw, path), report=report)
    head = _head(diagnosis, source)
    sections = [s if s.picture and (folder / s.picture).exists() else replace(s, picture=None) for s in sections]
    write_text(folder / MARKDOWN_FILE, _markdown(head, source.notes, sections))
    write_text(folder / HTML_FILE, _html(head, source.notes, sections, folder))


def summary(diagnosis: Diagnosis) -> str:
    """Average mAP, and its gain from fixing each type of error, one line each."""
    lines = [f"average mAP {100 * diagnosis.metrics.average_map:.2f} %", "", f"{'':22}{'count':>9}  removed    fixed"]
    for gain in diagnosis.gains:
        removed = " " * 9 if gain.removed is None else f"{100 * gain.removed.mean():+9.2f}"
        lines.append(f"{gain.name:22}{gain.detections:9,}{removed}{100 * gain.fixed.mean():+9.2f}")
    return "\n".join(lines)


def _head(diagnosis: Diagnosis, source: Source) -> list[str]:
    metrics = diagnosis.metrics
    by_tiou = ", ".join(
        f"{100 * value:.2f} % at {t:g}" for t, value in zip(metrics.tiou, metrics.map_by_tiou, strict=True)
    )
    best = max(diagnosis.gains[: len(Kind) - 1], key=lambda gain: gain.fixed.mean())
    return [
        f"{len(diagnosis.kinds):,} detections in {len(source.videos):,} videos (subset {source.subset}) with "
        f"{len(diagnosis.missed):,} segments of {len(metrics.classes):,} classes. Detections: {source.detections}; "
        f"annotations: {source.annotations}.",
        f"Average mAP {100 * metrics.average_map:.2f} % (mAP {by_tiou}).",
        f"The costliest kind of false positive is {best.name}: fixing it would raise average mAP by "
        f"{100 * best.fixed.mean():.2f} points. {diagnosis.missed.sum():,} segments "
        f"({100 * diagnosis.missed.mean():.1f} %) are missed at tIoU {diagnosis.tiou:g}.",
    ]


def _sections(diagnosis: Diagnosis, bins: str) -> list[Section]:
    tiou, low = f"{diagnosis.tiou:g}", f"{LOW_TIOU:g}"
    kinds = (
        "A detection is judged by the segment of its video, of any label, that it overlaps most. True positive: "
        f"matched at tIoU {tiou} or more. Double detection: {tiou} or more, own label, but already matched. "
        f"Wrong label: {tiou} or more, another label. Localisation: {low} to {tiou}, own label. Confusion: {low} "
        f"to {tiou}, another label. Background: less than {low}. G is the number of a class's ground-truth segments; "
        "the first band holds each class's G best detections."
    )
    gains = (
        "Percentage points of average mAP. Removed: without these detections, as in DETAD. Mended: corrected to the "
        "right segment and label if no other detection has found that segment, else removed. Missed segments: found "
        f"exactly, with the highest scores. Counts are at tIoU {tiou}, gains are averaged over the thresholds of "
        "average mAP."
    )
    missed = (
        f"Segments without a true positive at tIoU {tiou} where the (normalised) precision of their class is above "
        f"{100 * diagnosis.min_precision:g} %. Sizes are DETAD's for "
        f"{'THUMOS14' if bins == 'thumos14' else 'ActivityNet'}."
    )
    mistaken = (
        f"Detections whose segment has another label (wrong label or confusion), among each class's G and {BANDS} G "
        f"best: the {MOST_MISTAKEN} most common pairs; mistaken.csv has all."
    )
    classes = (
        f"Kinds of each class's G best detections at tIoU {tiou}, and its missed segments. Of many classes, the figure "
        "shows only the best and the worst."
    )
    return [
        Section("False positives by kind", kinds, _profile_table(diagnosis), "profile.png"),
        Section("mAP gained by fixing each error type", gains, _gains_table(diagnosis), "gains.png"),
        Section("Missed segments", missed, _missed_table(diagnosis, bins), "missed.png"),
        Section("Labels mistaken for each other", mistaken, _mistaken_table(diagnosis)),
        Section("Classes", classes, _class_table(diagnosis), "classes.png"),
    ]


def _profile_table(diagnosis: Diagnosis) -> Table:
    titles = tuple(kind.title for kind in Kind)
    rows = []
    for band, counts in enumerate(diagnosis.profile().tolist(), start=1):
        total = sum(counts)
        shares = {title: count / total if total else None for title, count in zip(titles, counts, strict=True)}
        rows.append({"band": f"{band} G", "detections": total, **shares})
    columns = ("band", "detections", *titles)
    return Table("profile", rows, columns, columns)


def _gains_table(diagnosis: Diagnosis) -> Table:
    thresholds = [f"{tiou:g}" for tiou in diagnosis.metrics.tiou]
    rows = []
    for gain in diagnosis.gains:
        row: dict[str, str | int | float | None] = {"error": gain.name, "count": gain.detections}
        for how, values in (("removed", gain.removed), ("fixed", gain.fixed)):
            row[how] = None if values is None else float(values.mean())
            for index, tiou in enumerate(thresholds):
                row[f"{how}@{tiou}"] = None if values is None else float(values[index])
        rows.append(row)
    return Table("gains", rows, tuple(rows[0]), ("error", "count", "removed", "fixed"))


def _missed_table(diagnosis: Diagnosis, bins: str) -> Table:
    rows = [
        {
            "characteristic": row.characteristic,
            "size": row.size,
            "range": row.range,
            "ground truth": row.ground_truth,
            "missed": row.missed,
            "missed share": row.missed / row.ground_truth if row.ground_truth else None,
        }
        for row in diagnosis.missed_by(BINS[bins])
    ]
    return Table("missed", rows, tuple(rows[0]), tuple(rows[0]))


def _mistaken_table(diagnosis: Diagnosis) -> Table:
    columns = ("detected as", "annotated as", "among G", f"among {BANDS} G")
    rows: list[Row] = [dict(zip(columns, pair, strict=True)) for pair in diagnosis.mistaken()]
    return Table("mistaken", rows, columns, columns, most=MOST_MISTAKEN)


def _class_table(diagnosis: Diagnosis) -> Table:
    """All classes, by decreasing average AP."""
    metrics = diagnosis.metrics
    aps = [f"AP@{tiou:g}" for tiou in metrics.tiou]
    kinds, missed = diagnosis.class_kinds().tolist(), diagnosis.class_missed().tolist()
    rows = []
    for index, measured in enumerate(metrics.per_class()):
        counts = {kind.title: kinds[index][kind] for kind in Kind}
        share = missed[index] / int(metrics.truths[index])
        rows.append({**measured, **counts, "missed": missed[index], "missed share": share})
    rows.sort(key=lambda row: -row["average_AP"])
    columns = tuple(rows[0])
    return Table("per_class", rows, columns, tuple(column for column in columns if column not in aps))


def _shown(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def _markdown(head: Sequence[str], notes: Sequence[str], sections: Sequence[Section]) -> str:
    parts = ["# Error analysis", *map(_unmarked, head)]
    parts += ["\n".join(f"- {_unmarked(note)}" for note in notes)] if notes else []
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [f"![{section.title}]({section.picture})"] if section.picture else []
        header = section.table.header()
        cells = ([_unmarked(cell) for cell in row] for row in section.table.cells())
        rows = [header, ["---", *("---:" for _ in header[1:])], *cells]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _unmarked(text: str) -> str:
    """Escape a text for Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>&$~|])", r"\\\1", " ".join(text.split()))


def _html(head: Sequence[str], notes: Sequence[str], sections: Sequence[Section], folder: Path) -> str:
    parts = ["<h1>Error analysis</h1>", *(f"<p>{html.escape(line)}</p>" for line in head)]
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>")
    for section in sections:
        parts += [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.text)}</p>"]
        if section.picture:
            data = base64.b64encode((folder / section.picture).read_bytes()).decode()
            parts.append(f'<p><img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}"/></p>')
        parts.append(_html_table(section.table))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"/><title>Error analysis</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    header = "".join(f"<th>{html.escape(name)}</th>" for name in table.header())
    rows = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.cells())
    head = f"<thead><tr>{header}</tr></thead>"
    return f'<div class="wide"><table id="{table.name}">{head}<tbody>\n{rows}\n</tbody></table></div>'
