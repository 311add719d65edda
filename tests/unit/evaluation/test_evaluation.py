from __future__ import annotations

import csv
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from adatad_ds.detection.decoding import Candidates
from adatad_ds.errors import DataError
from adatad_ds.evaluation.detections_file import read_results, to_records, write_results
from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.evaluation.plots.timelines import MOST_LANES, TimelineVideo, draw_timeline
from adatad_ds.evaluation.tables import write_table
from tests.support import oracles
from tests.support.detections import cases, record


def test_ap_by_hand():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a")], "w": [(5.0, 6.0, "b")]}
    results = {"v": [record(0, 10, 0.9), record(0, 9, 0.8), record(20, 29, 0.7)], "w": [record(5, 6, 0.5, "b")]}
    metrics = evaluate_detections(results, truth, tiou=(0.5, 0.95))
    assert metrics.classes == ("a", "b")
    assert metrics.ap[0].tolist() == pytest.approx([0.5 * 1 + 0.5 * 2 / 3, 1.0])
    assert metrics.ap[1].tolist() == pytest.approx([0.5, 1.0])
    assert metrics.to_dict()["mAP@0.5"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 2)
    assert "91.67" in metrics.table()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(cases())
def test_as_row_by_row(case):
    results, truth = case
    metrics = evaluate_detections(results, truth, tiou=(0.1, 0.25, 0.5, 1.0), recall_topk=(1, 5))
    assert metrics.classes == tuple(sorted({label for segments in truth.values() for *_, label in segments}))
    for column, label in enumerate(metrics.classes):
        assert metrics.truths[column] == sum(segment[2] == label for of in truth.values() for segment in of)
        for line, threshold in enumerate(metrics.tiou):
            expected = oracles.average_precision(results, truth, label=label, threshold=threshold)
            assert metrics.ap[line, column] == pytest.approx(expected), (label, threshold)
            for k in (1, 5):
                expected = oracles.recall_at(results, truth, label=label, threshold=threshold, k=k)
                assert metrics.recall[k][line, column] == pytest.approx(expected), (label, threshold, k)


def test_of_equal_overlaps_the_last_is_taken():
    truth = {"v": [(0.0, 10.0, "a"), (10.0, 20.0, "a")]}
    results = {"v": [record(5, 15, 0.9), record(0, 10, 0.8)]}  # a third of both; then the first is still free
    assert evaluate_detections(results, truth, tiou=(0.3,)).ap.tolist() == [[1.0]]


def test_detections_of_equal_score_keep_the_order_of_the_file():
    """Hundreds of equals, which an unstable sort would mix: as if each scored a little less than the one before."""
    random = np.random.default_rng(0)
    truth = {name: [(10.0 * i, 10.0 * i + 8, "a") for i in range(20)] for name in "vw"}
    starts, scores = random.uniform(0, 200, (2, 300)).round(1), random.integers(1, 4, (2, 300)) / 4

    def ap(scores: np.ndarray, order: slice) -> list[list[float]]:
        results = {
            name: [record(start, start + 8, score) for start, score in zip(*of, strict=True)][order]
            for name, *of in zip("wv", starts.tolist(), scores.tolist(), strict=True)
        }
        return evaluate_detections(results, truth, tiou=(0.3, 0.7)).ap.tolist()

    in_order = slice(None)
    assert ap(scores, in_order) == ap(scores - 1e-6 * np.arange(600).reshape(2, 300), in_order)
    assert ap(scores, in_order) != ap(scores, slice(None, None, -1))  # the order does matter


def test_per_class(tmp_path):
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a")], "w": [(5.0, 6.0, "b, c")]}
    results = {"v": [record(0, 10, 0.9), record(20, 26, 0.8)], "w": [record(5, 6, 0.5, "b, c")]}
    metrics = evaluate_detections(results, truth, tiou=(0.5, 0.75), recall_topk=(1,))
    assert metrics.per_class() == [
        {
            "class": "a",
            "ground_truth": 2,
            "AP@0.5": 1.0,
            "AP@0.75": 0.5,
            "average_AP": 0.75,
            "recall@0.5@1": 1.0,
            "recall@0.75@1": 0.5,
        },
        {
            "class": "b, c",
            "ground_truth": 1,
            "AP@0.5": 1.0,
            "AP@0.75": 1.0,
            "average_AP": 1.0,
            "recall@0.5@1": 1.0,
            "recall@0.75@1": 1.0,
        },
    ]
    lines = metrics.per_class_table().splitlines()
    assert [line.split()[0] for line in lines] == ["class", "b,", "a"]  # the best first
    assert lines[2].split() == ["a", "2", "100.00", "50.00", "75.00"]
    rows = metrics.per_class()
    write_table(tmp_path / "per_class.csv", rows, columns=list(rows[0]))
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["class"] == "b, c"
    assert float(rows[0]["average_AP"]) == 0.75


def test_what_epic_and_ego4d_report():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a")]}
    results = {"v": [record(0, 10, 0.9), record(20, 23, 0.8)]}  # a tIoU of 0.3
    tiou = (0.1, 0.2, 0.3, 0.4, 0.5)
    reported = evaluate_detections(results, truth, tiou=tiou, recall_topk=(1, 5)).to_dict()
    assert reported["average_mAP"] == pytest.approx((1 + 1 + 1 + 0.5 + 0.5) / 5)
    assert reported["recall@0.5@1"] == 0.5
    names = {f"{kind}@{t}@{k}" for kind in ("recall", "instance_recall") for t in tiou for k in (1, 5)}
    best = {"best_F1@0.5", "best_F1_threshold@0.5"}
    assert set(reported) == {"average_mAP"} | {f"mAP@{t}" for t in tiou} | names | best
    truth["v"].append((50.0, 51.0, "b"))  # of classes alike 1 in 4, of segments alike 1 in 3
    reported = evaluate_detections(results, truth, tiou=tiou, recall_topk=(1,)).to_dict()
    assert reported["recall@0.5@1"] == 0.25
    assert reported["instance_recall@0.5@1"] == pytest.approx(1 / 3)


def test_recall_by_hand():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a")]}
    results = {"v": [record(0, 10, 0.9), record(1, 10, 0.8), record(20, 30, 0.1)]}
    recall = evaluate_detections(results, truth, tiou=(0.5,), recall_topk=(1, 5)).recall
    assert recall[1].tolist() == [[0.5]]  # the 2 best are both on the first
    assert recall[5].tolist() == [[1.0]]


def test_nothing_detected_and_nothing_to_detect():
    truth = {"v": [(0.0, 1.0, "a")]}
    metrics = evaluate_detections({}, truth, tiou=(0.5,), recall_topk=(1,))
    assert metrics.average_map == 0
    assert metrics.recall[1].tolist() == [[0]]
    with pytest.raises(DataError, match="no annotated action"):
        evaluate_detections({}, {"v": []}, tiou=(0.5,))


@pytest.mark.slow
def test_large_result_files_are_evaluated_in_seconds():
    rng = np.random.default_rng(0)
    labels = [f"class{i}" for i in range(20)]
    truth = {f"v{i}": [(s, s + 3.0, str(rng.choice(labels))) for s in rng.uniform(0, 200, 15)] for i in range(50)}
    results = {
        video: [record(s, s + 3, float(rng.random()), labels[i % 20]) for i, s in enumerate(rng.uniform(0, 200, 2000))]
        for video in truth
    }
    began = time.perf_counter()
    evaluate_detections(results, truth, tiou=(0.3, 0.4, 0.5, 0.6, 0.7))
    assert time.perf_counter() - began < 30  # a guard against minutes; tools/bench/detection.py measures


def test_records_are_in_hundredths_of_a_second():
    found = Candidates(
        segments_sec=torch.tensor([[0.126, 9.994], [1.0, 2.5]]),
        scores=torch.tensor([0.98766, 0.5]),
        labels=torch.tensor([1, 0]),
    )
    assert to_records(found, ("run", "jump")) == [
        {"segment": [0.13, 9.99], "label": "jump", "score": 0.9877},
        {"segment": [1.0, 2.5], "label": "run", "score": 0.5},
    ]


def test_result_files(tmp_path):
    path = tmp_path / "detections.json"
    results = {"v": [record(0, 1.5, 0.25)], "empty": []}
    write_results(path, results)
    assert read_results(path) == results
    assert json.loads(path.read_text())["version"]
    path.write_text(json.dumps({"results": {"v": record(0, 1, 0.5), "w": []}}))  # MATLAB's jsonencode
    assert read_results(path) == {"v": [record(0, 1, 0.5)], "w": []}
    path.write_text(
        json.dumps(
            {"results": {"v": [{"segment": [0], "label": "a", "score": 1}, record(0, 1, 0.5) | {"score": None}]}}
        )
    )
    with pytest.raises(DataError, match=r"v #0: segment must be .*v #1: score must be"):
        read_results(path)
    path.write_text("<html>")
    with pytest.raises(DataError, match="cannot read the detections"):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="is not a detection file"):
        read_results(path)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_pictures_of_few_and_many(count, tmp_path):
    rng = np.random.default_rng(0)
    detections = [
        record(s, s + 4, float(rng.random()), f"class{i % 30}") for i, s in enumerate(rng.uniform(0, 60, count))
    ]
    video = TimelineVideo(name="v", duration_sec=64.0, ground_truth=[(1.0, 5.0, "class0")], detections=detections)
    path = tmp_path / "folder" / "timeline.png"
    draw_timeline(path, videos=[video], title="a title")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    height = int.from_bytes(content[20:24], "big")
    assert height < 110 * (0.75 + 0.16 * (MOST_LANES + 3) + 4)
