"""Detectors on features as their authors save them, with drawn weights, and five steps of training on drawn videos."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adatad_ds.config.schema import Config, TrainConfig
from adatad_ds.detection.losses import LossNormalizer
from adatad_ds.detection.points import assign_targets
from adatad_ds.models.detector import Detector, detector_points, valid_points
from adatad_ds.models.factory import build_detector
from adatad_ds.training.optim import parameter_groups
from adatad_ds.weights.loading import find_weights, published_state

CHANNELS, STEPS, WHOLE_STEPS = 12, 64, 113
DrawnWeight = Callable[[str, tuple[int, ...]], NDArray[np.float64]]


def drawn_video(case: int, step: int, index: int, classes: int, *, steps: int = 0) -> tuple[torch.Tensor, ...]:
    """Features (T, C), segments (3, 2) in feature steps and labels (3,)."""
    rng = np.random.default_rng([case, step, index])
    length = steps or int(rng.integers(STEPS // 2, STEPS + 1))
    features = rng.normal(size=(CHANNELS, length)).astype(np.float32)
    starts = rng.uniform(0, length * 0.8, size=3)
    segments = np.stack([starts, starts + rng.uniform(1, length * 0.2, size=3)], axis=1).astype(np.float32)
    return (
        torch.from_numpy(features.T.copy()),
        torch.from_numpy(segments),
        torch.from_numpy(rng.integers(0, classes, 3)),
    )


def write_checkpoint(path: Path, shapes: Mapping[str, list[int]], draw: DrawnWeight) -> Path:
    """As its authors save it: with the prefix of DataParallel, both sets of weights, and the optimizer."""
    state = OrderedDict(
        (f"module.{key}", torch.from_numpy(np.asarray(draw(key, tuple(shape)))).float())
        for key, shape in shapes.items()
    )
    average = OrderedDict((key, tensor + 1) for key, tensor in state.items())
    torch.save({"epoch": 35, "state_dict": state, "state_dict_ema": average, "optimizer": {"state": {}}}, path)
    return path


def load_published(config: Config, *, classes: int) -> Detector:
    """A config's detector with the last weights of its file; the average is 1 more."""
    detector = build_detector(config, num_classes=classes)
    weights = find_weights(config.backbone, detector.backbone.vit)
    assert weights is not None
    state = published_state(weights, detector, config=config, reset_classifier=False)
    parameters = dict(detector.named_parameters())
    assert set(state["master"]) == set(state["average"]) == set(parameters)
    with torch.no_grad():
        for key, stored in state["master"].items():
            parameters[key].copy_(stored.read().reshape(parameters[key].shape))
            torch.testing.assert_close(state["average"][key].read(), stored.read() + 1)
    return detector


def five_steps(detector: Detector, config: Config, *, case: int, classes: int) -> list[list[float]]:
    """Classification, regression, their weighted sum, gradient norm and normaliser of each step of AdamW."""
    head = config.head
    points = detector_points(config, device=torch.device("cpu"))
    groups = parameter_groups(detector, TrainConfig(lr_head=1e-2, weight_decay=0.05))
    optimizer = torch.optim.AdamW([group | {"lr": group["base_lr"]} for group in groups])
    normalizer = LossNormalizer(initial=head.loss_normalizer, momentum=head.loss_normalizer_momentum)
    rows = []
    for step in range(5):
        features = torch.zeros(2, STEPS, CHANNELS)
        valid = torch.zeros(2, STEPS, dtype=torch.bool)
        segments, labels = [], []
        for index in range(2):
            drawn, of_video, of_labels = drawn_video(case, step, index, classes)
            features[index, : len(drawn)], valid[index, : len(drawn)] = drawn, True
            segments.append(of_video)
            labels.append(of_labels)
        targets = assign_targets(
            points=points,
            valid=valid_points(valid, config),
            segments=segments,
            labels=labels,
            num_classes=classes,
            center_radius=head.center_radius,
            filter_similar_gt=head.filter_similar_gt,
        )
        sums = detector(features, valid).losses(points=points, targets=targets, settings=head)
        scale = normalizer.update(int(targets.positive.sum()))
        classification, regression = (value / scale for value in sums)
        total = classification + head.reg_loss_weight * regression
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        rows.append([*(value.item() for value in (classification, regression, total, norm)), normalizer.value])
    return rows
