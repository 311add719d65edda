"""Time what follows the detector, mAP and suppression, against straightforward versions row by row.

    taskset -c 0 python tools/bench/detection.py

mAP of 400,000 detections in 213 videos, 20 classes, 5 thresholds; per-class Gaussian suppression of one video's 2,000
candidates of each of 20 classes. The row-by-row versions are the tests' oracles, and must agree; that of suppression
keeps only the first few, each of which takes it as long as any other. Times are this process's on its one core, so that
others' work counts little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from adatad_ds.detection.decoding import Candidates
from adatad_ds.detection.suppression import suppress
from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.system.utf8 import use_utf8
from tests.support import oracles

CLASSES, VIDEOS, DETECTIONS, ACTIONS = 20, 213, 400_000, 3_200
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
CANDIDATES = 2_000  # of one video and class
SIGMA = 0.7


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Time mAP and suppression.", allow_abbrev=False)
    parser.add_argument(
        "--repeats", type=int, default=7, help="the best of so many counts; of suppression of ten times as many"
    )
    parser.add_argument("--oracle-classes", type=int, default=CLASSES, help="classes whose AP is found row by row")
    parser.add_argument("--oracle-kept", type=int, default=200, help="candidates that are kept row by row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    time_metric(repeats=arguments.repeats, oracle_classes=arguments.oracle_classes)
    time_suppression(repeats=arguments.repeats, oracle_kept=arguments.oracle_kept)
    return 0


def time_metric(*, repeats: int, oracle_classes: int) -> None:
    """mAP, and AP of a few classes row by row, which must be the same."""
    results, truth = make_results(np.random.default_rng(0))
    seconds, metrics = best_of(repeats, lambda: evaluate_detections(results, truth, tiou=TIOU))

    def row_by_row() -> list[list[float]]:
        return [
            [oracles.average_precision(results, truth, label=label, threshold=threshold) for threshold in TIOU]
            for label in metrics.classes[:oracle_classes]
        ]

    slow, expected = best_of(1, row_by_row)
    np.testing.assert_allclose(metrics.ap[:, :oracle_classes].T, expected, atol=1e-9)
    slow *= CLASSES / oracle_classes
    count = sum(map(len, results.values()))
    print(f"mAP of {count} detections in {VIDEOS} videos, {CLASSES} classes, {len(TIOU)} thresholds:")
    print(f"ours {seconds:.2f} s; row by row {slow:.1f} s (from {oracle_classes} classes); {slow / seconds:.0f}x")


def time_suppression(*, repeats: int, oracle_kept: int) -> None:
    """Suppression of one video, keeping more and fewer, and row by row."""
    candidates = make_candidates(np.random.default_rng(1))
    rows = [
        (start, end, score, label)
        for (start, end), score, label in zip(
            candidates.segments_sec.tolist(), candidates.scores.tolist(), candidates.labels.tolist(), strict=True
        )
    ]
    slow, expected = best_of(
        1,
        lambda: oracles.suppress(
            rows, method="gaussian", sigma=SIGMA, threshold=0, min_score=0, per_class=True, limit=oracle_kept
        ),
    )
    print(f"\nper-class Gaussian suppression of {len(rows)} candidates ({CLASSES} classes x {CANDIDATES}):")
    print(f"{'kept':>6} {'ms':>8} {'row by row ms':>14} {'ratio':>8}")
    for most in (2000, 1000, 500, oracle_kept):

        def ours(most: int = most) -> Candidates:
            return suppress(
                candidates,
                method="gaussian",
                sigma=SIGMA,
                tiou=0.0,
                min_score=0.0,
                max_per_video=most,
                per_class=True,
                voting_thresh=0.0,
            )

        seconds, kept = best_of(10 * repeats, ours)  # short: enough to meet a quiet moment
        np.testing.assert_allclose(kept.scores[:oracle_kept], [row[2] for row in expected], rtol=1e-4)
        whole = slow * most / oracle_kept
        print(f"{len(kept):>6} {1e3 * seconds:>8.1f} {1e3 * whole:>14.0f} {whole / seconds:>8.0f}")
    print(f"row by row: from {oracle_kept} kept")


def make_results(rng: np.random.Generator) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[Any]]]:
    """Ground truth of one or two classes a video, and detections: half of them near it, half anywhere."""
    labels = [f"class{index}" for index in range(CLASSES)]
    truth, results = {}, {}
    for index in range(VIDEOS):
        name, own = f"video{index}", rng.choice(CLASSES, 2)
        start = rng.uniform(0, 200, ACTIONS // VIDEOS)
        end = start + rng.uniform(1, 10, len(start))
        classes = rng.choice(own, len(start))
        truth[name] = [(s, e, labels[c]) for s, e, c in zip(start.tolist(), end.tolist(), classes, strict=True)]
        count = DETECTIONS * (index + 1) // VIDEOS - DETECTIONS * index // VIDEOS
        near = rng.random(count) < 0.5
        which = rng.integers(len(start), size=count)
        label = np.where(near, classes[which], rng.integers(CLASSES, size=count))
        first = np.where(near, start[which] + rng.normal(0, 0.5, count), rng.uniform(0, 200, count))
        last = np.where(near, end[which] + rng.normal(0, 0.5, count), first + rng.uniform(1, 10, count))
        last, scores = np.maximum(last, first + 0.1), rng.random(count) ** 4
        columns = (first.round(2).tolist(), last.round(2).tolist(), label.tolist(), scores.round(4).tolist())
        results[name] = [
            {"segment": [s, e], "label": labels[c], "score": value} for s, e, c, value in zip(*columns, strict=True)
        ]
    return results, truth


def make_candidates(rng: np.random.Generator) -> Candidates:
    """One video's, as dense as sliding windows leave them."""
    count = CLASSES * CANDIDATES
    start = rng.uniform(0, 200, count)
    return Candidates(
        segments_sec=torch.from_numpy(np.stack([start, start + rng.uniform(1, 20, count)], axis=1)).float(),
        scores=torch.from_numpy(rng.random(count) ** 3).float(),
        labels=torch.arange(count) % CLASSES,
    )


def best_of(repeats: int, action: Callable[[], Any]) -> tuple[float, Any]:
    """Least processor seconds of several runs, and the result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        began = time.process_time()
        result = action()
        best = min(best, time.process_time() - began)
    return best, result


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
