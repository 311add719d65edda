"""ActionFormer's published experiments on features as data (arXiv 2202.07925), each field as its authors had it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adatad_ds.config.backbone import FEATURES
from adatad_ds.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    TestConfig,
    TrainConfig,
)
from adatad_ds.recipes.adatad import Recipe
from adatad_ds.recipes.adatad_families import ACTIVITYNET_TIOU, TENTHS, doubling, with_data_paths

EGO4D = {  # features: channels, frames of each, width, attention heads, halvings, published average mAP
    "slowfast": (2304, 32, 512, 4, 6, 14.89),
    "omnivore": (1536, 32, 512, 4, 7, 18.20),
    "egovlp": (256, 16, 384, 4, 7, 20.60),
    "slowfast_egovlp": (2560, 32, 768, 12, 7, 21.56),
    "omnivore_egovlp": (1792, 32, 768, 12, 7, 21.98),
    "slowfast_omnivore_egovlp": ((2304, 1536, 256), 32, 1024, 16, 7, 22.09),
}
EGO4D_SOURCE_WIDTHS = {"slowfast_omnivore_egovlp": (256, 384, 384)}  # to which each source is projected first


def actionformer_recipes() -> Iterator[tuple[str, Recipe]]:
    """All of them, by name."""
    yield (
        "thumos14_features_i3d",
        Recipe(
            config=_thumos(),
            dataset="thumos14",
            summary="ActionFormer on features of two-stream I3D",
            published_map=66.83,
        ),
    )
    for features, channels, fps, score in (("tsp", 512, 15.0, 36.56), ("i3d", 2048, 25.0, 36.03)):
        yield (
            f"activitynet_features_{features}",
            Recipe(
                config=_activitynet(features, channels=channels, fps=fps),
                dataset="activitynet",
                summary=f"ActionFormer on features of {features.upper()}, class-agnostic",
                published_map=score,
            ),
        )
    for task, label_smoothing, score in (("noun", 0.1, 21.88), ("verb", 0.0, 23.51)):
        yield (
            f"epic_{task}_features_slowfast",
            Recipe(
                config=_epic(task, label_smoothing=label_smoothing),
                dataset=f"epic_{task}",
                summary=f"ActionFormer on features of SlowFast; {task}s",
                published_map=score,
            ),
        )
    for features, (*_, score) in EGO4D.items():
        yield (
            f"ego4d_mq_features_{features}",
            Recipe(
                config=_ego4d(features),
                dataset="ego4d_mq",
                summary=f"ActionFormer on features of {features.replace('_', ' + ')}",
                published_map=score,
            ),
        )


def _thumos() -> Config:
    return Config(
        data=DataConfig(
            annotations="data/thumos14/annotations.json",
            features="data/thumos14/features_i3d",
            skip_missing=True,
            window_size=2304,
            feature_stride_frames=4,
            offset_frames=8,
            margin_steps=2.0,
            trunc_thresh=0.5,
            test_whole_videos=True,
            augment=(),
        ),
        backbone=BackboneConfig(name=FEATURES, tuning="frozen", feature_channels=2048),
        head=HeadConfig(attn_window=19, actionformer_norms=True),
        train=TrainConfig(
            precision="fp32", ema_warmup=False, schedule_epochs=35, stop_epoch=35, eval_from_epoch=35, eval_every=1
        ),
        test=TestConfig(sigma=0.5, min_score=0.001, max_per_video=200, topk_per_level=True, min_duration_steps=0.05),
    )


def _activitynet(features: str, *, channels: int, fps: float) -> Config:
    """Features resized to 192 steps; classes come from a video classifier."""
    config = _on(_thumos(), "activitynet", (features,), channels=channels)
    return replace(
        config,
        data=replace(
            config.data,
            sampling="resize",
            window_size=192,
            feature_stride_frames=16,
            fixed_fps=fps,
            offset_frames=0,
            offset_steps=0.5,
            margin_steps=0.5,
            test_whole_videos=False,
            class_agnostic=True,
        ),
        head=replace(
            config.head,
            width=256,
            attn_window=(7, 7, 7, 7, 7, -1),
            abs_pos_embed=True,
            loss_normalizer=200.0,
            label_smoothing=0.1,
            reg_loss_weight=2.0,
        ),
        train=_trained(config, epochs=15, global_batch=16, lr_head=1e-3),
        test=replace(
            config.test,
            sigma=0.75,
            min_duration_steps=0.001,
            max_per_video=100,
            per_class=False,
            voting_thresh=0.9,
            tiou=ACTIVITYNET_TIOU,
            external_scores="data/activitynet/classifier.json",
        ),
    )


def _epic(task: str, *, label_smoothing: float) -> Config:
    config = _on(_thumos(), f"epic_{task}", ("slowfast",), channels=2304, features="epic")
    sampled = {"feature_stride_frames": 16, "fixed_fps": 30.0, "offset_frames": 16, "margin_steps": 1.0}
    return replace(
        config,
        data=replace(config.data, **sampled, trunc_thresh=0.3),
        head=replace(
            config.head,
            attn_window=9,
            regression_range=doubling(6, overlap=True),
            loss_normalizer=250.0,
            label_smoothing=label_smoothing,
        ),
        train=_trained(config, epochs=21),
        test=replace(
            config.test, sigma=0.4, max_per_video=2000, pre_nms_topk=5000, voting_thresh=0.75, tiou=TENTHS[:5]
        ),
    )


def _ego4d(features: str) -> Config:
    channels, frames, width, heads, halvings, _ = EGO4D[features]
    config = _on(_thumos(), "ego4d_mq", features.split("_"), channels=channels)
    return replace(
        config,
        data=replace(
            config.data,
            window_size=1024,
            feature_stride_frames=16,
            fixed_fps=30.0,
            offset_frames=frames // 2,
            margin_steps=frames / 32,
            trunc_thresh=0.3,
        ),
        head=replace(
            config.head,
            width=width,
            heads=heads,
            source_widths=EGO4D_SOURCE_WIDTHS.get(features, ()),
            arch=(2, 2, halvings),
            attn_window=9,
            abs_pos_embed=True,
            proj_dropout=0.1,
            regression_range=doubling(halvings + 1, overlap=True),
        ),
        train=_trained(config, epochs=15),
        test=replace(
            config.test,
            sigma=0.9,
            max_per_video=2000,
            pre_nms_topk=5000,
            voting_thresh=0.95,
            tiou=TENTHS[:5],
            recall_topk=(1,),
        ),
    )


def _on(
    config: Config,
    dataset: str,
    sources: tuple[str, ...] | list[str],
    *,
    channels: int | tuple[int, ...],
    features: str = "",
) -> Config:
    """The config on another dataset's features, in data/DATASET/features_SOURCE each."""
    config = with_data_paths(config, dataset)
    folders = tuple(f"data/{features or dataset}/features_{source}" for source in sources)
    return replace(
        config,
        data=replace(config.data, videos="", features=folders[0] if len(folders) == 1 else folders),
        backbone=replace(config.backbone, feature_channels=channels),
    )


def _trained(config: Config, *, epochs: int, global_batch: int = 2, lr_head: float = 1e-4) -> TrainConfig:
    """All epochs, with the 5 of the warm-up; evaluated after the last."""
    return replace(
        config.train,
        global_batch=global_batch,
        lr_head=lr_head,
        schedule_epochs=epochs,
        stop_epoch=epochs,
        eval_from_epoch=epochs,
    )
