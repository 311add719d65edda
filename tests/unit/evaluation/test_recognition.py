"""Accuracies of recognition, by hand and by brute force."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from adatad_ds.errors import DataError
from adatad_ds.evaluation.accuracy import recognition_accuracy, view_average, write_predictions

CLASSES = ("a", "b", "c", "d", "e", "f", "g")


def test_views_are_averaged_as_probabilities():
    """One sure view outweighs two that lean the other way; the mean of logits would say otherwise here."""
    views = np.array([[4.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    sure, lean = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(3))
    np.testing.assert_allclose(view_average(views), [(sure + 2 * lean) / 3, 1 - (sure + 2 * lean) / 3])
    huge = view_average([[1000.0, -1000.0], [-1000.0, 1000.0]])
    np.testing.assert_allclose(huge, [0.5, 0.5])
    assert view_average(np.zeros((3, 4, 7), np.float16)).shape == (3, 7)
    probabilities = view_average([[10.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert probabilities.argmax() == 0


def one_hot(label: int) -> np.ndarray:
    return 5.0 * np.eye(len(CLASSES))[[label]]


def test_by_hand():
    truth = {"v1": 0, "v2": 0, "v3": 1, "v4": 2, "v5": 2}
    logits = {
        "v1": one_hot(0),
        "v2": one_hot(1),
        "v3": np.array([[6.0, 0, 5, 4, 3, 2, 1]]),  # the true class comes last of seven
        "v4": np.array([[6.0, 1.5, 2, 5, 4, 3, 1]]),  # the true class is the fifth
    }
    found = recognition_accuracy(logits, truth, classes=CLASSES)  # v5 could not be read
    assert found.videos.tolist() == [2, 1, 2, 0, 0, 0, 0]
    assert found.top1.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert found.top5.tolist() == [2, 0, 1, 0, 0, 0, 0]
    assert found.unanswered.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert found.confusion[:3, :3].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert found.confusion.sum() == 4
    assert found.to_dict() == pytest.approx({"top1": 1 / 5, "top5": 3 / 5, "mean_class_top1": (0.5 + 0 + 0) / 3})
    assert found.class_accuracy[:3].tolist() == [0.5, 0, 0]
    assert np.isnan(found.class_accuracy[3:]).all()
    rows = found.per_class()
    assert rows[0] == {
        "class": "a", "videos": 2, "top1": 0.5, "top5": 1.0, "unanswered": 0, "confused_with": "b",
    }  # fmt: skip
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert found.table().splitlines() == [
        "top-1                     20.00 %",
        "top-5                     60.00 %",
        "mean of classes, top-1    16.67 %",
        "5 videos of 7 classes, 1 of them unreadable and counted as wrong",
    ]
    assert [line.split() for line in found.per_class_table().splitlines()[1:]] == [
        ["a", "2", "50.00", "100.00", "b"],
        ["b", "1", "0.00", "0.00", "a"],
        ["c", "2", "0.00", "50.00", "a"],
    ]
    perfect = recognition_accuracy({"v": one_hot(4)}, {"v": 4}, classes=CLASSES)
    assert perfect.per_class()[0]["confused_with"] == ""


def test_predictions_as_written(tmp_path):
    """The five most probable classes of each video, by the mean of its views; none of one that cannot be read."""
    truth, sure = {"v": 6, "unread": 0}, np.log([[1.0, 2, 3, 4, 5, 6, 7]])
    write_predictions(tmp_path / "p.json", {"v": sure}, truth, classes=CLASSES, damaged={"v": "half of it"})
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["damaged"] == {"v": "half of it"}
    assert written["results"]["unread"] == {"label": "a", "predictions": []}
    assert written["results"]["v"] == {
        "label": "g",
        "predictions": [
            {"label": label, "score": score}
            for label, score in (("g", 0.25), ("f", 0.2143), ("e", 0.1786), ("d", 0.1429), ("c", 0.1071))
        ],
    }
    write_predictions(tmp_path / "p.json", {"v": sure}, truth, classes=CLASSES, damaged={})
    assert "damaged" not in json.loads((tmp_path / "p.json").read_text())


def test_few_classes_and_ties():
    """With at most five classes every answer is among the first five; equal classes rank by index."""
    logits = {name: np.zeros((2, 3)) for name in "xyz"}
    found = recognition_accuracy(logits, {"x": 0, "y": 1, "z": 2}, classes=("a", "b", "c"))
    assert (found.top1_accuracy, found.top5_accuracy) == (pytest.approx(1 / 3), 1.0)
    assert found.confusion[:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_brute_force(seed: int):
    rng = np.random.default_rng(seed)
    count, views = 7, int(rng.integers(1, 5))
    names = [f"v{i}" for i in range(60)]
    truth = {name: int(rng.integers(count)) for name in names}
    logits = {name: rng.normal(scale=2, size=(views, count)).astype(np.float32) for name in names}
    found = recognition_accuracy(logits, truth, classes=CLASSES)
    top1 = top5 = 0
    confusion = [[0] * count for _ in range(count)]
    for name in names:
        scores = [0.0] * count
        for view in logits[name].tolist():
            total = sum(math.exp(value) for value in view)
            scores = [score + math.exp(value) / total for score, value in zip(scores, view, strict=True)]
        better = sum(score > scores[truth[name]] for score in scores)
        top1 += better == 0
        top5 += better < 5
        confusion[truth[name]][scores.index(max(scores))] += 1
    assert found.top1.sum() == top1
    assert found.top5.sum() == top5
    assert found.confusion.tolist() == confusion
    assert found.top1.tolist() == found.confusion.diagonal().tolist()
    assert found.top1_accuracy == pytest.approx(top1 / 60)


@pytest.mark.parametrize(
    ("logits", "truth", "message"),
    [
        ({}, {}, "no video"),
        ({"w": one_hot(0)}, {"v": 0}, "1 predicted videos are not in the test set: w"),
        ({"v": np.zeros((1, 6))}, {"v": 0}, r"v: logits of shape \(1, 6\) instead of \(views, 7 classes\)"),
        ({"v": np.zeros(7)}, {"v": 0}, "shape"),
        ({"v": np.zeros((0, 7))}, {"v": 0}, "shape"),
        ({"v": np.full((2, 7), np.nan)}, {"v": 0}, "not finite"),
    ],
)
def test_faults(logits: dict[str, np.ndarray], truth: dict[str, int], message: str):
    with pytest.raises(DataError, match=message):
        recognition_accuracy(logits, truth, classes=CLASSES)
