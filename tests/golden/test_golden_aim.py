"""The AIM block stack reproduces the reference implementation's features and every gradient."""

from __future__ import annotations

import json
from functools import cache, partial

import numpy as np
import pytest
import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer

from adatad_ds.models.backbones.adapted_image import ALL_ADAPTERS, AIMTransformer
from adatad_ds.models.backbones.image_vit import ImageTransformer
from adatad_ds.weights.files import StoredTensor
from adatad_ds.weights.image_layouts import AIM, recognise_aim
from adatad_ds.weights.layout import Weights
from tests.support.golden import GOLDEN, needs_golden

VALUES = {"rtol": 1e-4, "atol": 1e-5}
GRADIENTS = {"rtol": 1e-3, "atol": 1e-5}
pytestmark = needs_golden


@cache
def numbers() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "aim.npz") as file:
        return dict(file)


def by_name(kind: str) -> dict[str, StoredTensor]:
    """The same, by the names of the model's parameters."""
    found = by_our_names(kind)
    assert found.layout == AIM
    trained = {name.removeprefix("backbone."): value for name, value in found.trained.items()}
    return {f"vit.{name}": value for name, value in found.vit.items()} | trained


def by_our_names(kind: str) -> Weights:
    """The reference's parameters, or their gradients."""
    tensors = {
        name.removeprefix(f"{kind}/"): StoredTensor(value.shape, partial(torch.from_numpy, value))
        for name, value in numbers().items()
        if name.startswith(f"{kind}/")
    }
    return recognise_aim(tensors, source="aim.npz")


def build(*, activation_checkpointing: bool) -> AIMTransformer:
    settings = json.loads((GOLDEN / "aim.json").read_text())["config"]
    vit = VisionTransformer(
        img_size=settings["input_resolution"],
        patch_size=settings["patch_size"],
        embed_dim=settings["width"],
        depth=settings["layers"],
        num_heads=settings["heads"],
        num_classes=0,
        pre_norm=True,
        norm_layer=partial(LayerNorm, eps=1e-5),
        act_layer="quick_gelu",
    )
    model = AIMTransformer(
        vit=ImageTransformer(vit=vit, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0)),
        clip_frames=settings["num_frames"],
        feature_steps=settings["num_frames"],
        adapt=ALL_ADAPTERS,
        tuning="full",
        adapter_before_time=settings["num_tadapter"] == 2,
        joint_scale=settings["adapter_scale"],
        drop_path=settings["drop_path_rate"],
        activation_checkpointing=activation_checkpointing,
    )
    with torch.no_grad():
        for name, value in by_name("param").items():
            parameter = model.get_parameter(name)
            parameter.copy_(value.read().reshape(parameter.shape))
    return model


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_features_and_gradients(activation_checkpointing):
    model = build(activation_checkpointing=activation_checkpointing)
    frames = torch.from_numpy(numbers()["x"]).permute(0, 2, 3, 4, 1)  # already normalised
    features = model(frames)
    torch.testing.assert_close(features, torch.from_numpy(numbers()["y"])[..., 0, 0], **VALUES)

    features.square().sum().backward()
    expected = by_name("grad")
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name].read().reshape(gradient.shape), **GRADIENTS)
