import json
from pathlib import Path

import pytest

from adatad_ds.errors import DataError
from adatad_ds.evaluation.comparison import compare_runs


def write(path: Path, average: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"average_mAP": average, "mAP@0.5": average + 0.1}))


def test_a_run_that_is_not_evaluated_counts_with_its_best_evaluation_in_training(tmp_path):
    write(tmp_path / "a" / "evaluate" / "metrics.json", 0.5)
    write(tmp_path / "a" / "evaluations" / "epoch_0009" / "metrics.json", 0.9)
    for epoch, average in ((4, 0.3), (5, 0.4), (6, 0.2)):
        write(tmp_path / "long_name" / "evaluations" / f"epoch_{epoch:04d}" / "metrics.json", average)
    assert compare_runs([tmp_path / "a", tmp_path / "long_name"]).splitlines() == [
        "mAP %      average     0.5",
        "a            50.00   60.00",
        "long_name    40.00   50.00",
    ]


def test_runs_that_were_never_evaluated_are_named(tmp_path):
    write(tmp_path / "a" / "evaluate" / "metrics.json", 0.5)
    with pytest.raises(DataError, match=r"not evaluated yet: .*b; run adatad_ds/evaluate.py first"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
