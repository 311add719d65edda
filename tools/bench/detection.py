"""Time what follows the detector, mAP and suppression, against straightforward versions row by row.

    taskset -c 0 python tools/bench/detection.py

mAP of 400,000 detections in 213 videos, 20 classes, 5 thresholds; per-class Gaussian suppression of one video's 2,000
candidates of each of 20 classes. The row-by-row versions are the tests' oracles, and must agree; that of suppression
keeps only the first few, each of which takes it as long as any other. Times are this process's on its one core, so that
others' work counts little.

    python tools/bench/detection.py --reference OPENTAD/opentad/models/utils/post_processing/nms

times suppression beside OpenTAD's, whose C++ has been built there (`python setup.py build_ext --inplace`), instead:
both in turn, per class and class-agnostic, one class and many, alike in size and not. Scores must agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
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
SIZES = tuple((classes, each) for classes in (1, 20, 200) for each in (10, 100, 500, 2000) if classes * each <= 100_000)
UNEQUAL = (200, 1000, 2000, 5000)  # candidates of 20 classes, a third of them of the first
PER_CLASS = (("per class, 2000 kept", 2000, 0.7, 0.0), ("per class, 200 kept", 200, 0.5, 0.001))
AGNOSTIC = (("any class, 100 kept", 100, 0.75, 0.001, 0.0), ("the same, voting", 100, 0.75, 0.001, 0.9))


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Time mAP and suppression.", allow_abbrev=False)
    parser.add_argument(
        "--repeats", type=int, default=7, help="the best of so many counts; of suppression of ten times as many"
    )
    parser.add_argument("--oracle-classes", type=int, default=CLASSES, help="classes whose AP is found row by row")
    parser.add_argument("--oracle-kept", type=int, default=200, help="candidates that are kept row by row")
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="of OpenTAD's suppression, built")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.reference:
        sys.path.insert(0, str(arguments.reference))
        compare_suppression(import_module("nms").batched_nms)
        return 0
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


def compare_suppression(theirs: Callable[..., Any]) -> None:
    """Suppression of one video's candidates beside the reference's."""
    print("| kept | classes x candidates | ours, ms | reference, ms | ratio |")
    print("|---" * 5 + "|")
    rng = np.random.default_rng(1)
    for name, most, sigma, least in PER_CLASS:
        for classes, each in SIZES:
            candidates = make_candidates(rng, classes=classes, each=each)
            compare_one(f"{name} | {classes} x {each}", candidates, theirs, (most, sigma, least, 0.0), per_class=True)
        for count in UNEQUAL:
            candidates = make_candidates(rng, classes=1, each=count)
            candidates = replace(candidates, labels=torch.from_numpy(rng.geometric(0.35, count).clip(max=20)))
            compare_one(f"{name} | 20, unequal: {count}", candidates, theirs, (most, sigma, least, 0.0), per_class=True)
    for name, *settings in AGNOSTIC:
        for each in (*(each for classes, each in SIZES if classes == 1), 5000):
            candidates = make_candidates(rng, classes=1, each=each)
            compare_one(f"{name} | {each}", candidates, theirs, settings, per_class=False)


def compare_one(
    name: str, candidates: Candidates, theirs: Callable[..., Any], settings: Sequence[Any], *, per_class: bool
) -> None:
    """A line of the table: the least of both in turn, for half a second or three times at least."""
    most, sigma, least, voting = settings

    def ours() -> Candidates:
        return suppress(
            candidates,
            method="gaussian",
            sigma=sigma,
            tiou=0.0,
            min_score=least,
            max_per_video=most,
            per_class=per_class,
            voting_thresh=voting,
        )

    def reference() -> Any:
        return theirs(
            candidates.segments_sec,
            candidates.scores,
            candidates.labels,
            min_score=least,
            max_seg_num=most,
            multiclass=per_class,
            sigma=sigma,
            voting_thresh=voting,
        )

    np.testing.assert_allclose(ours().scores, reference()[1], rtol=1e-3, atol=1e-6)
    own, other, count = float("inf"), float("inf"), 0
    end = time.process_time() + 0.5
    while count < 3 or time.process_time() < end:
        own, other, count = min(own, best_of(1, ours)[0]), min(other, best_of(1, reference)[0]), count + 1
    print(f"| {name} | {1e3 * own:.2f} | {1e3 * other:.2f} | {own / other:.2f} |", flush=True)


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


def make_candidates(rng: np.random.Generator, *, classes: int = CLASSES, each: int = CANDIDATES) -> Candidates:
    """One video's, as dense as sliding windows leave them."""
    count = classes * each
    start = rng.uniform(0, 200, count)
    return Candidates(
        segments_sec=torch.from_numpy(np.stack([start, start + rng.uniform(1, 20, count)], axis=1)).float(),
        scores=torch.from_numpy(rng.random(count) ** 3).float(),
        labels=torch.arange(count) % classes,
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
