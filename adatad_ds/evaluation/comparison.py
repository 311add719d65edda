"""Runs side by side: their mAP, or their accuracy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.errors import DataError
from adatad_ds.evaluation.metrics_files import EVALUATED, METRICS_FILE, metrics_of_epochs

AT_TIOU = "mAP@"
COLUMNS = {"average_mAP": "average", "top1": "top-1", "top5": "top-5", "mean_class_top1": "mean of classes"}


def compare_runs(runs: Sequence[Path]) -> str:
    """A table with one line a run: average mAP, then mAP at each tIoU, of recognition the accuracies, in %.

    Args:
        runs: folders of runs. Of those that `adatad-ds evaluate` has not seen, the best evaluation in training counts.

    Raises:
        DataError: some were never evaluated.
    """
    found = [_metrics(run) for run in runs]
    missing = [str(run) for run, metrics in zip(runs, found, strict=True) if not metrics]
    if missing:
        raise DataError(f"not evaluated yet: {', '.join(missing)}; run adatad_ds/evaluate.py first")
    keys = [key for key in dict.fromkeys(key for metrics in found for key in metrics) if _title(key)]
    widths = [max(6, len(_title(key))) for key in keys]
    title = "mAP %" if all("average_mAP" in metrics for metrics in found) else "%"
    names = distinct_names(runs)
    first = max(len(title), *map(len, names))
    lines = ["  ".join([title.ljust(first), *(_title(key).rjust(w) for key, w in zip(keys, widths, strict=True))])]
    for name, metrics in zip(names, found, strict=True):
        cells = [f"{100 * metrics[key]:.2f}" if key in metrics else "-" for key in keys]
        lines.append("  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))]))
    return "\n".join(lines)


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where those are not distinct."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _title(key: str) -> str:
    """What a metric is called above its column; "": it has none."""
    return COLUMNS.get(key, key.removeprefix(AT_TIOU) if key.startswith(AT_TIOU) else "")


def _metrics(run: Path) -> dict[str, float]:
    """Metrics of a run; empty: it was never evaluated."""
    last = run / EVALUATED / METRICS_FILE
    files = [last] if last.is_file() else metrics_of_epochs(run).values()
    found = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return max(found, key=lambda metrics: metrics.get("average_mAP", metrics.get("top1", 0.0)), default={})
