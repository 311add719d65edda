"""ActionFormer on features: its own weights by their published names give its losses, for five steps of training.

actionformer.json holds numbers that its authors' code gave on a CPU (github.com/happyharrycn/actionformer_release, its
LocPointTransformer with the weights and videos drawn below; AdamW at 0.01, decay 0.05, gradients clipped at 1; drop
path 1e-9, which scales its branches and drops none).
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adatad_ds.config import loading
from adatad_ds.config.schema import Config, TrainConfig
from adatad_ds.detection.losses import LossNormalizer, detection_losses
from adatad_ds.detection.points import assign_targets
from adatad_ds.errors import CheckpointError
from adatad_ds.models.detector import Detector, detector_points, padded_steps, valid_points
from adatad_ds.models.factory import build_detector
from adatad_ds.training.optim import parameter_groups
from adatad_ds.weights.loading import find_weights, published_state

GOLDEN = json.loads((Path(__file__).parent / "actionformer.json").read_text(encoding="utf-8"))
CHANNELS, STEPS, WHOLE_STEPS = 12, 64, 113


def drawn_weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    drawn = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
    if key.endswith("bias"):
        return 0.1 * drawn - (2.0 if "cls_head.cls_head" in key else 0.0) + (1.0 if "offset_head" in key else 0.0)
    if key.endswith("scale"):
        return 0.3 + 0.1 * drawn if "drop_path" in key else 1 + 0.1 * drawn
    if len(shape) == 3 and shape[0] == 1:  # a norm
        return 1 + 0.1 * drawn
    return drawn / np.sqrt(np.prod(shape[1:]))


def drawn_video(case: int, step: int, index: int, classes: int, *, steps: int = 0) -> tuple[torch.Tensor, ...]:
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


def checkpoint(path: Path, shapes: dict[str, list[int]]) -> Path:
    """As its authors save it: with the prefix of DataParallel, both sets of weights, and the optimizer."""
    state = OrderedDict(
        (f"module.{key}", torch.from_numpy(np.asarray(drawn_weight(key, tuple(shape)))).float())
        for key, shape in shapes.items()
    )
    average = OrderedDict((key, tensor + 1) for key, tensor in state.items())
    torch.save({"epoch": 35, "state_dict": state, "state_dict_ema": average, "optimizer": {"state": {}}}, path)
    return path


def config_of(settings: dict[str, Any], weights: Path) -> Config:
    window = settings["win"]
    tree = {
        "data": {"features": "unread", "window_size": STEPS, "feature_stride_frames": 5},
        "backbone": {"name": "features", "feature_channels": CHANNELS, "weights": str(weights), "tuning": "frozen"},
        "head": {
            "width": 32,
            "arch": [2, 1, 3],
            "attn_window": window if isinstance(window, int) else list(window),
            "abs_pos_embed": settings["pe"],
            "actionformer_norms": True,
            "drop_path": 0.0,
            "label_smoothing": settings["smooth"],
            "reg_loss_weight": settings["weight"],
            "loss_normalizer": settings["norm"],
            "regression_range": settings["rng"],
        },
    }
    return loading.from_dict(tree)


def loaded(name: str, folder: Path) -> tuple[Detector, Config]:
    golden = GOLDEN[name]
    config = config_of(golden["settings"], checkpoint(folder / "model.pth.tar", golden["shapes"]))
    detector = build_detector(config, num_classes=golden["settings"]["classes"])
    weights = find_weights(config.backbone, detector.backbone.vit)
    assert weights is not None
    state = published_state(weights, detector, config=config, reset_classifier=False)
    parameters = dict(detector.named_parameters())
    assert set(state["master"]) == set(state["average"]) == set(parameters)
    with torch.no_grad():
        for key, stored in state["master"].items():
            parameters[key].copy_(stored.read())
            torch.testing.assert_close(state["average"][key].read(), stored.read() + 1)
    return detector, config


@pytest.mark.parametrize("case", list(enumerate(GOLDEN)), ids=lambda case: case[1])
def test_five_steps_have_its_losses(case, tmp_path):
    number, name = case
    detector, config = loaded(name, tmp_path)
    head, classes = config.head, GOLDEN[name]["settings"]["classes"]
    points = detector_points(config, device=torch.device("cpu"))
    groups = parameter_groups(detector, TrainConfig(lr_head=1e-2, weight_decay=0.05))
    optimizer = torch.optim.AdamW([group | {"lr": group["base_lr"]} for group in groups])
    normalizer = LossNormalizer(initial=head.loss_normalizer, momentum=head.loss_normalizer_momentum)
    for step, wanted in enumerate(GOLDEN[name]["steps"]):
        features = torch.zeros(2, STEPS, CHANNELS)
        valid = torch.zeros(2, STEPS, dtype=torch.bool)
        segments, labels = [], []
        for index in range(2):
            drawn, of_video, of_labels = drawn_video(number, step, index, classes)
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
        found = detector(features, valid)
        classification, regression = detection_losses(
            class_logits=found.class_logits,
            distances=found.distances,
            points=points,
            valid=found.valid,
            targets=targets,
            label_smoothing=head.label_smoothing,
        )
        scale = normalizer.update(int(targets.positive.sum()))
        classification, regression = classification / scale, regression / scale
        total = classification + head.reg_loss_weight * regression
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        values = [*(value.item() for value in (classification, regression, total, norm)), normalizer.value]
        assert values == pytest.approx(wanted, rel=5e-5), f"step {step}"


@pytest.mark.parametrize("case", list(enumerate(GOLDEN)), ids=lambda case: case[1])
def test_a_whole_video_has_its_predictions(case, tmp_path):
    """Longer than a window: its position embedding is stretched, and it is padded to whole attention windows."""
    number, name = case
    detector, config = loaded(name, tmp_path)
    golden = GOLDEN[name]["whole"]
    features, _, _ = drawn_video(number, 99, 0, GOLDEN[name]["settings"]["classes"], steps=WHOLE_STEPS)
    assert padded_steps(config, WHOLE_STEPS) == golden["padded"]
    with torch.no_grad():
        found = detector.eval()(features[None], torch.ones(1, WHOLE_STEPS, dtype=torch.bool))
    points = detector_points(config, device=torch.device("cpu"), steps=WHOLE_STEPS)
    assert found.valid.shape[1] == len(points)
    logits, distances = found.class_logits[found.valid], found.distances[found.valid]
    assert len(logits) == golden["points"]
    np.testing.assert_allclose(logits[::9, 0], golden["logits"], atol=2e-4)
    np.testing.assert_allclose(distances[::9].flatten(), golden["distances"], atol=2e-4)


def test_other_files_are_refused(tmp_path):
    torch.save({"state_dict": {"blocks.0.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    config = config_of(GOLDEN["thumos"]["settings"], tmp_path / "other.pth")
    detector = build_detector(config, num_classes=5)
    with pytest.raises(CheckpointError, match="no detector on features as ActionFormer's authors save it"):
        find_weights(config.backbone, detector.backbone.vit)
