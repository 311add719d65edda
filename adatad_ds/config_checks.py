"""Values of a config that contradict one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adatad_ds.config import Config


class _Problems(list[str]):
    """What is wrong, as it is found."""

    def need(self, condition: bool, message: str) -> None:
        if not condition:
            self.append(message)


def problems(config: Config) -> list[str]:
    """All that keeps a config from being run."""
    found = _Problems()
    if config.recognition is None:
        _check_windows(config, found)
        _check_head(config, found)
    else:
        _check_recognition(config, found)
    _check_backbone(config, found)
    _check_training(config, found)
    data = config.data
    found.need(
        data.resolution > 0 and data.short_side_before_crop >= data.resolution,
        "data.short_side_before_crop must be at least data.resolution",
    )
    return found


def _check_windows(config: Config, found: _Problems) -> None:
    data, clip = config.data, config.clip_frames
    found.need(
        data.window_size > 0 and data.frames_per_feature > 0, "data.window_size and frames_per_feature must be > 0"
    )
    found.need(
        clip > 0 and data.window_frames % clip == 0,
        f"data.window_size * data.frames_per_feature = {data.window_frames} frames is no multiple of {clip}, "
        "the frames of a clip",
    )
    found.need(data.fixed_fps is None or data.fixed_fps > 0, "data.fixed_fps must be > 0 or None")
    found.need(0 <= data.test_window_overlap < 1, "data.test_window_overlap must be in [0, 1)")
    if data.sampling == "random_trunc":
        stride = data.feature_stride_frames
        found.need(
            stride is not None and stride > 0, "data.feature_stride_frames must be > 0 with data.sampling=random_trunc"
        )
        found.need(
            stride is None or stride % data.frames_per_feature == 0,
            f"data.feature_stride_frames = {stride} is no multiple of frames_per_feature = {data.frames_per_feature}",
        )


def _check_head(config: Config, found: _Problems) -> None:
    head, steps, coarsest = config.head, config.pyramid_steps, config.head.strides[-1]
    found.need(
        steps % coarsest == 0,
        f"{'head.max_len' if head.max_len else 'data.window_size'} = {steps} is no multiple of {coarsest}, the stride "
        f"of the last pyramid level (head.arch[2] = {head.arch[2]} halvings); head.max_len can pad windows",
    )
    found.need(steps >= config.data.window_size, f"head.max_len = {head.max_len} is less than data.window_size")
    found.need(
        len(head.regression_range) == head.levels,
        f"head.regression_range has {len(head.regression_range)} ranges for {head.levels} levels (head.arch[2] + 1)",
    )
    found.need(
        len(head.attn_windows) == head.levels,
        f"head.attn_window has {len(head.attn_windows)} windows for {head.levels} levels (head.arch[2] + 1)",
    )
    found.need(head.width % head.heads == 0, f"head.width = {head.width} is no multiple of head.heads = {head.heads}")
    found.need(config.test.external_topk > 0, "test.external_topk must be > 0")


def _check_recognition(config: Config, found: _Problems) -> None:
    settings = config.recognition
    assert settings is not None
    found.need(
        min(settings.frames, settings.stride, settings.test_clips) > 0,
        "recognition.frames, stride and test_clips must be > 0",
    )
    found.need(
        settings.frames % max(1, config.clip_frames) == 0,
        f"recognition.frames = {settings.frames} is no multiple of {config.clip_frames}, the frames that attend to "
        "one another" + (" (backbone.clip_frames)" if config.backbone.is_image else " in a video transformer"),
    )
    for name in ("dropout", "label_smoothing"):
        found.need(0 <= getattr(settings, name) < 1, f"recognition.{name} must be in [0, 1)")
    found.need(min(settings.mixup_alpha, settings.cutmix_alpha) >= 0, "recognition.mixup_alpha, cutmix_alpha: >= 0")
    found.need(config.parallel.temporal == 1, "parallel.temporal is for detection: clips of recognition are not shared")


def _check_backbone(config: Config, found: _Problems) -> None:
    backbone = config.backbone
    found.need(backbone.adapter_kernel % 2 == 1, "backbone.adapter_kernel must be odd")
    found.need(backbone.clips_per_chunk >= 0, "backbone.clips_per_chunk must be >= 0 (0: all clips at once)")
    found.need(backbone.stored_on_device_gb >= 0, "backbone.stored_on_device_gb must be >= 0")
    found.need(backbone.clip_frames is None or backbone.clip_frames > 0, "backbone.clip_frames must be > 0 or None")
    if backbone.is_image:
        found.need(
            backbone.tuning in ("frozen", "full", "aim"),
            f"backbone.tuning={backbone.tuning} is for video transformers; the image transformer {backbone.name} takes "
            "frozen, aim or full",
        )
    else:
        found.need(
            backbone.tuning != "aim" and backbone.aim_adapters is None and backbone.clip_frames is None,
            f"backbone.tuning=aim, aim_adapters and clip_frames are for image transformers, which {backbone.name} is "
            "not; their names are timm's, vit_...",
        )
    found.need(
        backbone.tuning != "full" or config.train.lr_backbone is not None,
        "backbone.tuning=full needs train.lr_backbone, e.g. --set train.lr_backbone=1e-5",
    )


def _check_training(config: Config, found: _Problems) -> None:
    train = config.train
    found.need(config.parallel.temporal > 0, "parallel.temporal must be > 0")
    found.need(train.global_batch > 0, "train.global_batch must be > 0")
    found.need(train.micro_batch is None or train.micro_batch > 0, "train.micro_batch must be > 0 or None")
    found.need(0 <= train.ema_decay < 1, "train.ema_decay must be in [0, 1)")
    found.need(0 < train.stop_epoch <= train.schedule_epochs, "train.stop_epoch must be in 1..train.schedule_epochs")
    found.need(train.warmup_epochs < train.schedule_epochs, "train.warmup_epochs must be below train.schedule_epochs")
    found.need(train.eval_every > 0 and train.keep_checkpoints > 0, "train.eval_every and keep_checkpoints must be > 0")
