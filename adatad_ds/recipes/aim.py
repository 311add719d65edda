"""AIM's experiments as data (Yang et al., ICLR 2023), every field as in the authors' settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from adatad_ds.config.backbone import AIMAdapter, Tuning
from adatad_ds.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    RecognitionConfig,
    TestConfig,
    TrainConfig,
)
from adatad_ds.recipes.adatad import Recipe
from adatad_ds.recipes.adatad_families import thumos_config

Size = Literal["b16", "l14"]
SIZES: tuple[Size, ...] = get_args(Size)
CLIP: dict[Size, tuple[str, str]] = {  # name in timm, weights
    "b16": ("vit_base_patch16_clip_quickgelu_224", "openai/clip-vit-base-patch16"),
    "l14": ("vit_large_patch14_clip_quickgelu_224", "openai/clip-vit-large-patch14"),
}
IMAGENET = ("vit_base_patch16_224", "timm/vit_base_patch16_224.orig_in21k_ft_in1k")
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # the authors', not the weights' own
SPAN_FRAMES = 128  # file frames covered by a dense clip

# Rows of the quickstart's ablation: tuning and adapters.
ABLATION: dict[str, tuple[Tuning, tuple[AIMAdapter, ...]]] = {
    "frozen": ("frozen", ()),
    "s": ("aim", ("spatial",)),
    "st": ("aim", ("spatial", "temporal")),
    "stj": ("aim", ("spatial", "temporal", "joint")),
    "full": ("full", ()),
    "full_t": ("full", ("temporal",)),
}


def aim_recipes() -> Iterator[tuple[str, Recipe]]:
    """All of them, by name."""
    for row, (tuning, adapters) in ABLATION.items():
        yield (
            ablation_recipe(row),
            Recipe(
                config=_quickstart(tuning, adapters),
                dataset="",
                summary=f"generated clips; {tuning}, {' + '.join(adapters) or 'no adapters'}",
            ),
        )
    yield from _kinetics()
    yield from _something_something()
    yield from _diving()
    for size, (name, weights) in CLIP.items():
        config = thumos_config("videomae_b", lr_adapter=1e-4)
        backbone = BackboneConfig(name=name, weights=weights, tuning="aim", drop_path=0.1, clips_per_chunk=2)
        config = replace(
            config, backbone=backbone, data=replace(config.data, resolution=224, short_side_before_crop=256)
        )
        yield (
            f"thumos14_clip_{size}",
            Recipe(config=config, dataset="thumos14", summary="AIM under AdaTAD's head and settings; not published"),
        )


def ablation_recipe(row: str) -> str:
    """Recipe name of a row of `ABLATION`; the row with all adapters is AIM's quickstart."""
    return "quickstart_aim" if row == "stj" else f"quickstart_aim_{row}"


def _kinetics() -> Iterator[tuple[str, Recipe]]:
    """Dense clips over 128 file frames; 3 test clips, with 3 crops for Kinetics-700."""
    published: dict[Size, dict[int, float]] = {
        "b16": {8: 83.9, 16: 84.5, 32: 84.7},
        "l14": {8: 86.8, 16: 87.3, 32: 87.5},
    }
    for size in SIZES:
        for frames, top1 in published[size].items():
            config = _published("kinetics400", size, frames=frames, epochs=30)
            if size == "l14":
                augment = ("random_resized_crop", "flip", "lighting")
                config = _slow_backbone(replace(config, data=replace(config.data, augment=augment)))
            yield f"kinetics400_clip_{size}_{frames}", _recipe(config, "kinetics400", top1)
    config = _published("kinetics400", "b16", frames=8, epochs=30)
    name, weights = IMAGENET
    backbone = replace(config.backbone, name=name, weights=weights, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
    config = replace(config, backbone=backbone)
    yield "kinetics400_imagenet_b16_8", _recipe(config, "kinetics400", None)
    tested: tuple[tuple[Size, int, float | None], ...] = (("b16", 8, None), ("b16", 32, 76.9), ("l14", 32, 80.4))
    for size, frames, top1 in tested:
        config = _published("kinetics700", size, frames=frames, epochs=30, crops=3)
        yield f"kinetics700_clip_{size}_{frames}", _recipe(config, "kinetics700", top1)


def _something_something() -> Iterator[tuple[str, Recipe]]:
    """Stronger augmentation and label smoothing; B has another adapter before temporal attention.

    The flip comes from imgaug's RandAugment: the authors turn their own off, since left and right distinguish classes,
    but get this one.
    """
    for size in SIZES:
        config = _published("ssv2", size, frames=8, epochs=50, clips=1, crops=3, sampling="uniform")
        assert config.recognition is not None
        config = replace(
            config,
            data=replace(config.data, augment=("random_resized_crop", "flip", "rand_augment_n4_m7", "random_erasing")),
            backbone=replace(config.backbone, aim_joint_scale=1.0, aim_before_time=size == "b16"),
            recognition=replace(config.recognition, label_smoothing=0.1),
        )
        if size == "l14":
            config = _slow_backbone(config)
        yield f"ssv2_clip_{size}_8", _recipe(config, "ssv2", None)


def _slow_backbone(config: Config) -> Config:
    """A tenth of the learning rate in the backbone; the authors' key for it also decays the final norm."""
    return replace(config, train=replace(config.train, lr_adapter=3e-5, weight_decay_backbone=0.05))


def _diving() -> Iterator[tuple[str, Recipe]]:
    published: tuple[tuple[Size, float], ...] = (("b16", 88.9), ("l14", 90.6))
    for size, top1 in published:
        config = _published("diving48", size, frames=32, epochs=50, clips=1, sampling="uniform")
        yield f"diving48_clip_{size}_32", _recipe(config, "diving48", top1)


def _recipe(config: Config, dataset: str, top1: float | None) -> Recipe:
    return Recipe(config=config, dataset=dataset, summary="AIM", published_top1=top1)


def _published(
    dataset: str,
    size: Size,
    *,
    frames: int,
    epochs: int,
    clips: int = 3,
    crops: Literal[1, 3] = 1,
    sampling: Literal["dense", "uniform"] = "dense",
) -> Config:
    """Shared by the published settings: 64 clips per step, AdamW at 3e-4, no clipping, no EMA.

    # differs: the authors compute in fp16 (apex O1), here bf16; during training they validate on one clip cropped from
    # 256 px, here on the views of the final test. Their config for Diving-48 with B/16 tests three crops, their
    # published figure is for one.
    """
    name, weights = CLIP[size]
    return Config(
        data=DataConfig(
            videos=f"data/{dataset}/videos",
            resolution=224,
            short_side_before_crop=256,
            scaling="bilinear",
            augment=("random_resized_crop", "flip"),
        ),
        backbone=BackboneConfig(name=name, weights=weights, tuning="aim", drop_path=0.2, clips_per_chunk=1),
        train=TrainConfig(
            global_batch=64,
            lr_head=3e-4,
            lr_adapter=3e-4,
            grad_clip=0.0,
            ema_decay=0.0,
            weight_decay_backbone=0.0,  # of the final norm
            warmup_epochs=2.5,
            warmup_start=0.1,
            cosine="epoch",
            schedule_epochs=epochs,
            stop_epoch=epochs,
            eval_from_epoch=5,
            eval_every=5,
        ),
        test=TestConfig(batch=1),
        recognition=RecognitionConfig(
            train_list=f"data/{dataset}/train.txt",
            test_list=f"data/{dataset}/test.txt",
            frames=frames,
            sampling=sampling,
            stride=SPAN_FRAMES // frames,
            test_clips=clips,
            test_crops=crops,
        ),
    )


def _quickstart(tuning: Tuning, adapters: tuple[AIMAdapter, ...]) -> Config:
    """Generated clips and a tiny image transformer pretrained on single frames."""
    return Config(
        data=DataConfig(resolution=64, short_side_before_crop=64, augment=()),
        backbone=BackboneConfig(
            name="vit_tiny_generated",
            weights="adatad_ds/weights/tiny_image.safetensors",
            tuning=tuning,
            aim_adapters=adapters or None,
            activation_checkpointing=False,
            clips_per_chunk=0,
        ),
        head=HeadConfig(),
        train=TrainConfig(
            precision="fp32",
            global_batch=8,
            lr_head=3e-3,
            lr_adapter=3e-3,
            lr_backbone=3e-4 if tuning == "full" else None,
            ema_decay=0.98,
            warmup_epochs=1,
            schedule_epochs=20,
            stop_epoch=20,
            eval_from_epoch=10,
            eval_every=10,
        ),
        test=TestConfig(batch=16),
        recognition=RecognitionConfig(
            train_list="data/quickstart_clips/train",
            test_list="data/quickstart_clips/test",
            frames=4,
            sampling="uniform",
            dropout=0.0,
        ),
    )
