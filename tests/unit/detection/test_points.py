"""Points and targets against a plain-loop reading of ActionFormer's rules, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adatad_ds.detection.points import Targets, assign_targets, make_points

RANGES = ((0, 4), (4, 8), (8, 10000))
STRIDES = (1, 2, 4)


def points(*, offset: bool = False) -> torch.Tensor:
    return make_points(
        level_lengths=(16, 8, 4),
        strides=STRIDES,
        regression_ranges=RANGES,
        point_offset=offset,
        device=torch.device("cpu"),
    )


def assign(*windows: list[tuple[float, float, int]], filter_similar_gt: bool = True, valid=None) -> Targets:
    """Targets of windows given as (start, end, class) lists."""
    all_points = points()
    return assign_targets(
        points=all_points,
        valid=torch.ones(len(windows), len(all_points), dtype=torch.bool) if valid is None else valid,
        segments=[torch.tensor([w[:2] for w in window]).reshape(-1, 2) for window in windows],
        labels=[torch.tensor([w[2] for w in window], dtype=torch.int64) for window in windows],
        num_classes=3,
        center_radius=1.5,
        filter_similar_gt=filter_similar_gt,
    )


def by_loops(window: list[tuple[float, float, int]], *, filter_similar_gt: bool) -> tuple[np.ndarray, np.ndarray]:
    """Classes and distances of one window, point by point and segment by segment."""
    rows = points().tolist()
    classes, distances = np.zeros((len(rows), 3)), np.zeros((len(rows), 2))
    for index, (time, least, greatest, stride) in enumerate(rows):
        matching = []
        for start, end, label in window:
            center = (start + end) / 2
            in_segment = start < time < end
            near_center = center - 1.5 * stride < time < center + 1.5 * stride
            in_range = least <= max(time - start, end - time) <= greatest
            if in_segment and near_center and in_range:
                matching.append((end - start, start, end, label))
        if not matching:
            continue
        shortest = min(matching, key=lambda match: match[0])
        distances[index] = (time - shortest[1]) / stride, (shortest[2] - time) / stride
        for duration, _, _, label in matching:
            if not filter_similar_gt or duration <= shortest[0] + 1e-3:
                classes[index, label] = 1
    return classes, distances


def test_points_of_each_level():
    expected = [[t, 0, 4, 1] for t in range(16)]
    expected += [[t, 4, 8, 2] for t in range(0, 16, 2)]
    expected += [[t, 8, 10000, 4] for t in range(0, 16, 4)]
    assert points().dtype == torch.float32
    assert points().tolist() == expected


def test_offset_puts_points_in_the_middle_of_their_stride():
    moved = points(offset=True) - points()
    assert moved[:, 0].tolist() == [0.5] * 16 + [1.0] * 8 + [2.0] * 4
    assert moved[:, 1:].abs().max() == 0


def test_a_segment_by_hand():
    # Centre 5, half-length 2.5: level 0 only, strictly within 1.5 of the centre.
    targets = assign([(2.5, 7.5, 1)])
    positive = targets.positive[0].nonzero().flatten().tolist()
    assert positive == [4, 5, 6]
    assert targets.classes[0, positive].tolist() == [[0, 1, 0]] * 3
    assert targets.distances[0, positive].tolist() == [[1.5, 3.5], [2.5, 2.5], [3.5, 1.5]]
    assert targets.distances[0, 0].tolist() == [0, 0]


def test_distances_are_in_strides_of_the_level():
    targets = assign([(0.0, 16.0, 0)])  # centre 8: level 1 needs both distances <= 8, level 2 lies within 6 of it
    assert targets.positive[0].nonzero().flatten().tolist() == [16 + 4, 24 + 1, 24 + 2, 24 + 3]
    assert targets.distances[0, 16 + 4].tolist() == [4, 4]
    assert targets.distances[0, 24 + 1].tolist() == [1, 3]


def test_the_borders_of_centre_radius_and_segment_are_outside_those_of_the_range_inside():
    assert assign([(4.5, 7.5, 0)]).positive[0].nonzero().flatten().tolist() == [5, 6, 7]  # 6 -+ 1.5: 4.5 and 7.5 out
    assert assign([(5.0, 7.0, 0)]).positive[0].nonzero().flatten().tolist() == [6]  # 5 and 7 lie on the boundaries
    exactly_in_range = assign([(2.0, 10.0, 0)]).positive[0]  # centre 6, both distances 4: levels 0 and 1
    assert exactly_in_range[6]
    assert exactly_in_range[16 + 3]
    assert not exactly_in_range[5]  # distance 5 > 4


def test_the_shortest_segment_wins():
    targets = assign([(1.0, 8.0, 0), (3.0, 6.0, 1)])
    at_5 = 5
    assert targets.classes[0, at_5].tolist() == [0, 1, 0]
    assert targets.distances[0, at_5].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("longer_by", "filtered", "classes"),
    [(0.0005, True, [1, 1, 0]), (0.1, True, [1, 0, 0]), (0.1, False, [1, 1, 0])],
)
def test_similar_durations_share_a_point(longer_by, filtered, classes):
    targets = assign([(3.0, 6.0, 0), (3.0, 6.0 + longer_by, 1)], filter_similar_gt=filtered)
    assert targets.classes[0, 4].tolist() == classes


def test_duplicates_count_once():
    once, twice = assign([(3.0, 6.0, 2)]), assign([(3.0, 6.0, 2)] * 2)
    assert torch.equal(once.classes, twice.classes)
    assert torch.equal(once.distances, twice.distances)
    assert twice.classes.max() == 1


def test_no_ground_truth_is_background():
    targets = assign([], [(3.0, 6.0, 2)])
    assert targets.classes[0].abs().sum() == 0
    assert targets.distances[0].abs().sum() == 0
    assert targets.positive.any(dim=1).tolist() == [False, True]


def test_points_beyond_the_video_are_no_positives_but_keep_their_classes():
    valid = torch.ones(1, 28, dtype=torch.bool)
    valid[:, 5:16] = False
    targets = assign([(3.0, 8.0, 0)], valid=valid)
    assert not targets.positive[0, 5]
    assert targets.classes[0, 5].tolist() == [1, 0, 0]


@pytest.mark.parametrize("filter_similar_gt", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_as_point_by_point(seed, filter_similar_gt):
    random = np.random.default_rng(seed)
    window = []
    for _ in range(random.integers(1, 9)):
        start = random.choice(np.arange(-2, 15, 0.5))  # halves are exact, so that borders and ties do occur
        window.append((float(start), float(start + random.choice([0.5, 1, 3, 3, 7, 12])), int(random.integers(3))))
    targets = assign(window, filter_similar_gt=filter_similar_gt)
    classes, distances = by_loops(window, filter_similar_gt=filter_similar_gt)
    assert (targets.classes[0].numpy() == classes).all()
    np.testing.assert_allclose(targets.distances[0].numpy(), distances, atol=1e-6)
    assert (targets.positive[0].numpy() == (classes.sum(axis=1) > 0)).all()
