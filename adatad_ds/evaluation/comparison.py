"""Evaluated runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.errors import DataError

METRICS = Path("evaluate") / "metrics.json"  # in a run's folder, as evaluate.py writes it


def compare_runs(runs: Sequence[Path]) -> str:
    """A table with one line a run: average mAP, then mAP at each tIoU of the first run, in %.

    Args:
        runs: folders of evaluated runs.

    Raises:
        DataError: some are not evaluated yet.
    """
    missing = [str(run) for run in runs if not (run / METRICS).is_file()]
    if missing:
        raise DataError(f"not evaluated yet: {', '.join(missing)}; run adatad_ds/evaluate.py first")
    metrics = {run.name: json.loads((run / METRICS).read_text(encoding="utf-8")) for run in runs}
    names = [name for name in next(iter(metrics.values())) if name.startswith("mAP@")]
    width = max(map(len, metrics))
    lines = [f"{'mAP %':{width}}  average  " + "  ".join(f"{name.removeprefix('mAP@'):>6}" for name in names)]
    for run, values in metrics.items():
        row = "  ".join(f"{100 * values[name]:6.2f}" for name in names)
        lines.append(f"{run:{width}}  {100 * values['average_mAP']:7.2f}  {row}")
    return "\n".join(lines)
