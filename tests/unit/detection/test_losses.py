"""Losses by hand, against a plain reading of their formulas, and where numbers could go astray."""

from __future__ import annotations

import math

import pytest
import torch

from adatad_ds.detection.losses import (
    LossNormalizer,
    detection_losses,
    diou_loss,
    iou_weighted_losses,
    sigmoid_focal_loss,
)
from adatad_ds.detection.points import Targets, assign_targets, make_points

POINTS = make_points(
    level_lengths=(8, 4),
    strides=(1, 2),
    regression_ranges=((0, 4), (4, 100)),
    point_offset=False,
    device=torch.device("cpu"),
)
K = 3


def batch(*windows: list[tuple[float, float, int]], valid: torch.Tensor | None = None):
    """Random predictions that need gradients, validity and targets."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(windows), len(POINTS))
    valid = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    targets = assign_targets(
        points=POINTS,
        valid=valid,
        segments=[torch.tensor([w[:2] for w in window]).reshape(-1, 2) for window in windows],
        labels=[torch.tensor([w[2] for w in window], dtype=torch.int64) for window in windows],
        num_classes=K,
        center_radius=1.5,
        filter_similar_gt=True,
    )
    logits = torch.randn(*shape, K, generator=generator).requires_grad_()
    distances = torch.rand(*shape, 2, generator=generator).mul(3).requires_grad_()
    return logits, distances, valid, targets


def losses(logits, distances, valid, targets: Targets, *, label_smoothing: float = 0.0):
    return detection_losses(
        class_logits=logits,
        distances=distances,
        points=POINTS,
        valid=valid,
        targets=targets,
        label_smoothing=label_smoothing,
    )


def focal_by_hand(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    cross_entropy = -target * math.log(probability) - (1 - target) * math.log(1 - probability)
    right = probability * target + (1 - probability) * (1 - target)
    return (0.25 * target + 0.75 * (1 - target)) * (1 - right) ** 2 * cross_entropy


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
def test_focal_loss_by_hand(logit, target):
    loss = sigmoid_focal_loss(torch.tensor([logit]), torch.tensor([target]))
    assert loss.item() == pytest.approx(focal_by_hand(logit, target), rel=1e-5)


def test_focal_loss_of_extreme_half_precision_logits_is_finite_float32():
    logits = torch.tensor([-60000.0, 60000.0], dtype=torch.float16).repeat(2, 1)
    loss = sigmoid_focal_loss(logits, torch.tensor([[0.0], [1.0]]).expand(2, 2))
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()


@pytest.mark.parametrize(
    ("predicted", "target", "loss"),
    [
        ((2, 5), (2, 5), 0),
        ((0, 4), (2, 6), 1 - 2 / 6 + (2 / 6) ** 2),
        ((0, 1), (3, 4), 1 + (3 / 4) ** 2),  # apart: the distance of centres still pulls
        ((1, 3), (0, 4), 1 - 2 / 4),  # the same centre
    ],
)
def test_diou_by_hand(predicted, target, loss):
    actual = diou_loss(torch.tensor([predicted]).float(), torch.tensor([target]).float())
    assert actual.shape == (1,)
    assert actual.item() == pytest.approx(loss, abs=1e-6)


def test_diou_of_a_point_has_finite_gradients():
    predicted = torch.tensor([[3.0, 3.0], [3.0, 3.0]], requires_grad=True)
    loss = diou_loss(predicted, torch.tensor([[3.0, 3.0], [1.0, 2.0]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_a_segment_of_no_length_has_finite_gradients_through_its_weight():
    logits, distances, valid, targets = batch([(1.0, 4.5, 0)])
    pairs = (targets.classes * targets.positive[..., None]).nonzero(as_tuple=True)
    distances = distances[pairs[:2]].detach().mul(0).requires_grad_()  # IoU 0
    settings = {"pairs": pairs, "distances": distances, "label_smoothing": 0.0, "power": 0.2}
    sum(iou_weighted_losses(class_logits=logits, valid=valid, targets=targets, **settings)).backward()
    for tensor in (logits, distances):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_sums_as_point_by_point(label_smoothing):
    valid = torch.ones(2, len(POINTS), dtype=torch.bool)
    valid[1, 5:8] = False
    logits, distances, valid, targets = batch([(1.0, 4.5, 0), (2.0, 7.5, 2)], [(2.0, 7.0, 1)], valid=valid)
    classification, regression = losses(logits, distances, valid, targets, label_smoothing=label_smoothing)

    expected_classification = expected_regression = 0.0
    for window in range(2):
        for index, (time, _, _, stride) in enumerate(POINTS.tolist()):
            if not valid[window, index]:
                continue
            for label in range(K):
                target = targets.classes[window, index, label].item() * (1 - label_smoothing)
                target += label_smoothing / (K + 1)
                expected_classification += focal_by_hand(logits[window, index, label].item(), target)
            if targets.classes[window, index].any():
                pairs = []
                for left, right in (distances[window, index].tolist(), targets.distances[window, index].tolist()):
                    pairs.append(torch.tensor([[time - left * stride, time + right * stride]]))
                expected_regression += diou_loss(*pairs).item()
    assert targets.positive.sum() > 4
    assert classification.item() == pytest.approx(expected_classification, rel=1e-5)
    assert regression.item() == pytest.approx(expected_regression, rel=1e-5)


def test_without_positives_the_regression_sum_is_zero_and_connected():
    logits, distances, valid, targets = batch([], [])
    classification, regression = losses(logits, distances, valid, targets)
    assert regression.item() == 0
    assert classification.item() > 0
    (classification + regression).backward()
    assert distances.grad is not None
    assert distances.grad.abs().sum() == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nothing_leaks_from_what_does_not_count(poison):
    valid = torch.ones(1, len(POINTS), dtype=torch.bool)
    valid[:, 6:8] = False
    logits, distances, valid, targets = batch([(1.0, 4.5, 0)], valid=valid)
    clean = losses(logits, distances, valid, targets)
    with torch.no_grad():
        logits[~valid] = poison
        distances[~targets.positive] = poison
    poisoned = losses(logits, distances, valid, targets)
    assert [x.item() for x in poisoned] == [x.item() for x in clean]
    sum(poisoned).backward()
    for tensor in (logits, distances):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert logits.grad[~valid].abs().sum() == 0
    assert distances.grad[~targets.positive].abs().sum() == 0


def test_a_batch_is_the_sum_of_its_windows():
    logits, distances, valid, targets = batch([(1.0, 4.5, 0)], [(2.0, 7.0, 1)])
    whole = losses(logits, distances, valid, targets)
    parts = [
        losses(
            logits[i : i + 1],
            distances[i : i + 1],
            valid[i : i + 1],
            Targets(targets.classes[i : i + 1], targets.distances[i : i + 1], targets.positive[i : i + 1]),
        )
        for i in (0, 1)
    ]
    for term in (0, 1):
        assert whole[term].item() == pytest.approx(sum(part[term].item() for part in parts), rel=1e-6)


def test_normalizer_is_a_running_mean_that_goes_on_after_a_resume():
    normalizer = LossNormalizer(initial=100.0, momentum=0.9)
    assert normalizer.update(50) == pytest.approx(95.0)
    assert normalizer.update(0) == pytest.approx(0.9 * 95 + 0.1)  # at least one positive is counted
    resumed = LossNormalizer(initial=1.0, momentum=0.9)
    resumed.load_state_dict(normalizer.state_dict())
    assert resumed.update(7) == normalizer.update(7)
