"""V-JEPA 2 under AdaTAD's settings for THUMOS14: a starting point, published by no one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adatad_ds.recipes.adatad import Recipe
from adatad_ds.recipes.adatad_families import thumos_config

_HUB = {"l": "facebook/vjepa2-vitl-fpc64-256", "h": "facebook/vjepa2-vith-fpc64-256"}
_HUB["g"] = "facebook/vjepa2-vitg-fpc64-256"


def vjepa2_recipes() -> Iterator[tuple[str, Recipe]]:
    """One for each size, at the 256 px of the pretraining."""
    for size, weights in _HUB.items():
        config = thumos_config(f"vjepa2_{size}", lr_adapter=1e-4)
        config = replace(
            config,
            data=replace(config.data, resolution=256, short_side_before_crop=292),
            backbone=replace(config.backbone, weights=weights),
            train=replace(config.train, compact_checkpoints=size == "g"),
        )
        yield f"thumos14_vjepa2_{size}", Recipe(config=config, dataset="thumos14", summary="not published")
