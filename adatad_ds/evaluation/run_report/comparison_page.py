"""Runs side by side, as a page: metrics and their differences, curves over each other, costs, settings that differ."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from adatad_ds.errors import DataError
from adatad_ds.evaluation.comparison import distinct_names
from adatad_ds.evaluation.metrics_files import EVALUATED, PER_CLASS_FILE
from adatad_ds.evaluation.run_report import page
from adatad_ds.evaluation.run_report.charts import line_chart
from adatad_ds.evaluation.run_report.facts import Run, read_run

COSTS = {  # of `Run.costs`: what it is
    "steps": "steps",
    "epochs": "epochs",
    "sec_per_step": "s per step",
    "sec_per_epoch": "s per epoch",
    "frames_per_sec": "frames per second",
    "memory_gb": "peak GB per rank",
}


def write_comparison(path: Path, folders: Sequence[Path], *, report: Callable[[str], None]) -> None:
    """Write the page; differences are from the first run.

    Args:
        path: the `.html` file.
        folders: of at least two runs.
        report: called with lines for the user.

    Raises:
        DataError: fewer than two runs, or a folder that is none.
    """
    if len(folders) < 2:
        raise DataError("--page compares two runs or more: name another one")
    runs = [read_run(folder) for folder in folders]
    names = distinct_names(folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.write_html(
        path,
        f"{' and '.join(names)}: comparison",
        [
            page.heading(", ".join(names), 1),
            page.paragraph(f"Differences are from {names[0]}.", grey=True),
            *_metrics(runs, names),
            *_curves(runs, names),
            *_classes(runs, names),
            *_costs(runs, names),
            *_settings(runs, names),
        ],
    )
    report(f"open in a browser: {path}")


def _final(run: Run) -> tuple[str, dict[str, float]]:
    """Where the run's metrics are from, and they: evaluated, or else of the best epoch in training."""
    if run.evaluated is not None:
        return "adatad-ds evaluate", dict(run.evaluated)
    best = run.best_epoch()
    return ("not evaluated", {}) if best is None else (f"epoch {best}, in training", dict(run.evaluations[best]))


def _metrics(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    found = [_final(run) for run in runs]
    keys = list(dict.fromkeys(key for _, metrics in found for key in metrics))
    first = found[0][1]
    rows = []
    for index, (name, (source, metrics)) in enumerate(zip(names, found, strict=True)):
        cells = [_with_difference(metrics.get(key), first.get(key) if index else None) for key in keys]
        rows.append([escape(name), escape(source), *cells])
    notes = [] if len({source for source, _ in found}) == 1 else ["The metrics are not all from the same kind of run."]
    header = ["run", "from", *(key.replace("_", " ") for key in keys)]
    return [page.heading("Metrics (%)"), page.bullets(notes), page.table(header, rows, texts=(1,))]


def _with_difference(value: float | None, other: float | None) -> str:
    """A share in %, and the difference in points."""
    if value is None or other is None:
        return page.percent(value)
    points = 100 * (value - other)
    return f'{page.percent(value)} <span class="{"better" if points >= 0 else "worse"}">{points:+.2f}</span>'


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    headline = next((name for run in runs if (name := run.headline())), "average_mAP")
    by_name = list(zip(names, runs, strict=True))
    scores = {name: run.metric_curve(headline) for name, run in by_name}
    losses, seconds = ({name: run.curve(key) for name, run in by_name} for key in ("loss/total", "time/step_sec"))
    if all(len(points) < 2 for points in scores.values()):
        scores = {}  # the table has them
    drawn = [
        line_chart(headline.replace("_", " "), scores, along="epoch", unit="%", scale=100),
        line_chart("Loss", losses, along="step"),
        line_chart("Time of a step", seconds, along="step", unit="s"),
    ]
    return [page.heading("Curves"), page.charts(drawn)] if any(drawn) else []


def _classes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """AP of each class, the greatest differences first."""
    found = [_class_aps(run) for run in runs]
    if not all(found):
        return []
    shared = [label for label in found[0] if all(label in aps for aps in found)]
    shared.sort(key=lambda label: -max(abs(aps[label] - found[0][label]) for aps in found))
    rows = [
        [escape(label), page.percent(found[0][label])]
        + [_with_difference(aps[label], found[0][label]) for aps in found[1:]]
        for label in shared
    ]
    return [page.heading("Average AP of each class (%)"), page.table(["class", *names], rows)]


def _class_aps(run: Run) -> dict[str, float]:
    path = run.folder / EVALUATED / PER_CLASS_FILE
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["class"]: float(row["average_AP"]) for row in csv.DictReader(file) if "average_AP" in row}


def _costs(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    costs = [run.costs() for run in runs]
    rows = [
        [escape(what), *(f"{of[key]:,.4g}" if key in of else "-" for of in costs)]
        for key, what in COSTS.items()
        if any(key in of for of in costs)
    ]
    return [page.heading("Time and memory"), page.table(["", *names], rows)] if rows else []


def _settings(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    rows = []
    for key in keys:
        values = [json.dumps(run.settings.get(key)) for run in runs]
        if len(set(values)) > 1:
            rows.append([escape(key), *map(escape, values)])
    missing = "" if rows else "All settings are the same."
    texts = range(1, 1 + len(names))
    return [
        page.heading("Settings that differ"),
        page.paragraph(missing),
        page.table(["setting", *names], rows, texts=texts),
        page.heading("To run them again"),
        *(page.code(f"# {name}\n{run.command()}") for name, run in zip(names, runs, strict=True) if run.command()),
    ]
