"""The detector reproduces the reference implementation's numbers from its published checkpoint layout."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TestConfig
from adatad_ds.detection.decoding import decode_segments
from adatad_ds.detection.losses import detection_losses
from adatad_ds.detection.points import assign_targets
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.detector import Detector, detector_points
from adatad_ds.models.factory import build_detector
from adatad_ds.weights.loading import fill_backbone, find_weights, trained_tensors
from adatad_ds.weights.video_layouts import ADATAD, open_weights
from tests.support.golden import GOLDEN, needs_golden, published_name
from tests.support.launch import finish

CASES = ("tia", "side")
VALUES = {"rtol": 1e-4, "atol": 1e-5}
GRADIENTS = {"rtol": 1e-3, "atol": 1e-5}
pytestmark = needs_golden


def build(case: str, **backbone_changes) -> tuple[Config, Detector]:
    settings = json.loads((GOLDEN / f"{case}.json").read_text())["config"]
    levels = settings["levels"]
    config = Config(
        data=DataConfig(
            window_size=settings["T"],
            frames_per_feature=settings["scale"],
            resolution=settings["img"],
            short_side_before_crop=settings["img"],
        ),
        backbone=replace(
            BackboneConfig(
                weights=str(GOLDEN / f"{case}.pth"),
                tuning=case,
                adapter_blocks=tuple(settings["adapter_index"]) if "adapter_index" in settings else None,
                clips_per_chunk=0,
                activation_checkpointing=False,
            ),
            **backbone_changes,
        ),
        head=HeadConfig(
            width=32,
            arch=(2, 2, levels - 1),
            heads=4,
            attn_window=settings["win"],
            regression_range=((0, 4), (4, 8), (8, 16), (16, 10000)),
        ),
        test=TestConfig(),
    )
    spec = ViTSpec(
        width=settings["dim"],
        depth=settings["depth"],
        heads=settings["heads"],
        mlp_hidden=4 * settings["dim"],
        patch=settings["patch"],
        pretrained_side=settings["img"],
    )
    return config, load(case, config, spec, classes=settings["classes"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_public_command_converts_them(case, tmp_path):
    """Both the last weights and the average come through `adatad-ds convert` unchanged."""
    out = tmp_path / f"{case}.safetensors"
    finish([sys.executable, "-m", "adatad_ds", "convert", str(GOLDEN / f"{case}.pth"), "--out", str(out)])
    for averaged in (False, True):
        published, converted = (open_weights(path, averaged=averaged) for path in (GOLDEN / f"{case}.pth", out))
        assert converted.layout == ADATAD
        assert converted.loss_normalizer == published.loss_normalizer
        for theirs, ours in ((published.vit, converted.vit), (published.trained, converted.trained)):
            assert theirs.keys() == ours.keys()
            assert all(torch.equal(theirs[name].read(), ours[name].read()) for name in theirs)


def load(case: str, config: Config, spec: ViTSpec, *, classes: int) -> Detector:
    detector = build_detector(config, spec=spec, num_classes=classes)
    weights = find_weights(config.backbone, detector.backbone.vit, averaged=True)
    assert weights is not None
    assert weights.loss_normalizer == 100
    fill_backbone(detector.backbone.vit, weights.vit, dtype=torch.float32, read=True, host=lambda module: None)
    own = dict(detector.named_parameters())
    for name, stored in trained_tensors(weights, detector, reset_classifier=False).items():
        own[name].data.copy_(stored.read())
    return detector


@cache
def numbers(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return dict(file)


def inputs(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    golden = numbers(case)
    return torch.from_numpy(golden["video"]).permute(0, 2, 3, 4, 1), torch.from_numpy(golden["masks"])


def compare(actual: torch.Tensor, expected: np.ndarray, **tolerance) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(expected), **(tolerance or VALUES))


@pytest.mark.parametrize("case", CASES)
def test_features_and_pyramid(case):
    _, detector = build(case)
    golden, (frames, valid) = numbers(case), inputs(case)
    with torch.no_grad():
        features = detector.backbone(frames)
        levels, masks = detector.pyramid(features.transpose(1, 2), valid)
    compare(features, golden["feats"])
    for index, (level, mask) in enumerate(zip(levels, masks, strict=True)):
        compare(level.transpose(1, 2), golden[f"fpn{index}"])
        assert (mask.numpy() == golden[f"fpn_mask{index}"]).all()


@pytest.mark.parametrize("case", CASES)
def test_proposals_and_scores(case):
    config, detector = build(case)
    golden = numbers(case)
    with torch.no_grad():
        predictions = detector(*inputs(case))
    segments = decode_segments(detector_points(config, device=torch.device("cpu")), predictions.distances)
    for window, valid in enumerate(predictions.valid):
        compare(segments[window][valid], golden[f"proposals{window}"])
        compare(predictions.class_logits[window][valid].sigmoid(), golden[f"scores{window}"])


EXECUTIONS = {
    "whole": {},
    "checkpointed": {"activation_checkpointing": True},
    "chunks of 1 clip": {"clips_per_chunk": 1},
    "chunks of 3 clips, checkpointed": {"clips_per_chunk": 3, "activation_checkpointing": True},
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_every_gradient(case, execution):
    config, detector = build(case, **EXECUTIONS[execution])
    golden = numbers(case)
    predictions = detector(*inputs(case))
    points = detector_points(config, device=torch.device("cpu"))
    head = config.head
    targets = assign_targets(
        points=points,
        valid=predictions.valid,
        segments=[torch.from_numpy(golden[f"gt_segments{window}"]) for window in (0, 1)],
        labels=[torch.from_numpy(golden[f"gt_labels{window}"]) for window in (0, 1)],
        num_classes=predictions.class_logits.shape[-1],
        center_radius=head.center_radius,
        filter_similar_gt=head.filter_similar_gt,
    )
    classification, regression = detection_losses(
        class_logits=predictions.class_logits,
        distances=predictions.distances,
        points=points,
        valid=predictions.valid,
        targets=targets,
        label_smoothing=head.label_smoothing,
    )
    positives = targets.positive.sum()
    compare(classification / positives, golden["cls_loss"])
    compare(regression / positives, golden["reg_loss"])
    loss = (classification + regression) / positives
    compare(loss, golden["cost"])

    loss.backward()
    blocks = detector.backbone.adapted_blocks
    trainable = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    expected = {key.removeprefix("grad/"): value for key, value in golden.items() if key.startswith("grad/")}
    assert {published_name(name, adapted_blocks=blocks, side=case == "side") for name in trainable} == set(expected)
    for name, parameter in trainable.items():
        reference = expected[published_name(name, adapted_blocks=blocks, side=case == "side")]
        assert parameter.grad is not None, name
        compare(parameter.grad, reference.reshape(parameter.shape), **GRADIENTS)
    frozen = [name for name, parameter in detector.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(detector.get_parameter(name).grad is None for name in frozen)
