"""What a run's folder tells of its evaluations."""

from __future__ import annotations

import json

import pytest

from adatad_ds.evaluation.detections_file import DETECTIONS_FILE, read_results, write_results
from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.runs.folder import VERSIONS_FILE, RunFolder, versions
from adatad_ds.tasks.base import Evaluation
from tests.support.checkpoints import save

TRUTH = {"v": [(0.0, 10.0, "a")]}


@pytest.mark.parametrize(
    ("reached", "summary"),
    [
        ({}, None),
        ({4: 1}, "average mAP: 100.00 % at epoch 4, the last evaluated and the best"),
        ({4: 1, 6: 1}, "average mAP: 100.00 % at the last evaluated epoch 6; 100.00 % at the best epoch 4"),
        ({4: 0, 6: 1, 8: 0}, "average mAP: 0.00 % at the last evaluated epoch 8; 100.00 % at the best epoch 6"),
        ({4: 0, 10: 1}, "average mAP: 100.00 % at epoch 10, the last evaluated and the best"),
    ],
)
def test_last_and_best_epoch(reached, summary, tmp_path):
    run = RunFolder(tmp_path)
    for epoch, score in reached.items():
        results = {"v": [{"segment": [0, 10 * score], "label": "a", "score": 1.0}]}
        metrics = evaluate_detections(results, TRUTH, tiou=(0.5,))
        evaluation = Evaluation(
            metrics=metrics.to_dict(),
            table=metrics.table(),
            per_class=metrics.per_class_table(),
            save=lambda folder, results=results: write_results(folder / DETECTIONS_FILE, results),
            pictures={},
        )
        run.add_evaluation(epoch, evaluation)
        assert read_results(tmp_path / f"evaluations/epoch_{epoch:04d}" / DETECTIONS_FILE) == results
    assert run.summary() == summary


def test_metrics_of_the_best_checkpoint_alone(tmp_path):
    run = RunFolder(tmp_path)
    for epoch, score in ((4, 0.25), (6, 0.5)):
        found = {"average_mAP": score}
        evaluation = Evaluation(metrics=found, table="", per_class="", save=lambda folder: None, pictures={})
        run.add_evaluation(epoch, evaluation)
    store = run.checkpoints(keep=3)
    for step in (8, 12):
        save(store, step)
        assert run.metrics_of(store.folder / f"step_{step:08d}") is None
    store.mark_best(step=12)
    assert run.metrics_of(store.folder / "step_00000012") == {"average_mAP": 0.5}
    assert run.metrics_of(store.folder / "step_00000008") is None


def test_other_versions_are_named(tmp_path):
    run, saved = RunFolder(tmp_path), versions()
    assert run.version_changes() == ""  # nothing was saved
    (tmp_path / VERSIONS_FILE).write_text(json.dumps(saved))
    assert run.version_changes() == ""
    torch_now, saved["packages"]["torch"], saved["python"] = saved["packages"]["torch"], "2.0.0", "3.9.0"
    (tmp_path / VERSIONS_FILE).write_text(json.dumps(saved))
    now = versions()["python"]
    assert run.version_changes() == f"python 3.9.0 -> {now}, torch 2.0.0 -> {torch_now}"
