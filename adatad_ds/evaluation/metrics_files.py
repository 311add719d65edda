"""An evaluation's numbers on disk, and where they lie in a run's folder; without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adatad_ds.evaluation.tables import write_table
from adatad_ds.system.json_text import write_json

if TYPE_CHECKING:
    from adatad_ds.evaluation.accuracy import Recognition
    from adatad_ds.evaluation.metrics import Metrics

METRICS_FILE = "metrics.json"
PER_CLASS_FILE = "per_class.csv"
EVALUATED = "evaluate"  # folder of a run, as evaluate.py fills it
HEADLINES = {"average_mAP": "average mAP", "top1": "top-1 accuracy"}  # metrics that epochs and runs are compared by


def write_metrics(folder: Path, measured: Metrics | Recognition) -> None:
    """Write the metrics, and a table of all classes."""
    write_json(folder / METRICS_FILE, measured.to_dict())
    rows = measured.per_class()
    write_table(folder / PER_CLASS_FILE, rows, columns=list(rows[0]))


def epoch_folder(run: Path, epoch: int) -> Path:
    """Where a run keeps what an epoch's evaluation has found."""
    return run / "evaluations" / f"epoch_{epoch:04d}"


def metrics_of_epochs(run: Path) -> dict[int, Path]:
    """The metrics file of each epoch that a run's training has evaluated, in their order."""
    files = sorted((run / "evaluations").glob(f"epoch_*/{METRICS_FILE}"))
    return {int(file.parent.name.removeprefix("epoch_")): file for file in files}
