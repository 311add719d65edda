"""All recipes, and how `--recipe NAME` finds one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from adatad_ds.config.backbone import FEATURES, Tuning
from adatad_ds.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    TestConfig,
    TrainConfig,
)
from adatad_ds.errors import ConfigError
from adatad_ds.recipes.actionformer import actionformer_recipes
from adatad_ds.recipes.adatad import Recipe, published_recipes
from adatad_ds.recipes.aim import aim_recipes
from adatad_ds.recipes.opentad import opentad_recipes
from adatad_ds.recipes.tridet import tridet_recipes
from adatad_ds.recipes.unpublished import unpublished_recipes

__all__ = ["Recipe", "all_recipes", "config_diff", "find_recipe", "recipe_table"]


def find_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        ConfigError: unknown name.
    """
    recipes = all_recipes()
    if name not in recipes:
        import difflib

        close = difflib.get_close_matches(name, recipes, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "--list-recipes shows all"
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    return recipes[name]


@cache
def all_recipes() -> Mapping[str, Recipe]:
    """Every recipe by name, made at the first call."""
    quickstart = {
        "quickstart": _quickstart("tia"),
        "quickstart_frozen": _quickstart("frozen"),
        "quickstart_features": _quickstart_features(),
    }
    families = (
        published_recipes(),
        unpublished_recipes(),
        aim_recipes(),
        actionformer_recipes(),
        opentad_recipes(),
        tridet_recipes(),
    )
    return MappingProxyType(quickstart | {name: recipe for family in families for name, recipe in family})


def recipe_table() -> str:
    """All recipes, one line each."""
    rows = [("recipe", "dataset", "backbone", "tuning", "frames", "px", "published %", "")]
    for name, recipe in all_recipes().items():
        config = recipe.config
        published = recipe.published_top1 if config.recognition else recipe.published_map
        rows.append(
            (
                name,
                recipe.dataset,
                config.backbone.name,
                config.backbone.tuning,
                str(config.sample_frames),
                str(config.data.resolution),
                "" if published is None else f"{published:.2f}",
                recipe.summary,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def config_diff(config: Config, other: Config) -> str:
    """Keys that differ between two configs, one line each."""
    ours, theirs = _keys(config), _keys(other)
    rows = [
        (key, json.dumps(ours.get(key)), json.dumps(theirs.get(key)))
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    width = max((len(row[0]) for row in rows), default=0)
    return "\n".join(f"{key.ljust(width)}  {ours}  ->  {theirs}" for key, ours, theirs in rows)


def _keys(config: Config) -> dict[str, Any]:
    """`section.key` -> value."""
    return {f"{section}.{key}": value for section, keys in config.to_dict().items() for key, value in keys.items()}


def _quickstart(tuning: Tuning) -> Recipe:
    """Generated videos and a tiny pretrained backbone: minutes on a laptop's CPU."""
    config = Config(
        data=DataConfig(
            annotations="data/quickstart/annotations.json",
            videos="data/quickstart/videos",
            train_subset="training",
            test_subset="validation",
            window_size=64,
            frames_per_feature=2,
            feature_stride_frames=2,
            resolution=64,
            short_side_before_crop=72,
            augment=(),
        ),
        backbone=BackboneConfig(
            name="tiny",
            weights="adatad_ds/weights/tiny.safetensors",
            tuning=tuning,
            activation_checkpointing=False,
            clips_per_chunk=0,
        ),
        head=HeadConfig(
            width=128,
            arch=(2, 1, 3),
            regression_range=((0, 4), (4, 8), (8, 16), (16, 10000)),
            drop_path=0.0,
        ),
        train=TrainConfig(
            precision="fp32",
            global_batch=4,
            lr_head=1e-3,
            lr_adapter=1e-3,
            ema_decay=0.98,  # forgets its start within an epoch or two
            ema_warmup=False,
            warmup_epochs=1,
            schedule_epochs=16,
            stop_epoch=16,
            eval_from_epoch=16,
            eval_every=5,
        ),
        test=TestConfig(batch=4, sigma=0.5, max_per_video=100),
    )
    return Recipe(config=config, dataset="", summary="generated videos, tiny backbone, minutes on a CPU")


def _quickstart_features() -> Recipe:
    """The frozen quickstart's head on features that were extracted before."""
    config = _quickstart("frozen").config
    data = replace(config.data, features="data/quickstart/features", frames_per_feature=1)
    backbone = BackboneConfig(name=FEATURES, tuning="frozen")
    return Recipe(
        config=replace(config, data=data, backbone=backbone),
        dataset="",
        summary="the same on features: adatad-ds extract-features --recipe quickstart_frozen",
    )
