"""From distances and scores to candidates in seconds."""

from __future__ import annotations

import pytest
import torch

from adatad_ds.detection.decoding import Candidates, clip_to_video, decode_segments, merge_candidates, select_candidates
from adatad_ds.detection.points import assign_targets, make_points
from adatad_ds.detection.timegrid import TimeGrid

GRID = TimeGrid(origin_sec=10.0, step_sec=0.5, duration_sec=20.0)


def select(
    segments: list[list[float]],
    scores: list[list[float]],
    *,
    valid: list[bool] | None = None,
    grid: TimeGrid = GRID,
    score_thresh: float = 0.1,
    topk: int = 100,
    levels: tuple[int, ...] = (),
    min_duration: float = 0.0,
) -> Candidates:
    return select_candidates(
        segments_of=lambda point, label: torch.tensor(segments)[point],
        scores=torch.tensor(scores),
        valid=torch.tensor(valid if valid is not None else [True] * len(segments)),
        grid=grid,
        score_thresh=score_thresh,
        topk=topk,
        levels=levels,
        min_duration=min_duration,
    )


def test_decoding_by_hand():
    points = torch.tensor([[4.0, 0, 4, 1], [8.0, 4, 100, 2]])
    distances = torch.tensor([[[1.0, 2.0], [0.5, 3.0]], [[0.0, 0.0], [10.0, 0.25]]])
    expected = [[[3, 6], [7, 14]], [[4, 4], [-12, 8.5]]]
    assert decode_segments(points, distances).tolist() == expected
    assert decode_segments(points, distances[0]).tolist() == expected[0]


def test_decoding_undoes_target_assignment():
    points = make_points(
        level_lengths=(32, 16),
        strides=(1, 2),
        regression_ranges=((0, 8), (8, 100)),
        point_offset=True,
        device=torch.device("cpu"),
    )
    segment = torch.tensor([[4.2, 25.7]])
    targets = assign_targets(
        points=points,
        valid=torch.ones(1, len(points), dtype=torch.bool),
        segments=[segment],
        labels=[torch.tensor([0])],
        num_classes=1,
        center_radius=1.5,
        filter_similar_gt=True,
    )
    assert targets.positive.sum() == 3
    decoded = decode_segments(points, targets.distances)[targets.positive]
    torch.testing.assert_close(decoded, segment.expand_as(decoded))


def test_pairs_come_by_falling_score_in_seconds():
    candidates = select([[0, 2], [4, 8]], [[0.2, 0.9], [0.5, 0.05]])
    assert candidates.segments_sec.tolist() == [[10, 11], [12, 14], [10, 11]]
    assert candidates.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert candidates.labels.tolist() == [1, 0, 0]
    assert candidates.segments_sec.dtype == candidates.scores.dtype == torch.float32
    assert candidates.labels.dtype == torch.int64


def test_threshold_is_exclusive_and_topk_cuts():
    assert select([[0, 2]], [[0.5, 0.75]], score_thresh=0.5).labels.tolist() == [1]
    assert select([[0, 2], [4, 8]], [[0.2, 0.9], [0.5, 0.3]], topk=2).scores.tolist() == pytest.approx([0.9, 0.5])


def test_each_level_keeps_its_own_best():
    segments = [[float(i), float(i + 1)] for i in range(6)]
    scores = [[0.2, 0.3], [0.9, 0.8], [0.7, 0.6], [0.05, 0.4], [0.85, 0.05], [0.05, 0.05]]
    alike = {"levels": (3, 2, 1), "topk": 2}
    found = select(segments, scores, **alike)
    assert found.scores.tolist() == pytest.approx([0.9, 0.85, 0.8, 0.4])
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.segments_sec[:, 0].tolist() == [10.5, 12, 10.5, 11.5]
    without_first = [False, *[True] * 5]
    assert len(select(segments, scores, valid=[False] * 6, **alike)) == 0
    assert len(select(segments, scores, valid=without_first, levels=(3, 2, 1), topk=5)) == 6


def test_short_segments_are_dropped_after_the_best_were_taken():
    segments, scores = [[0, 0.0625], [0, 0.07], [0, 9]], [[0.9], [0.8], [0.7]]  # longer, not as long, are kept
    assert select(segments, scores, min_duration=0.0625, topk=2).scores.tolist() == pytest.approx([0.8])
    assert select(segments, scores, topk=2).scores.tolist() == pytest.approx([0.9, 0.8])


def test_of_equal_scores_the_first_points_are_kept():
    segments = [[float(i), float(i + 1)] for i in range(50)]
    candidates = select(segments, [[0.5]] * 50, topk=10)
    assert candidates.segments_sec[:, 0].tolist() == [10 + 0.5 * i for i in range(10)]


def test_points_beyond_the_video_and_broken_ones_are_left_out():
    nan, inf = float("nan"), float("inf")
    candidates = select(
        [[0, 1], [0, inf], [nan, 1], [2, 3], [4, 5]],
        [[0.5], [0.6], [0.7], [nan], [0.8]],
        valid=[True, True, True, True, False],
    )
    assert candidates.scores.tolist() == [0.5]


def test_nothing_above_the_threshold():
    assert len(select([[0, 1]], [[0.05]])) == 0


def test_windows_of_one_video_agree_on_a_time():
    other = TimeGrid(origin_sec=12.0, step_sec=0.5, duration_sec=20.0)
    merged = merge_candidates([select([[6.0, 10.0]], [[0.5]]), select([[2.0, 6.0]], [[0.4]], grid=other)])
    assert merged.segments_sec.tolist() == [[13, 15], [13, 15]]
    assert merged.scores.tolist() == pytest.approx([0.5, 0.4])


def test_seconds_late_in_a_long_video_are_exact_to_float32():
    grid = TimeGrid(origin_sec=35999.96, step_sec=4 / 29.97, duration_sec=36100.0)
    candidates = select([[1.0, 301.3]], [[0.5]], grid=grid)
    expected = torch.tensor([[35999.96 + 4 / 29.97, 35999.96 + torch.tensor(301.3).item() * 4 / 29.97]])
    assert torch.equal(candidates.segments_sec, expected)


def test_clipping_to_the_video():
    clipped = clip_to_video(select([[-30.0, 2.0], [4.0, 50.0]], [[0.9], [0.8]]), duration_sec=20.0)
    assert clipped.segments_sec.tolist() == [[0, 11], [12, 20]]
    assert clipped.scores.tolist() == pytest.approx([0.9, 0.8])
