"""Detections of whatever origin: the metrics of evaluation, and what of them cannot be measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from adatad_ds.distributed.world import World
from adatad_ds.errors import UserError
from adatad_ds.evaluate import make_parser, run
from adatad_ds.evaluation.metrics import evaluate_detections
from tests.support.detections import record

TRUTH = {"one": [(0.0, 4.0, "a"), (5.0, 9.0, "b")], "two": [(1.0, 3.0, "a")]}
RESULTS = {
    "v_one": [record(0, 4, 0.9), record(5, 8, 0.8, "b"), record(5, 9, 0.3, "a")],
    "two.mp4": [record(1, 2.2, 0.5), record(7, 8, 0.9, "other")],
}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    database = {
        name: {
            "subset": "test",
            "duration": 10.0,
            "annotations": [{"segment": [start, end], "label": label} for start, end, label in actions],
        }
        for name, actions in TRUTH.items()
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    return path


def evaluate(*arguments: object) -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    run(make_parser().parse_args([str(argument) for argument in arguments]), world=world)


def detections(tmp_path: Path, results: object = RESULTS) -> Path:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"results": results}))
    return path


def test_their_metrics(tmp_path, annotations, capsys):
    command = [detections(tmp_path), "--annotations", annotations, "--subset", "test", "--per-class"]
    evaluate(*command, "--set", "test.tiou=[0.5,0.75]", "--set", "test.recall_topk=[1]")
    named = {"one": RESULTS["v_one"], "two": RESULTS["two.mp4"]}
    wanted = evaluate_detections(named, TRUTH, tiou=(0.5, 0.75), recall_topk=(1,))
    written = json.loads((tmp_path / "evaluate/metrics.json").read_text())
    assert written == wanted.to_dict()
    assert 0 < written["mAP@0.75"] < written["mAP@0.5"]
    shown = capsys.readouterr().out
    assert wanted.table() in shown
    assert wanted.per_class_table() in shown
    assert "; such detections are not counted: 'other' (1)" in shown
    assert (tmp_path / "evaluate/detections.png").exists()


def test_actions_beyond_the_end_of_their_video_count_as_published(tmp_path, annotations):
    """As in every evaluation: THUMOS14 has some."""
    annotations.write_text(annotations.read_text().replace('"duration": 10.0', '"duration": 8.0'))
    theirs = {"one": [record(0, 4, 0.9), record(5, 9, 0.9, "b")], "two": [record(1, 3, 0.9)]}
    command = [detections(tmp_path, theirs), "--annotations", annotations, "--subset", "test"]
    evaluate(*command, "--set", "test.tiou=[0.99]")
    assert json.loads((tmp_path / "evaluate/metrics.json").read_text())["average_mAP"] == 1


def test_detections_of_any_action(tmp_path, annotations, capsys):
    alike = {name: [found | {"label": "action"} for found in records] for name, records in RESULTS.items()}
    evaluate(detections(tmp_path, alike), "--annotations", annotations, "--subset", "test")
    assert json.loads((tmp_path / "evaluate/metrics.json").read_text())["mAP@0.3"] == pytest.approx(1, abs=0.3)
    assert "whatever its class (2 are annotated)" in capsys.readouterr().out


def test_labels_in_another_form_of_unicode(tmp_path, annotations, capsys):
    annotations.write_text(annotations.read_text().replace('"a"', '"h\u00f6her"'), encoding="utf-8")
    theirs = {"one": [record(0, 4, 0.9, "ho\u0308her")], "two": [record(1, 3, 0.8, "h\u00f6her")]}
    evaluate(detections(tmp_path, theirs), "--annotations", annotations, "--subset", "test")
    assert json.loads((tmp_path / "evaluate/metrics.json").read_text())["mAP@0.3"] == 0.5  # nothing of the other class
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--annotations FILE [--subset NAME], or the --recipe"),
        (("--annotations", "A"), "has no video of subset 'validation'; its subsets: test. Give one of these"),
        (("--annotations", "A", "--subset", "test", "--set", "test.sigma=0.5"), "holds finished detections; allowed: "),
    ],
)
def test_what_is_missing(tmp_path, annotations, arguments, message):
    given = [annotations if argument == "A" else argument for argument in arguments]
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(detections(tmp_path), *given)


def test_annotations_of_other_videos(tmp_path, annotations):
    path = detections(tmp_path, {"three": [record(0, 1, 0.5)]})
    with pytest.raises(UserError, match="have no video in common"):
        evaluate(path, "--annotations", annotations, "--subset", "test")
