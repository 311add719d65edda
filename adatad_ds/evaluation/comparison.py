"""Runs side by side: their mAP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.errors import DataError
from adatad_ds.evaluation.metrics_files import EVALUATED, METRICS_FILE, metrics_of_epochs


def compare_runs(runs: Sequence[Path]) -> str:
    """A table with one line a run: average mAP, then mAP at each tIoU of the first run, in %.

    Args:
        runs: folders of runs. Of those that `adatad-ds evaluate` has not seen, the best evaluation in training counts.

    Raises:
        DataError: some were never evaluated.
    """
    found = {run: _metrics(run) for run in runs}
    missing = [str(run) for run, metrics in found.items() if not metrics]
    if missing:
        raise DataError(f"not evaluated yet: {', '.join(missing)}; run adatad_ds/evaluate.py first")
    metrics = {run.name: values for run, values in found.items()}
    names = [name for name in next(iter(metrics.values())) if name.startswith("mAP@")]
    width = max(map(len, metrics))
    lines = [f"{'mAP %':{width}}  average  " + "  ".join(f"{name.removeprefix('mAP@'):>6}" for name in names)]
    for run, values in metrics.items():
        row = "  ".join(f"{100 * values[name]:6.2f}" for name in names)
        lines.append(f"{run:{width}}  {100 * values['average_mAP']:7.2f}  {row}")
    return "\n".join(lines)


def _metrics(run: Path) -> dict[str, float]:
    """Metrics of a run; empty: it was never evaluated."""
    last = run / EVALUATED / METRICS_FILE
    files = [last] if last.is_file() else metrics_of_epochs(run).values()
    found = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return max(found, key=lambda metrics: metrics["average_mAP"], default={})
