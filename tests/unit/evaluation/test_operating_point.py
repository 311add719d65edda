"""The score of the best F1: by hand, against every threshold, and kept with what was evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.evaluation.operating_point import SHOWN_SCORE, OperatingPoint, ShownFrom, best_operating_point
from adatad_ds.runs.checkpoint import (
    OPERATING_POINTS_FILE,
    CheckpointStore,
    read_operating_point,
    write_operating_point,
)
from tests.support.detections import record

POINT = OperatingPoint(score=0.125, f1=0.5, precision=0.75, recall=0.375, tiou=0.5)


def test_by_hand():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "b")], "w": [(0.0, 10.0, "a")]}
    results = {
        "v": [record(0, 10, 0.21), record(20, 30, 0.2, "b"), record(50, 60, 0.1), record(60, 70, 0.05, "b")],
        "w": [record(0, 10, 0.04)],
    }
    # true at 0.21, 0.2, 0.04, false at 0.1, 0.05: 2 * 2 / (2 + 3) = 0.8 from 0.2 on, 2 * 3 / (5 + 3) = 0.75 from 0.04
    point = evaluate_detections(results, truth, tiou=(0.3, 0.5, 0.7)).operating_point
    assert point == OperatingPoint(score=0.2, f1=0.8, precision=1.0, recall=pytest.approx(2 / 3), tiou=0.5)
    metrics = evaluate_detections(results, truth, tiou=(0.3, 0.5, 0.7)).to_dict()
    assert (metrics["best_F1@0.5"], metrics["best_F1_threshold@0.5"]) == (0.8, 0.2)
    assert "best F1 80.00 % at tIoU 0.50: detections of score 0.2 or more (precision 100.00 %" in str(point)
    nothing = evaluate_detections({"v": [record(50, 60, 0.9)]}, truth, tiou=(0.5,))
    assert nothing.operating_point is None
    assert not any(name.startswith("best_F1") for name in nothing.to_dict())
    assert evaluate_detections({}, truth, tiou=(0.5,)).operating_point is None


@pytest.mark.parametrize("seed", range(50))
def test_against_every_threshold(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    scores, correct = rng.integers(0, 12, count) / 12, rng.random(count) < rng.random()  # many equal scores
    total = int(correct.sum() + rng.integers(0, 9)) or 1
    f1 = {}
    for threshold in set(scores.tolist()):
        true, shown = int((correct & (scores >= threshold)).sum()), int((scores >= threshold).sum())
        precision, recall = true / shown, true / total
        f1[threshold] = 2 * precision * recall / (precision + recall) if true else 0.0
    point = best_operating_point(scores, correct, total=total, tiou=0.5)
    if not correct.any():
        assert point is None
        return
    assert point is not None
    assert point.f1 == pytest.approx(max(f1.values())) == pytest.approx(f1[point.score])
    assert point.score == max(t for t, value in f1.items() if value == pytest.approx(point.f1))
    assert 2 * point.precision * point.recall / (point.precision + point.recall) == pytest.approx(point.f1)


def test_what_is_shown_and_why():
    records = [record(0, 1, score) for score in (0.2, 0.1)]
    assert ShownFrom.choose(None, POINT).summary(records) == (
        "1 of score 0.125 or more (the best F1 in its evaluation, 50 %)"
    )
    assert ShownFrom.choose(0.15, POINT).summary(records) == "1 of score 0.15 or more (as requested)"
    assert ShownFrom.choose(0.1, POINT).summary(records) == "2 of score 0.1 or more (as requested)"
    unknown = ShownFrom.choose(None, None)
    assert unknown.score == SHOWN_SCORE
    assert unknown.summary(records).endswith("; the best has 0.2")
    assert "the best has" not in unknown.summary([])


def test_kept_with_a_checkpoint(tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=2)
    assert store.save(step=3, trainable={}, compact=False, state={}) == []
    (path,) = store.all()
    assert read_operating_point(path, kind="average") is None
    store.set_operating_point(step=3, kind="average", point=POINT)
    write_operating_point(path, kind="master", point=OperatingPoint(**POINT.to_dict() | {"score": 0.5}))
    assert read_operating_point(path, kind="average") == POINT
    other = read_operating_point(path, kind="master")
    assert other is not None
    assert other.score == 0.5
    assert store.latest() == path
    for damaged in ("", "[]", '{"average": 1}', '{"average": {"score": 1}}'):
        (path / OPERATING_POINTS_FILE).write_text(damaged)
        assert read_operating_point(path, kind="average") is None
