"""Settings that change nothing: said of those, and of no others, by what models and optimizers are built of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from adatad_ds.config.backbone import Tuning
from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.config.without_effect import described, without_effect
from adatad_ds.models.factory import build_model
from adatad_ds.models.shapes import shapes_only
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.training.optim import parameter_groups

IN_THE_MODEL = {  # settings that can be seen there, each with another value than any recipe's
    "backbone.adapter_blocks": "[0]",
    "backbone.adapter_ratio": 0.9,
    "backbone.adapter_kernel": 7,
    "backbone.adapter_dilation": 5,
    "backbone.ladder_dilations": "[3]",
    "backbone.lora_rank": 3,
    "backbone.lora_alpha": 3,
    "backbone.lora_targets": "[fc2]",
    "backbone.lora_dora": "true",
    "backbone.aim_joint_scale": 0.9,
    "head.heads": 2,
    "head.attn_window": 7,
    "head.proj_dropout": 0.4,
    "head.drop_path": 0.4,
    "head.sgp_window": 5,
    "head.sgp_scale": 4,
    "head.sgp_mlp_width": 48,
    "head.num_bins": 7,
    "head.boundary_kernel": 7,
    "train.lr_adapter": 0.7,
    "train.lr_backbone": 0.7,
    "train.weight_decay_backbone": 0.7,
}
CASES = [
    *(("quickstart", f"backbone.tuning={tuning}") for tuning in get_args(Tuning) if tuning != "aim"),
    ("quickstart_aim", "backbone.tuning=aim"),
    ("quickstart", "backbone.name=vit_tiny_generated"),
    ("quickstart_features", "head.name=actionformer"),
    ("quickstart_features", "head.name=tridet"),
    ("quickstart_features", "head.name=temporalmaxer"),
]


def made_of(config: Config) -> object:
    """What a model and its optimizer's groups are made of."""
    if config.backbone.is_features:
        config = replace(config, backbone=replace(config.backbone, feature_channels=24))
    with shapes_only():
        model = build_model(config, num_classes=3)
    parts = [(name, type(part).__name__, plain(vars(part))) for name, part in model.named_modules()]
    shapes = [(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    groups = [{**group, "params": len(group["params"])} for group in parameter_groups(model, config.train)]
    return parts, shapes, groups


def plain(values: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in values.items() if isinstance(value, bool | int | float | str | tuple)]


@pytest.mark.parametrize(("recipe", "change"), CASES)
def test_what_is_said_to_change_nothing(recipe: str, change: str):
    needs = ["backbone.weights=null", "head.arch=[1,0,1]", "head.regression_range=[[0,4],[4,10000]]"]
    needs += ["train.lr_backbone=0.1"] if "full" in change else []
    config = override(find_recipe(recipe).config, [change, *needs])
    before, idle = made_of(config), without_effect(config)
    for key, value in IN_THE_MODEL.items():
        acts = made_of(override(config, [f"{key}={value}"])) != before
        assert acts == (key not in idle), key


def test_a_transformers_own_rate_is_the_adapters_where_none_is_set():
    config = override(find_recipe("quickstart").config, ["backbone.tuning=bitfit"])
    assert "train.lr_adapter" not in without_effect(config)
    assert "train.lr_adapter" in without_effect(override(config, ["train.lr_backbone=1e-4"]))
    assert {"train.lr_backbone", "train.lr_adapter"} <= without_effect(find_recipe("quickstart_frozen").config).keys()


@pytest.mark.parametrize(
    ("recipe", "changes", "idle", "acting"),
    [
        ("quickstart", [], "test.tiou_suppression", "test.sigma"),
        ("quickstart", ["test.suppression=hard"], "test.sigma", "test.tiou_suppression"),
        ("quickstart", [], "test.voting_thresh", "test.per_class"),
        ("quickstart", ["test.per_class=false"], "test.external_topk", "test.voting_thresh"),
        ("quickstart", [], "data.offset_steps", "data.offset_frames"),
        ("quickstart", ["data.sampling=resize"], "data.crop_ratio", "data.fixed_fps"),
        ("quickstart", ["data.sampling=resize"], "data.offset_frames", "data.augment"),
        ("quickstart_features", [], "data.augment", "data.test_whole_videos"),
        ("quickstart_features", ["data.sampling=resize"], "data.trunc_thresh", "data.offset_steps"),
        ("quickstart_features", ["data.sampling=resize"], "data.test_window_overlap", "data.crop_ratio"),
        ("quickstart_features", [], "backbone.tuning", "backbone.weights"),
        ("quickstart_aim", [], "data.window_size", "data.augment"),
        ("quickstart_aim", [], "head.width", "test.batch"),
        ("quickstart_aim", [], "recognition.stride", "recognition.frames"),
        ("quickstart_aim", ["recognition.sampling=dense"], "test.sigma", "recognition.stride"),
        ("quickstart", ["train.warmup_epochs=0"], "train.warmup_start", "train.warmup_epochs"),
        ("quickstart", ["train.ema_decay=0"], "train.ema_warmup", "train.ema_decay"),
        ("quickstart", ["backbone.weights=null"], "head.reset_classifier", "backbone.drop_path"),
    ],
)
def test_of_data_and_suppression(recipe: str, changes: list[str], idle: str, acting: str):
    found = without_effect(override(find_recipe(recipe).config, changes))
    assert idle in found
    assert acting not in found


def test_all_are_keys_and_each_is_named_once():
    for recipe in (find_recipe(name) for name in ("quickstart", "quickstart_features", "quickstart_aim")):
        tree = recipe.config.to_dict()
        for key in without_effect(recipe.config):
            section, _, name = key.partition(".")
            assert name in tree[section], key
    config = find_recipe("quickstart").config
    assert described(config, ["train.lr_head=1", "head.num_bins=3", "head.num_bins=4"]) == [
        "--set head.num_bins changes nothing here: it is for head.name=tridet"
    ]
