"""Configs shared within each family of published experiments (AdaTAD, arXiv 2311.17241)."""

from __future__ import annotations

from dataclasses import replace

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TestConfig, TrainConfig

ALL_AUGMENTATIONS = ("random_resized_crop", "flip", "rand_augment", "color_jitter")
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ACTIVITYNET_TIOU = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
GIANT = "videomaev2_g"


def thumos_config(backbone: str, *, lr_adapter: float) -> Config:
    """Adapters in all blocks, 768 frames, 160 px."""
    return Config(
        data=DataConfig(
            annotations="data/thumos14/annotations.json",
            videos="data/thumos14/videos",
            scaling="bilinear",
            augment=ALL_AUGMENTATIONS,
        ),
        backbone=BackboneConfig(name=backbone, weights=f"pretrained/{backbone}.safetensors", drop_path=0.1),
        head=HeadConfig(),
        train=TrainConfig(lr_adapter=lr_adapter, compact_checkpoints=backbone == GIANT),
        test=TestConfig(),
    )


def activitynet_config(backbone: str, *, lr_adapter: float) -> Config:
    """Whole videos resized to 768 frames; class-agnostic, classes come from a video classifier."""
    config = with_data_paths(thumos_config(backbone, lr_adapter=lr_adapter), "activitynet")
    return replace(
        config,
        data=replace(
            config.data,
            window_size=192,
            frames_per_feature=4,
            feature_stride_frames=None,
            sampling="resize",
            min_action_share=0.01,
            class_agnostic=True,
        ),
        head=replace(
            config.head,
            width=256,
            abs_pos_embed=True,
            loss_normalizer=200.0,
            label_smoothing=0.1,
            reg_loss_weight=2.0,
        ),
        train=replace(
            config.train,
            global_batch=16,
            lr_head=1e-3,
            schedule_epochs=15,
            stop_epoch=15,
            eval_from_epoch=8,
            eval_every=1,
        ),
        test=replace(
            config.test,
            max_per_video=100,
            min_score=0.001,
            per_class=False,
            voting_thresh=0.9,
            tiou=ACTIVITYNET_TIOU,
            external_scores="data/activitynet/classifier.json",
        ),
    )


def multithumos_config(backbone: str, *, lr_adapter: float) -> Config:
    config = with_data_paths(thumos_config(backbone, lr_adapter=lr_adapter), "multithumos", videos="thumos14")
    return replace(
        config,
        head=replace(config.head, arch=(3, 0, 5)),
        train=replace(config.train, stop_epoch=80, eval_from_epoch=49),
        test=replace(config.test, sigma=0.5, max_per_video=8000, pre_nms_topk=8000, tiou=TENTHS),
    )


def charades_config(backbone: str, *, lr_adapter: float) -> Config:
    """512 frames at 30 frames per second."""
    config = with_data_paths(thumos_config(backbone, lr_adapter=lr_adapter), "charades")
    return replace(
        config,
        data=replace(config.data, window_size=512, fixed_fps=30.0, trunc_thresh=0.5),
        head=replace(
            config.head,
            arch=(2, 2, 7),
            abs_pos_embed=True,
            input_dropout=0.3,
            regression_range=doubling(8, overlap=False),
        ),
        train=replace(
            config.train, global_batch=16, schedule_epochs=20, stop_epoch=20, eval_from_epoch=7, eval_every=1
        ),
        test=replace(config.test, sigma=0.3, max_per_video=1000, tiou=TENTHS),
    )


def epic_config(task: str, *, label_smoothing: float) -> Config:
    """`noun` or `verb`: 6144 frames, every second one at 30 frames per second; weights tuned on EPIC clips."""
    config = with_data_paths(thumos_config("videomae_l", lr_adapter=8e-5), f"epic_{task}", videos="epic")
    return replace(
        config,
        data=replace(config.data, frames_per_feature=8, feature_stride_frames=16, fixed_fps=30.0, trunc_thresh=0.3),
        head=replace(
            config.head,
            attn_window=9,
            input_dropout=0.2,
            regression_range=doubling(6, overlap=True),
            loss_normalizer=250.0,
            reg_loss_weight=0.5,
            label_smoothing=label_smoothing,
        ),
        backbone=replace(config.backbone, weights=f"pretrained/videomae_l_epic_{task}.safetensors"),
        train=replace(config.train, schedule_epochs=250, stop_epoch=35, eval_from_epoch=19),
        test=replace(config.test, sigma=0.4, min_score=0.001, voting_thresh=0.75, pre_nms_topk=5000, tiou=TENTHS[:5]),
    )


def ego4d_config() -> Config:
    """7200 frames, InternVideo's weights; windows of 1800 steps padded to 2048 for ten levels."""
    config = with_data_paths(thumos_config("videomae_l", lr_adapter=4e-4), "ego4d_mq")
    return replace(
        config,
        data=replace(
            config.data,
            window_size=1800,
            frames_per_feature=4,
            feature_stride_frames=8,
            resolution=192,
            short_side_before_crop=220,
            trunc_thresh=0.3,
            test_window_overlap=0.0,
        ),
        backbone=replace(
            config.backbone, weights="pretrained/internvideo_mq_l.safetensors", adapter_blocks=tuple(range(12, 24))
        ),
        head=replace(
            config.head,
            arch=(2, 2, 9),
            max_len=2048,
            attn_window=(17,) * 7 + (-1,) * 3,
            abs_pos_embed=True,
            input_dropout=0.2,
            proj_dropout=0.1,
            regression_range=doubling(10, overlap=True),
            filter_similar_gt=False,
        ),
        train=replace(config.train, schedule_epochs=25, stop_epoch=20, eval_from_epoch=12, eval_every=1),
        test=replace(
            config.test,
            sigma=2.0,
            min_score=0.001,
            voting_thresh=0.95,
            pre_nms_topk=5000,
            tiou=TENTHS[:5],
            recall_topk=(1, 5),
        ),
    )


def with_data_paths(config: Config, dataset: str, *, videos: str | None = None) -> Config:
    """Set the paths of a dataset's annotations and videos, as in docs/reference/datasets.md."""
    paths = {"annotations": f"data/{dataset}/annotations.json", "videos": f"data/{videos or dataset}/videos"}
    return replace(config, data=replace(config.data, **paths))


def tuning_variants(adapted: Config, *, dropout_of_full: float = 0.0) -> dict[str, tuple[Config, str, str]]:
    """The paper's comparison of tunings: the authors' variant -> config, suffix of the recipe's name, summary."""
    on_thumos = adapted.data.sampling == "random_trunc"
    frozen = replace(
        adapted,
        data=replace(adapted.data, short_side_before_crop=adapted.data.resolution, augment=()),
        backbone=replace(adapted.backbone, tuning="frozen", drop_path=0.0, activation_checkpointing=False),
        head=replace(adapted.head, input_dropout=0.2),
        test=replace(adapted.test, sigma=0.5, min_score=0.001) if on_thumos else adapted.test,
    )
    full = replace(
        adapted,
        backbone=replace(adapted.backbone, tuning="full"),
        head=replace(adapted.head, input_dropout=dropout_of_full),
        train=replace(adapted.train, lr_backbone=1e-5),
    )
    if on_thumos:
        frozen = replace(frozen, train=replace(frozen.train, eval_from_epoch=39, eval_every=5))
        full = replace(full, train=replace(full.train, eval_from_epoch=39, eval_every=5))
    return {
        "adapter": (adapted, "", "adapters"),
        "frozen": (frozen, "_frozen", "frozen backbone"),
        "fullft": (full, "_full", "full fine-tuning"),
    }


def with_side_adapters(config: Config, *, blocks: range, ratio: float) -> Config:
    """AdaTAD†: adapters outside the backbone, which no gradient enters."""
    backbone = replace(config.backbone, tuning="side", adapter_blocks=tuple(blocks), adapter_ratio=ratio, drop_path=0.0)
    return replace(config, backbone=backbone, head=replace(config.head, input_dropout=0.1))


def at_224(config: Config) -> Config:
    return replace(config, data=replace(config.data, resolution=224, short_side_before_crop=256))


def giant_1536(config: Config) -> Config:
    """Twice as many frames over the same duration, 224 px, adapters in the upper half."""
    config = at_224(config)
    return replace(
        config,
        data=replace(config.data, frames_per_feature=2),
        backbone=replace(config.backbone, adapter_blocks=tuple(range(20, 40))),
    )


def doubling(levels: int, *, overlap: bool) -> tuple[tuple[float, float], ...]:
    """Regression ranges whose maximum doubles from 4 on; with overlap, each starts at half the previous maximum."""
    ends = [4.0 * 2**level for level in range(levels - 1)] + [10000.0]
    starts = [0.0, *(end / (2 if overlap else 1) for end in ends[:-1])]
    return tuple(zip(starts, ends, strict=True))
