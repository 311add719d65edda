"""A small detector that can be loaded without training it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from adatad_ds.config import loading
from adatad_ds.inference.trained_model import Trained, export
from adatad_ds.models.factory import build_detector
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.weights.files import StoredTensor
from tests.support.launch import SMALL

CLASSES = ("blink", "grow", "left", "right", "up")
SCORING = {  # with which no two candidates score so much alike that rounding changes their order
    "head.arch": "[1,1,2]",
    "head.regression_range": "[[0,4],[4,8],[8,10000]]",
    "test.batch": 2,
    "test.max_per_video": 300,
}


def make_export(
    path: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    recipe: str = "quickstart",
    small: Mapping[str, object] = SMALL,
    **changes: object,
) -> Path:
    """A small detector that nobody trained, whose scores differ widely, as an export."""
    settings = dict(small) | SCORING | {name.replace("__", "."): value for name, value in changes.items()}
    overrides = [f"{name}={value}" for name, value in settings.items()]
    config = loading.override(find_recipe(recipe).config, overrides)
    torch.manual_seed(1)
    detector = build_detector(config, num_classes=1 if config.data.class_agnostic else len(classes))
    torch.nn.init.normal_(detector.head.cls_head.weight, std=0.1)
    assert detector.head.cls_head.bias is not None
    torch.nn.init.constant_(detector.head.cls_head.bias, -0.5)
    trainable = {
        name: StoredTensor(tuple(parameter.shape), lambda parameter=parameter: parameter.detach())
        for name, parameter in detector.named_parameters()
        if parameter.requires_grad
    }
    trained = Trained(
        source=path,
        name="nobody",
        folder=path.parent,
        config=config,
        classes=classes,
        trainable=trainable,
        frozen_fingerprint=None,
        averaged=False,
    )
    export(trained, path, extra={})
    return path
