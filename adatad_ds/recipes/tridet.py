"""TriDet's published experiments on features as data (arXiv 2303.07347), each field as its authors had it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adatad_ds.config.schema import Config
from adatad_ds.recipes.actionformer import actionformer_recipes
from adatad_ds.recipes.adatad import Recipe
from adatad_ds.recipes.adatad_families import ACTIVITYNET_TIOU, doubling, with_data_paths


def tridet_recipes() -> Iterator[tuple[str, Recipe]]:
    """All of them, by name."""
    theirs = {name: recipe.config for name, recipe in actionformer_recipes()}  # the same features and annotations
    thumos = _thumos(theirs["thumos14_features_i3d"])
    activitynet, epic = "activitynet_features_tsp", "epic_{}_features_slowfast"
    found = [
        ("thumos14_features_i3d", thumos, "two-stream I3D", 69.27),
        (activitynet, _activitynet(theirs[activitynet], thumos), "TSP, class-agnostic", 36.77),
        ("hacs_features_slowfast", _hacs(thumos, "slowfast"), "SlowFast", 38.69),
        ("hacs_features_i3d", _hacs(thumos, "i3d"), "I3D", 36.8),
    ]
    for task, score in (("noun", 23.76), ("verb", 25.51)):
        name = epic.format(task)
        found.append((name, _epic(theirs[name], thumos, task), f"SlowFast; {task}s", score))
    for name, config, features, score in found:
        yield (
            f"{name}_tridet",
            Recipe(
                config=config,
                dataset=name.partition("_features")[0],
                summary=f"TriDet on features of {features}",
                published_map=score,
            ),
        )


def _thumos(actionformer: Config) -> Config:
    return replace(
        actionformer,
        data=replace(actionformer.data, margin_steps=0.0),
        head=replace(
            actionformer.head,
            name="tridet",
            attn_window=-1,
            sgp_window=1,
            sgp_scale=5.0,
            sgp_mlp_width=768,
            iou_weight_power=0.2,
            input_noise=0.0005,
        ),
        train=replace(
            actionformer.train,
            weight_decay=0.025,
            warmup_epochs=20,
            schedule_epochs=40,
            stop_epoch=40,
            eval_from_epoch=40,
        ),
        test=replace(actionformer.test, max_per_video=2000),
    )


def _activitynet(actionformer: Config, thumos: Config) -> Config:
    """Features at their own rate, padded to 768 steps; classes come from a video classifier."""
    return replace(
        actionformer,
        data=replace(
            actionformer.data,
            sampling="random_trunc",
            window_size=768,
            offset_frames=8,
            offset_steps=0.0,
            margin_steps=0.0,
            test_whole_videos=True,
        ),
        head=replace(
            thumos.head,
            width=256,
            tower_width=512,
            abs_pos_embed=True,
            sgp_window=15,
            sgp_scale=1.3,
            sgp_mlp_width=2048,
            sgp_init_std=0.2,
            num_bins=12,
            iou_weight_power=1.0,
            input_noise=0.5,
            loss_normalizer=400.0,
            label_smoothing=0.1,
        ),
        train=replace(
            actionformer.train,
            weight_decay=0.04,
            grad_clip=0.4,
            warmup_epochs=10,
            cosine_end=0.05,
        ),
        test=replace(actionformer.test, sigma=0.7, max_per_video=200, voting_thresh=0.95, min_duration_steps=0.1),
    )


def _hacs(thumos: Config, features: str) -> Config:
    config = with_data_paths(thumos, "hacs")
    # Two features of I3D a second, each of half a second: strides and offset are twice theirs, at twice the rate.
    slowfast = features == "slowfast"
    sampled = (
        {"window_size": 960, "feature_stride_frames": 8, "fixed_fps": 15.0, "offset_frames": 16}
        if slowfast
        else {"window_size": 512, "feature_stride_frames": 2, "fixed_fps": 4.0, "offset_frames": 1}
    )
    halvings = 5 if slowfast else 6
    return replace(
        config,
        data=replace(config.data, videos="", features=f"data/hacs/features_{features}", **sampled),
        backbone=replace(config.backbone, feature_channels=2304 if slowfast else 2048),
        head=replace(
            config.head,
            width=1024,
            arch=(2, 2, halvings),
            tower_kernel=5,
            boundary_kernel=1,
            abs_pos_embed=True,
            regression_range=doubling(halvings + 1, overlap=False),
            sgp_window=3 if slowfast else 15,
            sgp_scale=1.2,
            sgp_mlp_width=1024,
            sgp_init_std=0.1,
            num_bins=14 if slowfast else 12,
            iou_weight_power=1.0,
            input_noise=0.2 if slowfast else 0.0,
            loss_normalizer=400.0,
            label_smoothing=0.1,
        ),
        train=replace(
            config.train,
            global_batch=16,
            lr_head=1e-3,
            weight_decay=0.03,
            grad_clip=0.5 if slowfast else 1.0,
            warmup_epochs=7 if slowfast else 10,
            schedule_epochs=11 if slowfast else 13,
            stop_epoch=11 if slowfast else 13,
            eval_from_epoch=11 if slowfast else 13,
            cosine_end=0.5 if slowfast else 0.2,
        ),
        test=replace(config.test, sigma=0.75, max_per_video=250, voting_thresh=0.95, tiou=ACTIVITYNET_TIOU),
    )


def _epic(actionformer: Config, thumos: Config, task: str) -> Config:
    noun = task == "noun"
    return replace(
        actionformer,
        data=replace(actionformer.data, margin_steps=0.0),
        head=replace(
            thumos.head,
            regression_range=doubling(6, overlap=True),
            sgp_window=1 if noun else 5,
            sgp_scale=4.0 if noun else 2.0,
            sgp_mlp_width=1024,
            iou_weight_power=0.25,
            input_noise=0.0,
            loss_normalizer=250.0,
            label_smoothing=0.1 if noun else 0.0,
        ),
        train=replace(
            actionformer.train,
            schedule_epochs=19 if noun else 27,
            # the published verb model is that of epoch 23 (tools/epic_verb_slowfast_script.sh)
            stop_epoch=19 if noun else 23,
            eval_from_epoch=19 if noun else 23,
            cosine_end=0.0 if noun else 0.5,
        ),
    )
