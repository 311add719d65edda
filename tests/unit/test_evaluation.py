from __future__ import annotations

import json
import time

import numpy as np
import pytest

from adatad_ds.data.annotations import DataError
from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.evaluation.pictures import MOST_LANES, TimelineVideo, draw_timeline
from adatad_ds.evaluation.results import read_results, write_results


def record(start: float, end: float, score: float, label: str = "a") -> dict:
    return {"segment": [start, end], "label": label, "score": score}


def iou(first, second) -> float:
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / max(first[1] - first[0] + second[1] - second[0] - shared, 1e-8)


def slow_ap(results, truth, label: str, threshold: float) -> float:
    """One detection after the other, as the devkits do."""
    free = {(video, i) for video, segments in truth.items() for i, s in enumerate(segments) if s[2] == label}
    total = len(free)
    rows = [(r["score"], video, r["segment"]) for video, rs in results.items() for r in rs if r["label"] == label]
    hits = []
    for _, video, segment in sorted(rows, key=lambda row: -row[0]):
        reach = [(iou(segment, s), i) for i, s in enumerate(truth.get(video, [])) if (video, i) in free]
        best = max(reach, default=(-1.0, -1))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            free.remove((video, best[1]))
    found = np.cumsum(hits)
    precision = [found[i] / (i + 1) for i in range(len(hits))]
    return sum(max(precision[i:]) for i, hit in enumerate(hits) if hit) / total


def test_ap_by_hand():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a")], "w": [(5.0, 6.0, "b")]}
    results = {"v": [record(0, 10, 0.9), record(0, 9, 0.8), record(20, 29, 0.7)], "w": [record(5, 6, 0.5, "b")]}
    metrics = evaluate_detections(results, truth, tiou=(0.5, 0.95))
    assert metrics.classes == ("a", "b")
    assert metrics.ap[0].tolist() == pytest.approx([0.5 * 1 + 0.5 * 2 / 3, 1.0])
    assert metrics.ap[1].tolist() == pytest.approx([0.5, 1.0])
    assert metrics.to_dict()["mAP@0.5"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 2)
    assert "91.67" in metrics.table()


def test_ap_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(40):
        truth, results = {}, {}
        for video in "vwx":
            starts = rng.uniform(0, 20, rng.integers(0, 5))
            truth[video] = [(s, s + rng.uniform(0.5, 8), str(rng.choice(["a", "b"]))) for s in starts]
            starts = rng.uniform(0, 20, rng.integers(0, 12))
            results[video] = [
                record(s, s + rng.uniform(0, 8), float(rng.random()), str(rng.choice(["a", "b", "c"]))) for s in starts
            ]
        results["unknown video"] = [record(0, 1, 1.0)]
        truth["v"].append((3.0, 6.0, "b"))
        truth["v"].append((3.0, 6.0, "b"))  # a duplicate
        metrics = evaluate_detections(results, truth, tiou=(0.1, 0.5, 0.75))
        del results["unknown video"]
        for column, label in enumerate(metrics.classes):
            for line, threshold in enumerate(metrics.tiou):
                assert metrics.ap[line, column] == pytest.approx(slow_ap(results, truth, label, threshold)), label


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
    assert time.perf_counter() - began < 30  # a guard against minutes, not a benchmark


def test_result_files(tmp_path):
    path = tmp_path / "detections.json"
    results = {"v": [record(0, 1.5, 0.25)], "empty": []}
    write_results(path, results)
    assert read_results(path) == results
    assert json.loads(path.read_text())["version"]
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
    with pytest.raises(DataError, match="is no detection file"):
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
