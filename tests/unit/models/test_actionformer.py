"""ActionFormer on features: its own weights by their published names give its losses, for five steps of training.

actionformer.json holds numbers that its authors' code gave on a CPU (github.com/happyharrycn/actionformer_release, its
LocPointTransformer with the weights and videos drawn below; AdamW at 0.01, decay 0.05, gradients clipped at 1; drop
path 1e-9, which scales its branches and drops none).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.errors import CheckpointError
from adatad_ds.models.detector import Detector, detector_points, padded_steps
from adatad_ds.models.factory import build_detector
from adatad_ds.weights.loading import find_weights
from tests.support.published_heads import (
    CHANNELS,
    STEPS,
    WHOLE_STEPS,
    drawn_video,
    five_steps,
    load_published,
    write_checkpoint,
)

GOLDEN = json.loads((Path(__file__).parent / "actionformer.json").read_text(encoding="utf-8"))


def drawn_weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    drawn = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
    if key.endswith("bias"):
        return 0.1 * drawn - (2.0 if "cls_head.cls_head" in key else 0.0) + (1.0 if "offset_head" in key else 0.0)
    if key.endswith("scale"):
        return 0.3 + 0.1 * drawn if "drop_path" in key else 1 + 0.1 * drawn
    if len(shape) == 3 and shape[0] == 1:  # a norm
        return 1 + 0.1 * drawn
    return drawn / np.sqrt(np.prod(shape[1:]))


def config_of(settings: dict[str, Any], weights: Path) -> Config:
    window, channels = settings["win"], settings.get("channels", CHANNELS)  # of each of three sources
    sources = ["one", "two", "three"] if "widths" in settings else "unread"
    tree = {
        "data": {"features": sources, "window_size": STEPS, "feature_stride_frames": 5},
        "backbone": {"name": "features", "feature_channels": channels, "weights": str(weights), "tuning": "frozen"},
        "head": {
            "width": 32,
            "source_widths": settings.get("widths", []),
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
    config = config_of(golden["settings"], write_checkpoint(folder / "model.pth.tar", golden["shapes"], drawn_weight))
    return load_published(config, classes=golden["settings"]["classes"]), config


@pytest.mark.slow
@pytest.mark.parametrize("case", list(enumerate(GOLDEN)), ids=lambda case: case[1])
def test_five_steps_have_its_losses(case, tmp_path):
    number, name = case
    detector, config = loaded(name, tmp_path)
    rows = five_steps(detector, config, case=number, classes=GOLDEN[name]["settings"]["classes"])
    for step, (row, wanted) in enumerate(zip(rows, GOLDEN[name]["steps"], strict=True)):
        assert row == pytest.approx(wanted, rel=5e-5), f"step {step}"


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
    with pytest.raises(CheckpointError, match="no detector on features as the authors of ActionFormer"):
        find_weights(config.backbone, detector.backbone.vit)
