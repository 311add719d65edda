"""Detections of a stream: each told once, those called final as in the whole video, whatever comes later."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch

from adatad_ds.detection.decoding import Candidates, clip_to_video, merge_candidates
from adatad_ds.detection.settling import Settling
from adatad_ds.detection.suppression import keep_best, suppress

WINDOW, HOP, REACH, LEAST = 20.0, 10.0, 2.0, 0.3
SUPPRESSION = {"sigma": 0.5, "tiou": 0.4, "max_per_video": 10**6}


def windows(rng: np.random.Generator, *, count: int, outside: float, long: float = 8.0) -> list[Candidates]:
    """Random candidates of each window, of three classes; they begin up to `outside` seconds before it."""
    made = []
    for number in range(count):
        n = int(rng.integers(0, 25))
        start = rng.uniform(number * HOP - outside, number * HOP + WINDOW, n)
        scores = rng.uniform(0.001, 1, n) ** 3
        made.append(
            Candidates(
                torch.from_numpy(np.stack([start, start + rng.uniform(0, long, n)], 1).astype(np.float32)),
                torch.from_numpy(scores.astype(np.float32)),
                torch.from_numpy(rng.integers(0, 3, n)),
            )
        )
    return made


def told(made: list[Candidates], *, method: str, per_class: bool, voting: float = 0.0, max_delay_sec: float = 1e9):
    """What a stream of windows tells, at which window, and the most that was held."""
    keep = partial(keep_best, method=method, min_score=LEAST, per_class=per_class, **SUPPRESSION)
    settling = Settling(
        keep=keep,
        least_score=LEAST,
        per_class=per_class,
        voting_thresh=voting,
        max_delay_sec=max_delay_sec,
        begin_sec=0.0,
    )
    parts, held = [], 0
    for number, found in enumerate(made):
        start = number * HOP
        parts.append(settling.add(found, now_sec=start + WINDOW, horizon_sec=start + HOP - REACH))
        held = max(held, len(settling))
        if number == 5:
            waiting, ended = settling.unsettled(), copy.deepcopy(settling).finish(end_sec=np.inf).detections
            assert sorted(waiting.scores.tolist()) == sorted(ended.scores.tolist())  # none that has been told
    parts.append(settling.finish(end_sec=len(made) * HOP + HOP))
    assert len(settling) == 0
    rows = [
        (tuple(segment), score, label, final, number)
        for number, part in enumerate(parts)
        for segment, score, label, final in zip(
            part.detections.segments_sec.tolist(),
            part.detections.scores.tolist(),
            part.detections.labels.tolist(),
            part.final.tolist(),
            strict=True,
        )
    ]
    assert (settling.late > 0) >= (not all(final for *_, final, _ in rows)) or max_delay_sec < 1e9
    return rows, held


def whole(made: list[Candidates], *, method: str, per_class: bool, voting: float = 0.0) -> list[tuple]:
    """What suppression of all candidates at once gives, of the score that is told or more."""
    end_sec = len(made) * HOP + HOP
    kept = suppress(
        clip_to_video(merge_candidates(made), duration_sec=end_sec),
        method=method,  # pyright: ignore[reportArgumentType]
        min_score=0.0,
        per_class=per_class,
        voting_thresh=voting,
        **SUPPRESSION,  # pyright: ignore[reportArgumentType]
    )
    rows = zip(kept.segments_sec.tolist(), kept.scores.tolist(), kept.labels.tolist(), strict=True)
    return sorted((tuple(segment), score, label) for segment, score, label in rows if score >= LEAST)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_all_are_final_and_the_whole_videos_bit_by_bit(method, per_class):
    early = 0
    for seed in range(15):
        made = windows(np.random.default_rng(seed), count=10, outside=REACH)
        rows, _ = told(made, method=method, per_class=per_class)
        assert sorted(row[:3] for row in rows) == whole(made, method=method, per_class=per_class)
        assert all(final for *_, final, _ in rows)
        early += sum(number < len(made) for *_, number in rows)
        assert all(segment[1] <= number * HOP + HOP - REACH for segment, *_, number in rows if number < len(made))
    assert early > 150  # long before the end


def test_votes_are_the_whole_videos():
    for seed in range(20):
        made = windows(np.random.default_rng(seed), count=8, outside=REACH)
        rows, _ = told(made, method="gaussian", per_class=False, voting=0.5)
        expected = whole(made, method="gaussian", per_class=False, voting=0.5)
        assert len(rows) == len(expected) > 0
        found = np.array([(*row[0], row[1]) for row in sorted(rows, key=lambda row: row[1])])
        right = np.array([(*row[0], row[1]) for row in sorted(expected, key=lambda row: row[1])])
        np.testing.assert_allclose(found, right, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("max_delay_sec", [1e9, 35.0])
def test_what_is_called_final_is_so_until_a_candidate_reaches_back(max_delay_sec):
    """Some begin long before their window: what is told before such a one comes may be wrong, nothing after."""
    final, doubtful = 0, 0
    for seed in range(40):
        made = windows(np.random.default_rng(seed), count=12, outside=6.0, long=9.0)
        rows, _ = told(made, method="gaussian", per_class=True, max_delay_sec=max_delay_sec)
        late = [
            (number, float(start))
            for number, found in enumerate(made)
            for start, score in zip(found.segments_sec[:, 0], found.scores, strict=True)
            if score >= LEAST and start < number * HOP - REACH
        ]
        for row in {row for row in rows if row[3]} - {
            (*right, True, number) for right in whole(made, method="gaussian", per_class=True) for number in range(20)
        }:
            assert any(number > row[4] for number, _ in late), row
        final += sum(row[3] for row in rows)
        doubtful += sum(not row[3] for row in rows)
        places = [row[:1] + row[2:3] for row in rows if row[0][1] > 0]  # clipped to the beginning, several are alike
        assert len(set(places)) == len(places)  # each once
    assert min(final, doubtful) > 30


@pytest.mark.slow
def test_what_waits_too_long_is_told_and_not_final():
    """All that is called final is right, though what it depends on was told before its time."""
    doubtful = 0
    for seed in range(40):
        made = windows(np.random.default_rng(seed), count=12, outside=REACH, long=25.0)
        rows, _ = told(made, method="gaussian", per_class=True, max_delay_sec=10.0)
        assert {row[:3] for row in rows if row[3]} <= set(whole(made, method="gaussian", per_class=True))
        doubtful += sum(not row[3] for row in rows)
    assert doubtful > 100


def test_little_is_held_however_long_the_stream():
    """Overlapping actions without end: they are told after the longest delay, and forgotten."""
    chain = [
        Candidates(
            torch.tensor([[number * HOP, number * HOP + 1.5 * HOP]]),
            torch.tensor([0.9]),
            torch.zeros(1, dtype=torch.long),
        )
        for number in range(80)
    ]
    rows, held = told(chain, method="gaussian", per_class=True, max_delay_sec=50.0)
    assert len(rows) == 80
    assert held <= 8
    _, held_all = told(chain, method="gaussian", per_class=True)
    assert held_all == 80
