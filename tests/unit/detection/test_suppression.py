"""Suppression against a plain loop over candidates, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adatad_ds.detection.decoding import Candidates
from adatad_ds.detection.suppression import suppress, vote
from tests.support.oracles import suppress as suppress_by_loops

SETTINGS = {
    "method": "gaussian",
    "sigma": 0.5,
    "tiou": 0.5,
    "min_score": 0.0,
    "max_per_video": 1000,
    "per_class": True,
    "voting_thresh": 0.0,
}


def candidates(rows: list[tuple[float, float, float, int]]) -> Candidates:
    """From (start, end, score, class) rows."""
    return Candidates(
        segments_sec=torch.tensor([row[:2] for row in rows], dtype=torch.float32).reshape(-1, 2),
        scores=torch.tensor([row[2] for row in rows], dtype=torch.float32),
        labels=torch.tensor([row[3] for row in rows], dtype=torch.int64),
    )


def rows_of(kept: Candidates) -> list[tuple[float, float, float, int]]:
    columns = (kept.segments_sec.tolist(), kept.scores.tolist(), kept.labels.tolist())
    return [(start, end, score, label) for (start, end), score, label in zip(*columns, strict=True)]


def run(rows: list[tuple[float, float, float, int]], **settings) -> list[tuple[float, float, float, int]]:
    return rows_of(suppress(candidates(rows), **(SETTINGS | settings)))


def test_gaussian_by_hand():
    overlap = 4 / 6
    kept = run([(0, 5, 0.8, 0), (1, 6, 0.6, 0), (10, 12, 0.5, 0)], sigma=0.5)
    assert [row[:2] for row in kept] == [(0, 5), (10, 12), (1, 6)]
    assert [row[2] for row in kept] == pytest.approx([0.8, 0.5, 0.6 * math.exp(-(overlap**2) / 0.5)], rel=1e-5)


def test_linear_by_hand():
    kept = run([(0, 5, 0.8, 0), (1, 6, 0.6, 0), (4, 9, 0.5, 0)], method="linear", tiou=0.5)
    assert [row[:2] for row in kept] == [(0, 5), (4, 9), (1, 6)]
    assert [row[2] for row in kept] == pytest.approx([0.8, 0.5, 0.6 * (1 - 4 / 6)], rel=1e-5)


def test_hard_by_hand():
    kept = run([(0, 5, 0.8, 0), (1, 6, 0.6, 0), (4, 9, 0.5, 0)], method="hard", tiou=0.5)
    assert [row[:2] for row in kept] == [(0, 5), (4, 9)]


def test_classes_compete_only_without_per_class():
    rows = [(0, 5, 0.8, 0), (0, 5, 0.6, 1)]
    assert len(run(rows, method="hard", per_class=True)) == 2
    assert len(run(rows, method="hard", per_class=False)) == 1


def test_of_equal_scores_the_first_is_kept():
    assert run([(0, 5, 0.5, 0), (1, 6, 0.5, 0)], method="hard", tiou=0.5) == [(0, 5, 0.5, 0)]


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_what_scores_less_is_dropped_even_the_best_of_its_class(method):
    rows = [(0, 5, 0.5, 0), (10, 15, 0.3, 0), (20, 25, 0.2, 0), (0, 5, 0.2, 1)]
    assert [row[:2] for row in run(rows, method=method, min_score=0.25)] == [(0, 5), (10, 15)]


@pytest.mark.parametrize("classes", [1, 6])  # one by one; side by side
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_what_scores_exactly_the_least_is_kept_but_for_the_hard_method(method, classes):
    rows = [(10.0 * i, 10.0 * i + 5, 0.25 if i < 500 else 0.5, i % classes) for i in range(600)]
    assert len(run(rows, method=method, min_score=0.25)) == (100 if method == "hard" else 600)


def test_the_best_of_all_classes_are_kept():
    rows = [(10.0 * i, 10.0 * i + 5, 0.9 - 0.01 * i, i % 3) for i in range(30)]
    kept = run(rows, max_per_video=7)
    assert [row[:2] for row in kept] == [row[:2] for row in rows[:7]]


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_no_candidates(method, per_class):
    assert run([], method=method, per_class=per_class, voting_thresh=0.7) == []
    assert run([(0, 1, 0.1, 0)], method=method, per_class=per_class, voting_thresh=0.7, min_score=0.5) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_segments_of_no_length(method, per_class):
    rows = [(3, 3, 0.9, 0), (3, 3, 0.8, 0), (2, 4, 0.7, 0), (0, 0, 0.6, 1)]
    kept = run(rows, method=method, per_class=per_class, voting_thresh=0.7)
    assert [row[:2] for row in kept] == [row[:2] for row in rows]  # they overlap nothing
    assert [row[2] for row in kept] == pytest.approx([row[2] for row in rows])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_many_long_duplicates(method):
    """Their overlap is exactly 1 in float32."""
    kept = run([(0, 5000, 0.9, 0)] * 40 + [(6000, 7000, 0.1, 0)], method=method, sigma=0.001)
    assert kept[:2] == [(0, 5000, pytest.approx(0.9), 0), (6000, 7000, pytest.approx(0.1), 0)]
    assert all(0 <= row[2] <= 1e-6 for row in kept[2:])
    assert len(kept) == (2 if method == "hard" else 41)


def test_votes_are_weighed_by_the_first_scores():
    rows = [(0, 10, 0.8, 0), (1, 11, 0.4, 1), (5, 15, 0.9, 1), (30, 40, 0.5, 0)]
    kept = run(rows, method="hard", tiou=0.5, per_class=False, voting_thresh=0.7)
    assert [row[2] for row in kept] == pytest.approx([0.9, 0.8, 0.5])
    assert [row[:2] for row in kept] == [
        (5, 15),  # nobody else reaches 0.7
        pytest.approx(((0 * 0.8 + 1 * 0.4) / 1.2, (10 * 0.8 + 11 * 0.4) / 1.2)),
        (30, 40),
    ]


def test_who_overlaps_by_just_enough_has_a_vote():
    rows = [(0, 1, 0.8, 0), (0, 2, 0.4, 0), (0, 2.1, 0.3, 0)]
    kept = run(rows, method="hard", tiou=0.1, per_class=False, voting_thresh=0.5)
    assert [row[:2] for row in kept] == [pytest.approx((0, (1 * 0.8 + 2 * 0.4) / 1.2))]


def test_many_votes_as_one_by_one():
    random = np.random.default_rng(0)
    start, scores = random.uniform(0, 100, 1100), random.random(1100).astype(np.float32)  # too many pairs for one go
    segments = np.stack([start, start + random.uniform(1, 15, 1100)], axis=1).astype(np.float32)
    expected = [vote(segments[i : i + 1], segments, scores, 0.5)[0] for i in range(len(segments))]
    np.testing.assert_allclose(vote(segments, segments, scores, 0.5), expected, rtol=1e-5)


def test_no_votes_per_class():
    rows = [(0, 10, 0.8, 0), (1, 11, 0.4, 0)]
    assert run(rows, method="hard", per_class=True, voting_thresh=0.7) == [(0, 10, pytest.approx(0.8), 0)]


@pytest.mark.parametrize("min_score", [0.0, 0.05])
@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
@pytest.mark.parametrize("seed", range(6))
def test_as_candidate_by_candidate(seed, method, per_class, min_score):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(120):
        start = random.uniform(0, 60)
        label = random.integers(4) if seed % 2 else min(9, random.geometric(0.4) - 1)  # also of very different sizes
        rows.append((start, start + random.choice([0.0, random.uniform(0.1, 12)]), random.random(), label))
    rows += rows[:10]  # exact duplicates
    rows += [(start, end + 1, score, label) for start, end, score, label in rows[10:20]]  # equal scores
    rows = rows_of(candidates(rows))  # as float32 has them

    most = 60 if seed < 4 else 5
    expected = suppress_by_loops(
        rows, method=method, sigma=0.5, threshold=0.4, min_score=min_score, per_class=per_class
    )
    kept = run(rows, method=method, sigma=0.5, tiou=0.4, min_score=min_score, per_class=per_class, max_per_video=most)
    assert len(kept) == min(most, len(expected))
    np.testing.assert_allclose([row[2] for row in kept], [row[2] for row in expected[:most]], rtol=1e-4)
    for label in range(10):  # equal scores of different classes may come in any order
        of_class = [row[:3] for row in kept if row[3] == label]
        in_order = [row[:3] for row in expected if row[3] == label][: len(of_class)]
        np.testing.assert_allclose(of_class, in_order, rtol=1e-4)


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
@pytest.mark.parametrize("sizes", [[25] * 6, [250] * 6, [700] * 5])  # all weights at once; some; not all are held
def test_classes_alone_and_side_by_side_bit_by_bit(sizes, method):
    random = np.random.default_rng(0)
    rows = []
    for label, size in enumerate(sizes):
        start, score = random.uniform(0, 100, size), random.random(size) ** 3
        if label % 2:
            start, score = start.round(), score.round(1).clip(min=0.5)  # duplicates and many equal scores
        end = start + random.uniform(0, 15, size).round(label % 2)
        rows += zip(start, end, score, [label] * size, strict=True)
    settings = {"method": method, "min_score": 0.001, "max_per_video": sum(sizes)}
    together = run(rows, **settings)
    for label in range(len(sizes)):
        alone = run([row for row in rows if row[3] == label], **settings)
        assert alone == [row for row in together if row[3] == label]


def test_few_classes_share_the_places():
    """One class after the other: of a later one only what is better than what others leave."""
    rows = [(10.0 * i, 10.0 * i + 5, 0.9 - 0.001 * i, i % 3) for i in range(300)]
    rows += [(10.0 * i, 10.0 * i + 5, 0.95, 2) for i in range(400, 405)]
    expected = sorted(rows, key=lambda row: -row[2])[:40]
    assert [row[:2] for row in run(rows, max_per_video=40)] == [row[:2] for row in expected]


def test_a_limit_may_be_larger_than_any_memory():
    """A live video has none."""
    rows = [(10.0 * i, 10.0 * i + 5, 0.9 - 0.01 * i, i % 3) for i in range(30)]
    assert run(rows, max_per_video=2**60) == run(rows, max_per_video=30)
