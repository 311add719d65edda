"""ActionFormer on features of large frozen models, as OpenTAD publishes it (3dd7b03, configs/actionformer).

AdaTAD's comparisons stand beside these rows. OpenTAD is the code of AdaTAD's authors, so pyramid and head are AdaTAD's,
not quite those of ActionFormer's own code. Each field is as its config has it, with one exception:

- Ego4D's features are counted at 30 frames a second, the rate that OpenTAD's page gives for them; its config divides
  each annotation's frames by its seconds, and the annotations of `prepare-data` count no frames.

Two operations have no setting here:

- OpenTAD averages FineAction's features where a video has more than 192; here they are interpolated.
- OpenTAD resizes a video of HACS with more than 960 features (8.5 minutes) in testing; here it keeps its length.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from adatad_ds.recipes.adatad_families import ACTIVITYNET_TIOU, TENTHS, doubling


def opentad_recipes() -> Iterator[tuple[str, Recipe]]:
    """All of them, by name."""
    huge = _fineaction("videomae_h", channels=1280, epochs=20, eval_from_epoch=10)
    giant = _fineaction("videomaev2_g", channels=1408, epochs=15, eval_from_epoch=7)
    rows = (
        ("charades", "videomae_l", _charades(), "VideoMAE-L", 26.04),
        ("fineaction", "videomae_h", huge, "VideoMAE-H", 19.32),
        ("fineaction", "videomaev2_g", giant, "VideoMAE V2-g", 19.62),
        ("ego4d_mq", "internvideo", _ego4d(), "InternVideo", 27.52),
        ("hacs", "slowfast", _hacs(), "SlowFast", 37.71),
    )
    for dataset, features, config, title, score in rows:
        agnostic = ", class-agnostic" if config.data.class_agnostic else ""
        yield (
            f"{dataset}_features_{features}",
            Recipe(
                config=config,
                dataset=dataset,
                summary=f"ActionFormer of OpenTAD on features of {title}{agnostic}",
                published_map=score,
            ),
        )


def _charades() -> Config:
    """Windows of 512 features at 30 frames a second."""
    return Config(
        data=DataConfig(
            annotations="data/charades/annotations.json",
            features="data/charades/features_videomae_l",
            window_size=512,
            feature_stride_frames=4,
            fixed_fps=30.0,
            offset_frames=2,
            trunc_thresh=0.5,
            augment=(),
        ),
        backbone=_features(1024),
        head=HeadConfig(
            arch=(2, 2, 7),
            abs_pos_embed=True,
            input_dropout=0.3,
            regression_range=doubling(8, overlap=False),
        ),
        train=_trained(epochs=20, eval_from_epoch=8, global_batch=16),
        test=TestConfig(sigma=0.3, min_score=0.001, max_per_video=1000, tiou=TENTHS),
    )


def _fineaction(features: str, *, channels: int, epochs: int, eval_from_epoch: int) -> Config:
    """Features resized to 192 steps, of which a random share is trained on; classes come from a video classifier."""
    return Config(
        data=DataConfig(
            annotations="data/fineaction/annotations.json",
            features=f"data/fineaction/features_{features}",
            skip_missing=True,
            class_agnostic=True,
            sampling="resize",
            window_size=192,
            feature_stride_frames=None,
            trunc_thresh=0.5,
            min_action_share=0.01,
            augment=(),
        ),
        backbone=_features(channels),
        head=HeadConfig(
            width=256,
            attn_window=(7, 7, 7, 7, 7, -1),
            abs_pos_embed=True,
            loss_normalizer=200.0,
            label_smoothing=0.1,
            reg_loss_weight=2.0,
        ),
        train=_trained(epochs=epochs, eval_from_epoch=eval_from_epoch, global_batch=16, lr_head=1e-3),
        test=TestConfig(
            sigma=0.75,
            min_score=0.001,
            max_per_video=100,
            per_class=False,
            voting_thresh=0.9,
            tiou=ACTIVITYNET_TIOU,
            external_scores="data/fineaction/classifier.json",
            external_layout="plain",
            external_topk=2,
        ),
    )


def _ego4d() -> Config:
    """Windows of 2048 features and ten levels, as AdaTAD's for Ego4D."""
    return Config(
        data=DataConfig(
            annotations="data/ego4d_mq/annotations.json",
            features="data/ego4d_mq/features_internvideo",
            window_size=2048,
            feature_stride_frames=8,
            fixed_fps=30.0,  # differs, see above
            offset_frames=4,
            trunc_thresh=0.3,
            test_window_overlap=0.0,
            augment=(),
        ),
        backbone=_features(1024),
        head=HeadConfig(
            arch=(2, 2, 9),
            attn_window=(17,) * 7 + (-1,) * 3,
            abs_pos_embed=True,
            input_dropout=0.2,
            proj_dropout=0.1,
            regression_range=doubling(10, overlap=True),
            filter_similar_gt=False,
        ),
        train=_trained(epochs=25, stop_epoch=20, eval_from_epoch=12),
        test=TestConfig(
            sigma=2.0,
            min_score=0.001,
            voting_thresh=0.95,
            pre_nms_topk=5000,
            tiou=TENTHS[:5],
            recall_topk=(1, 5),
        ),
    )


def _hacs() -> Config:
    """Whole videos padded to 960 features at 15 frames a second; classes come from a video classifier."""
    return Config(
        data=DataConfig(
            annotations="data/hacs/annotations.json",
            features="data/hacs/features_slowfast",
            skip_missing=True,
            class_agnostic=True,
            window_size=960,
            feature_stride_frames=8,
            fixed_fps=15.0,
            offset_frames=16,
            trunc_thresh=0.5,
            test_whole_videos=True,
            augment=(),
        ),
        backbone=_features(2304),
        head=HeadConfig(
            width=256,
            attn_window=(13, 13, 13, 13, 13, -1),
            abs_pos_embed=True,
            input_dropout=0.1,
            loss_normalizer=400.0,
            label_smoothing=0.1,
        ),
        train=_trained(epochs=15, eval_from_epoch=8, global_batch=16, lr_head=1e-3, weight_decay=0.03),
        test=TestConfig(
            sigma=0.75,
            min_score=0.001,
            max_per_video=100,
            tiou=ACTIVITYNET_TIOU,
            external_scores="data/hacs/classifier.json",
            external_layout="tcanet",
            external_topk=3,
        ),
    )


def _features(channels: int) -> BackboneConfig:
    return BackboneConfig(name=FEATURES, tuning="frozen", feature_channels=channels)


def _trained(
    *,
    epochs: int,
    eval_from_epoch: int,
    stop_epoch: int | None = None,
    global_batch: int = 2,
    lr_head: float = 1e-4,
    weight_decay: float = 0.05,
) -> TrainConfig:
    """`epochs` of the schedule, with the 5 of the warm-up; all are trained, unless `stop_epoch` says less."""
    return TrainConfig(
        precision="fp32",
        global_batch=global_batch,
        lr_head=lr_head,
        weight_decay=weight_decay,
        ema_warmup=False,
        schedule_epochs=epochs,
        stop_epoch=stop_epoch or epochs,
        eval_from_epoch=eval_from_epoch,
        eval_every=1,
    )
