import json
from pathlib import Path

import pytest

from adatad_ds.errors import DataError
from adatad_ds.evaluation.comparison import compare_runs


def write(path: Path, average: float) -> None:
    write_metrics(path, {"average_mAP": average, "mAP@0.5": average + 0.1, "recall@0.5@1": 1.0})


def write_metrics(path: Path, metrics: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metrics))


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


def test_runs_of_one_name_have_a_line_each(tmp_path, monkeypatch):
    """And one is called by its folder's name, however it is given."""
    write(tmp_path / "a" / "run" / "evaluate" / "metrics.json", 0.5)
    write(tmp_path / "b" / "run" / "evaluate" / "metrics.json", 0.6)
    monkeypatch.chdir(tmp_path)
    assert compare_runs([Path("a/run"), Path("b/run")]).splitlines()[1:] == [
        "a/run    50.00   60.00",
        "b/run    60.00   70.00",
    ]
    monkeypatch.chdir("a/run")
    assert compare_runs([Path(".")]).splitlines()[1] == "run      50.00   60.00"


def test_runs_with_other_thresholds_and_other_tasks(tmp_path):
    """Of recognition, the accuracies; its best evaluation in training is that of the best top-1."""
    write(tmp_path / "a" / "evaluate" / "metrics.json", 0.5)
    write_metrics(tmp_path / "b" / "evaluate" / "metrics.json", {"average_mAP": 0.4, "mAP@0.75": 0.3})
    assert compare_runs([tmp_path / "a", tmp_path / "b"]).splitlines() == [
        "mAP %  average     0.5    0.75",
        "a        50.00   60.00       -",
        "b        40.00       -   30.00",
    ]
    for epoch, top1 in ((1, 0.7), (2, 0.9), (3, 0.8)):
        path = tmp_path / "c" / "evaluations" / f"epoch_{epoch:04d}" / "metrics.json"
        write_metrics(path, {"top1": top1, "top5": 1.0, "mean_class_top1": 0.25})
    assert compare_runs([tmp_path / "c"]).splitlines() == [
        "%   top-1   top-5  mean of classes",
        "c   90.00  100.00            25.00",
    ]
