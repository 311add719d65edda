"""Newer backbones, and whole videos in a window, under AdaTAD's settings for THUMOS14: published by no one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adatad_ds.config.schema import Config
from adatad_ds.recipes.adatad import Recipe
from adatad_ds.recipes.adatad_families import thumos_config

_HUB = {"l": "facebook/vjepa2-vitl-fpc64-256", "h": "facebook/vjepa2-vith-fpc64-256"}
_HUB["g"] = "facebook/vjepa2-vitg-fpc64-256"


def unpublished_recipes() -> Iterator[tuple[str, Recipe]]:
    """Each at the resolution of its pretraining, InternVideo2 with its clips of 8 frames, too."""
    for size, weights in _HUB.items():
        config = _thumos(f"vjepa2_{size}", resolution=256, short_side=292, compact=size == "g")
        yield f"thumos14_vjepa2_{size}", _recipe(replace(config, backbone=replace(config.backbone, weights=weights)))
    config = _thumos("internvideo2_1b", resolution=224, short_side=256, compact=True)
    yield "thumos14_internvideo2_1b", _recipe(replace(config, backbone=replace(config.backbone, clip_frames=8)))

    yield "thumos14_videomae_s_whole", _recipe(_whole_videos())


def _thumos(backbone: str, *, resolution: int, short_side: int, compact: bool) -> Config:
    config = thumos_config(backbone, lr_adapter=1e-4)
    return replace(
        config,
        data=replace(config.data, resolution=resolution, short_side_before_crop=short_side),
        train=replace(config.train, compact_checkpoints=compact),
    )


def _whole_videos() -> Config:
    """All frames of 17 minutes at 30 per second at once, with features at the published rate."""
    config = thumos_config("videomae_s", lr_adapter=2e-4)
    return replace(
        config,
        data=replace(config.data, window_size=7680, frames_per_feature=4),
        head=replace(config.head, attn_window=19),
    )


def _recipe(config: Config) -> Recipe:
    return Recipe(config=config, dataset="thumos14", summary="not published")
