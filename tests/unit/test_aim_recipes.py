"""AIM's recipes against its authors' settings (github.com/taoyang1122/adapt-image-models, configs/recognition/vit)."""

from __future__ import annotations

import pytest

from adatad_ds.aim_recipes import ABLATION, ablation_recipe
from adatad_ds.recipes import all_recipes

FLIPPED = ("random_resized_crop", "flip")
PUBLISHED = {  # frames, stride (0: uniform), test clips x crops, epochs, joint scale, adapter before time, smoothing
    "kinetics400_clip_b16_32": (32, 4, 3, 1, 30, 0.5, False, 0.0, FLIPPED),
    "kinetics400_clip_l14_32": (32, 4, 3, 1, 30, 0.5, False, 0.0, FLIPPED),
    "kinetics400_imagenet_b16_8": (8, 16, 3, 1, 30, 0.5, False, 0.0, FLIPPED),
    "kinetics700_clip_b16_8": (8, 16, 3, 3, 30, 0.5, False, 0.0, FLIPPED),
    "kinetics700_clip_l14_32": (32, 4, 3, 3, 30, 0.5, False, 0.0, FLIPPED),
    "ssv2_clip_b16_8": (8, 0, 1, 3, 50, 1.0, True, 0.1, ("random_resized_crop", "rand_augment")),
    "ssv2_clip_l14_8": (8, 0, 1, 3, 50, 1.0, False, 0.1, ("random_resized_crop", "rand_augment")),
    "diving48_clip_b16_32": (32, 0, 1, 1, 50, 0.5, False, 0.0, FLIPPED),
    "diving48_clip_l14_32": (32, 0, 1, 1, 50, 0.5, False, 0.0, FLIPPED),
}
TOP1 = {
    "kinetics400_clip_b16_8": 83.9,
    "kinetics400_clip_b16_16": 84.5,
    "kinetics400_clip_b16_32": 84.7,
    "kinetics400_clip_l14_8": 86.8,
    "kinetics400_clip_l14_16": 87.3,
    "kinetics400_clip_l14_32": 87.5,
    "kinetics700_clip_b16_32": 76.9,
    "kinetics700_clip_l14_32": 80.4,
    "diving48_clip_b16_32": 88.9,
    "diving48_clip_l14_32": 90.6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings(name):
    config = all_recipes()[name].config
    clips, backbone, train = config.recognition, config.backbone, config.train
    assert (
        clips.frames,
        clips.stride if clips.sampling == "dense" else 0,
        clips.test_clips,
        clips.test_crops,
        train.stop_epoch,
        backbone.aim_joint_scale,
        backbone.aim_before_time,
        clips.label_smoothing,
        config.data.augment,
    ) == PUBLISHED[name]
    assert (train.global_batch, train.lr_adapter, train.lr_head, train.weight_decay) == (64, 3e-4, 3e-4, 0.05)
    assert (train.warmup_epochs, train.schedule_epochs, train.grad_clip, train.ema_decay) == (
        2.5,
        train.stop_epoch,
        0,
        0,
    )
    assert (backbone.drop_path, backbone.adapter_ratio, clips.dropout) == (0.2, 0.25, 0.5)
    assert (clips.mixup_alpha, clips.cutmix_alpha) == (0, 0)
    assert (config.data.resolution, config.data.short_side_before_crop) == (224, 256)


def test_published_figures():
    found = {name: recipe.published_top1 for name, recipe in all_recipes().items() if recipe.published_top1}
    assert found == TOP1


def test_the_ablation_changes_what_learns_alone():
    configs = {row: all_recipes()[ablation_recipe(row)].config.to_dict() for row in ABLATION}
    assert len(configs) == 6
    for config in configs.values():
        for key in ("tuning", "aim_adapters"):
            del config["backbone"][key]
        del config["train"]["lr_backbone"]
    assert all(config == configs["stj"] for config in configs.values())
