"""The experiments as data: what `--recipe NAME` means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from adatad_ds.config import (
    BackboneConfig,
    Config,
    ConfigError,
    DataConfig,
    HeadConfig,
    TestConfig,
    TrainConfig,
    Tuning,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named experiment.

    Attributes:
        config: everything that the run needs, but for where the user's data lies.
        published_map: average mAP in % that the paper reports; None: not in it.
        summary: one line.
    """

    config: Config
    summary: str
    published_map: float | None = None


def find_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        ConfigError: there is none of that name.
    """
    recipes = all_recipes()
    if name not in recipes:
        import difflib

        close = difflib.get_close_matches(name, recipes, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "--list-recipes shows all"
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    return recipes[name]


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    return {"quickstart": _quickstart("tia"), "quickstart_frozen": _quickstart("frozen")} | dict(_thumos14())


def recipe_table() -> str:
    """All recipes, one line each."""
    rows = [("recipe", "backbone", "tuning", "frames", "px", "mAP", "")]
    for name, recipe in all_recipes().items():
        config, published = recipe.config, recipe.published_map
        rows.append(
            (
                name,
                config.backbone.name,
                config.backbone.tuning,
                str(config.data.window_frames),
                str(config.data.resolution),
                "" if published is None else f"{published:.2f}",
                recipe.summary,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


# AdaTAD on THUMOS14: adapter learning rate and published average mAP (arXiv 2311.17241, tables 1 and 3), by backbone.
_THUMOS14_TIA = {
    "videomae_s": (2e-4, 69.03),
    "videomae_b": (1e-4, 71.14),
    "videomae_l": (1e-4, 73.51),
    "videomae_h": (1e-4, 74.95),
    "videomaev2_g": (1e-4, 75.06),
}
_ALL_AUGMENTATIONS = ("random_resized_crop", "flip", "rand_augment", "color_jitter")


def _thumos14() -> Iterator[tuple[str, Recipe]]:
    for backbone, (rate, published) in _THUMOS14_TIA.items():
        name = f"thumos14_{backbone}"
        tia = _thumos14_config(backbone, "tia", lr_adapter=rate)
        yield name, Recipe(config=tia, published_map=published, summary="THUMOS14, AdaTAD")
        yield f"{name}_frozen", Recipe(config=_thumos14_frozen(tia), summary="THUMOS14, frozen backbone")
        yield f"{name}_full", Recipe(config=_thumos14_full(tia), summary="THUMOS14, full fine-tuning")
    small = _thumos14_config("videomae_s", "side", lr_adapter=2e-4)
    small = replace(small, backbone=replace(small.backbone, adapter_blocks=tuple(range(6, 12)), drop_path=0.0))
    yield (
        "thumos14_videomae_s_side",
        Recipe(config=_with_input_dropout(small, 0.1), summary="THUMOS14, AdaTAD beside the backbone"),
    )
    giant = _thumos14_1536("tia")
    yield (
        "thumos14_videomaev2_g_1536",
        Recipe(config=giant, published_map=77.07, summary="THUMOS14, AdaTAD, 1 B parameters x 1536 frames"),
    )
    beside = _thumos14_1536("side")
    beside = replace(beside, backbone=replace(beside.backbone, adapter_ratio=0.125, drop_path=0.0))
    yield (
        "thumos14_videomaev2_g_1536_side",
        Recipe(
            config=_with_input_dropout(beside, 0.1),
            published_map=74.65,
            summary="THUMOS14, AdaTAD beside the backbone, 1536 frames",
        ),
    )


def _thumos14_config(backbone: str, tuning: Tuning, *, lr_adapter: float) -> Config:
    return Config(
        data=DataConfig(
            annotations="data/thumos14/annotations.json",
            videos="data/thumos14/videos",
            train_subset="training",
            test_subset="validation",
            augment=_ALL_AUGMENTATIONS,
        ),
        backbone=BackboneConfig(
            name=backbone, weights=f"pretrained/{backbone}.safetensors", tuning=tuning, drop_path=0.1
        ),
        head=HeadConfig(),
        train=TrainConfig(lr_adapter=lr_adapter, compact_checkpoints=backbone == "videomaev2_g"),
        test=TestConfig(),
    )


def _thumos14_1536(tuning: Tuning) -> Config:
    config = _thumos14_config("videomaev2_g", tuning, lr_adapter=2e-4)
    return replace(
        config,
        data=replace(config.data, frames_per_feature=2, resolution=224, short_side_before_crop=256),
        backbone=replace(config.backbone, adapter_blocks=tuple(range(20, 40))),
        train=replace(config.train, stop_epoch=50, eval_from_epoch=37),
    )


def _thumos14_frozen(config: Config) -> Config:
    config = replace(
        config,
        data=replace(config.data, short_side_before_crop=160, augment=()),
        backbone=replace(config.backbone, tuning="frozen", drop_path=0.0, activation_checkpointing=False),
        train=replace(config.train, eval_from_epoch=39, eval_every=5),
        test=replace(config.test, sigma=0.5, min_score=0.001),
    )
    return _with_input_dropout(config, 0.2)


def _thumos14_full(config: Config) -> Config:
    return replace(
        config,
        backbone=replace(config.backbone, tuning="full"),
        train=replace(config.train, lr_backbone=1e-5, eval_from_epoch=39, eval_every=5),
    )


def _with_input_dropout(config: Config, rate: float) -> Config:
    return replace(config, head=replace(config.head, input_dropout=rate))


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
            ema_decay=0.98,
            warmup_epochs=1,
            schedule_epochs=16,
            stop_epoch=16,
            eval_from_epoch=16,
            eval_every=5,
        ),
        test=TestConfig(batch=4, sigma=0.5, max_per_video=100),
    )
    return Recipe(config=config, summary="generated videos, tiny backbone, minutes on a CPU")
