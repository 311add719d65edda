"""Contradictions between the values of a config; the range of a single value is part of its type in schema.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adatad_ds.config.schema import Config


class _Problems(list[str]):
    """Messages, in the order of the checks."""

    def need(self, condition: bool, message: str) -> None:
        if not condition:
            self.append(message)


def problems(config: Config) -> list[str]:
    """All reasons why a config cannot be run."""
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
        data.short_side_before_crop >= data.resolution,
        f"data.short_side_before_crop = {data.short_side_before_crop} must be at least data.resolution = "
        f"{data.resolution} pixels",
    )
    return found


def _check_windows(config: Config, found: _Problems) -> None:
    data, clip = config.data, config.clip_frames
    found.need(
        data.window_frames % clip == 0,
        f"data.window_size * data.frames_per_feature = {data.window_frames} frames is no multiple of {clip}, "
        "the frames of a clip",
    )
    if data.crop_ratio is not None:
        least, most = data.crop_ratio
        found.need(least <= most, f"data.crop_ratio = {[least, most]} must not decrease")
    if data.sampling == "random_trunc":
        stride = data.feature_stride_frames
        found.need(stride is not None, "data.feature_stride_frames must be given with data.sampling=random_trunc")
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
    for least, most in head.regression_range:
        found.need(least < most, f"head.regression_range: {[least, most]} must increase, in feature steps of its level")
    found.need(0 not in head.attn_windows, "head.attn_window = 0 lets no step attend to any; -1: global attention")
    found.need(bool(config.test.tiou), "test.tiou must name at least one threshold, e.g. test.tiou=[0.5]")


def _check_recognition(config: Config, found: _Problems) -> None:
    settings = config.recognition
    assert settings is not None
    found.need(
        settings.frames % config.clip_frames == 0,
        f"recognition.frames = {settings.frames} is no multiple of {config.clip_frames}, the frames of a clip"
        + (" (backbone.clip_frames)" if config.backbone.is_image else " of a video transformer"),
    )
    found.need(
        config.parallel.temporal == 1,
        "parallel.temporal is for detection: recognition does not split clips over ranks",
    )


def _check_backbone(config: Config, found: _Problems) -> None:
    backbone = config.backbone
    found.need(backbone.adapter_kernel % 2 == 1, "backbone.adapter_kernel must be odd")
    sides = _patch_sides(backbone.name)
    found.need(
        any(config.data.resolution % side == 0 for side in sides),
        f"data.resolution = {config.data.resolution} is no multiple of {' or '.join(map(str, sides))} pixels, the side "
        f"of {backbone.name}'s patches",
    )
    found.need(
        backbone.aim_adapters is None or len(set(backbone.aim_adapters)) == len(backbone.aim_adapters),
        "backbone.aim_adapters names an adapter twice",
    )
    blocks = backbone.adapter_blocks
    found.need(
        blocks is None or (bool(blocks) and len(set(blocks)) == len(blocks)),
        "backbone.adapter_blocks must name at least one block, and none twice; None: all",
    )
    if backbone.is_image:
        found.need(
            backbone.tuning in ("frozen", "full", "aim"),
            f"backbone.tuning={backbone.tuning} is for video transformers; the image transformer {backbone.name} takes "
            "frozen, aim or full",
        )
    else:
        found.need(
            backbone.tuning != "aim"
            and (backbone.aim_adapters, backbone.clip_frames, backbone.pixel_mean, backbone.pixel_std) == (None,) * 4,
            "backbone.tuning=aim, aim_adapters, clip_frames, pixel_mean and pixel_std are for image transformers, "
            f"which {backbone.name} is not; their names are timm's, vit_...",
        )
    found.need(
        backbone.tuning != "full" or config.train.lr_backbone is not None,
        "backbone.tuning=full needs train.lr_backbone, e.g. --set train.lr_backbone=1e-5",
    )


def _patch_sides(backbone: str) -> tuple[int, ...]:
    if backbone == "videomaev2_g":
        return 14, 16  # its patches are 14 pixels wide; at 160 its authors drop the last 6
    named = re.search(r"patch(\d+)", backbone)  # as in timm's names
    return (int(named[1]),) if named else (16,)


def _check_training(config: Config, found: _Problems) -> None:
    train = config.train
    found.need(
        train.stop_epoch <= train.schedule_epochs,
        f"train.stop_epoch = {train.stop_epoch} must be in 1..train.schedule_epochs = {train.schedule_epochs}",
    )
    found.need(
        train.warmup_epochs < train.schedule_epochs,
        f"train.warmup_epochs = {train.warmup_epochs} must be below train.schedule_epochs = {train.schedule_epochs}",
    )
    waits = config.data.worker_timeout_sec
    found.need(
        waits < train.hang_timeout_sec,
        f"data.worker_timeout_sec = {waits} must be below train.hang_timeout_sec = {train.hang_timeout_sec}: the "
        "others wait for a rank that is reading",
    )
