"""Contradictions between the values of a config; the range of a single value is part of its type in schema.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from adatad_ds.config.head import SGP_GROUPS

if TYPE_CHECKING:
    from adatad_ds.config.schema import Config


def problems(config: Config) -> list[str]:
    """All reasons why a config cannot be run."""
    found = []
    if config.recognition is None:
        found += [*_windows(config), *_head(config)]
    else:
        found += _recognition(config)
    found += [*_features(config)] if config.backbone.is_features else [*_backbone(config)]
    found += _training(config)
    if config.data.feature_sources and not config.backbone.is_features:
        found.append(f"data.features are read with backbone.name=features, not {config.backbone.name}")
    data = config.data
    if data.short_side_before_crop < data.resolution:
        found.append(
            f"data.short_side_before_crop = {data.short_side_before_crop} must be at least data.resolution = "
            f"{data.resolution} pixels"
        )
    return found


def _windows(config: Config) -> Iterator[str]:
    data, clip = config.data, config.clip_frames
    if data.window_frames % clip:
        yield (
            f"data.window_size * data.frames_per_feature = {data.window_frames} frames is not a multiple of {clip}, "
            "the frames of a clip"
        )
    if data.crop_ratio is not None:
        least, most = data.crop_ratio
        if least > most:
            yield f"data.crop_ratio = {[least, most]} must not decrease"
    if data.sampling == "random_trunc":
        stride = data.feature_stride_frames
        if stride is None:
            yield "data.feature_stride_frames must be given with data.sampling=random_trunc"
        elif stride % data.frames_per_feature:
            yield (
                f"data.feature_stride_frames = {stride} is not a multiple of frames_per_feature = "
                f"{data.frames_per_feature}"
            )


def _head(config: Config) -> Iterator[str]:
    head, steps, coarsest = config.head, config.pyramid_steps, config.head.strides[-1]
    if head.source_widths and not config.backbone.is_features:
        yield "head.source_widths is for several data.features"
    if steps % coarsest:
        yield (
            f"{'head.max_len' if head.max_len else 'data.window_size'} = {steps} is not a multiple of {coarsest}, the "
            f"stride of the last pyramid level (head.arch[2] = {head.arch[2]} halvings); head.max_len can pad windows"
        )
    if steps < config.data.window_size:
        yield f"head.max_len = {head.max_len} is less than data.window_size"
    if head.name == "temporalmaxer" and head.arch[1]:
        yield (
            f"head.arch[1] = {head.arch[1]}, but head.name=temporalmaxer has no transformer blocks: use "
            f"--set head.arch=[{head.arch[0]},0,{head.arch[2]}]"
        )
    if len(head.regression_range) != head.levels:
        yield (
            f"head.regression_range has {len(head.regression_range)} ranges for {head.levels} levels (head.arch[2] + 1)"
        )
    if len(head.attn_windows) != head.levels:
        yield f"head.attn_window has {len(head.attn_windows)} windows for {head.levels} levels (head.arch[2] + 1)"
    if head.name == "actionformer" and head.width % head.heads:
        yield f"head.width = {head.width} is not a multiple of head.heads = {head.heads}"
    if head.name == "tridet" and head.width % SGP_GROUPS:
        yield f"head.width = {head.width} is not a multiple of {SGP_GROUPS}, the groups of head.name=tridet's norms"
    for key in ("tower_kernel", "boundary_kernel", "sgp_window"):
        if getattr(head, key) % 2 == 0:
            yield f"head.{key} = {getattr(head, key)} must be odd, centred on its step"
    for least, most in head.regression_range:
        if least >= most:
            yield f"head.regression_range: {[least, most]} must increase, in feature steps of its level"
    if 0 in head.attn_windows:
        yield "head.attn_window = 0 lets no step attend to any; -1: global attention"
    if not config.test.tiou:
        yield "test.tiou must name at least one threshold, e.g. test.tiou=[0.5]"


def _recognition(config: Config) -> Iterator[str]:
    settings = config.recognition
    assert settings is not None
    if settings.frames % config.clip_frames:
        whose = " (backbone.clip_frames)" if config.backbone.takes_clip_frames else " of a video transformer"
        yield (
            f"recognition.frames = {settings.frames} is not a multiple of {config.clip_frames}, the frames of a clip"
            f"{whose}"
        )
    if config.parallel.temporal != 1:
        yield "parallel.temporal is for detection: recognition does not split clips over ranks"


def _features(config: Config) -> Iterator[str]:
    if not config.data.feature_sources:
        yield "backbone.name=features needs data.features, the folder of the features"
    if config.recognition:
        yield "backbone.name=features is for detection"
    widths, channels, sources = config.head.source_widths, config.backbone.feature_channels, config.data.feature_sources
    if isinstance(channels, tuple) and len(channels) != len(sources):
        counts = f"{len(channels)} sources, data.features of {len(sources)}"
        yield f"backbone.feature_channels = {list(channels)} is of {counts}"
    if widths and (sum(widths) != config.head.width or len(widths) != len(sources) or isinstance(channels, int)):
        yield (
            f"head.source_widths = {list(widths)} needs as many data.features, backbone.feature_channels of each (or "
            f"null), and head.width = {sum(widths)}"
        )
    if config.parallel.temporal != 1:
        yield "parallel.temporal splits a backbone's frames over ranks; features need no more than one"
    if config.backbone.cache_features:
        yield "backbone.cache_features keeps what a backbone computes; with backbone.name=features, none runs"


def _backbone(config: Config) -> Iterator[str]:
    backbone, resolution = config.backbone, config.data.resolution
    if backbone.adapter_kernel % 2 == 0:
        yield "backbone.adapter_kernel must be odd"
    sides = _patch_sides(backbone.name)
    if all(resolution % side for side in sides):
        yield (
            f"data.resolution = {resolution} is not a multiple of {' or '.join(map(str, sides))} pixels, the side of "
            f"{backbone.name}'s patches"
        )
    if backbone.aim_adapters is not None and len(set(backbone.aim_adapters)) != len(backbone.aim_adapters):
        yield "backbone.aim_adapters names an adapter twice"
    if backbone.activation_memory_gb is not None:
        if not (backbone.has_adapters or backbone.tuned_inside):
            yield f"backbone.activation_memory_gb is for adapters, LoRA, biases and norms, not tuning={backbone.tuning}"
        if not backbone.activation_checkpointing:
            yield "backbone.activation_checkpointing=false keeps everything: it leaves no backbone.activation_memory_gb"
        if backbone.stored_on_device_gb:
            yield "backbone.stored_on_device_gb is chosen within backbone.activation_memory_gb: set one of them"
    blocks = backbone.adapter_blocks
    if blocks is not None and (not blocks or len(set(blocks)) != len(blocks)):
        yield "backbone.adapter_blocks must name at least one block, and none twice; None: all"
    if not backbone.ladder_dilations:
        yield "backbone.ladder_dilations must name at least one"
    if config.clip_frames % backbone.frames_per_token:
        yield f"backbone.clip_frames = {config.clip_frames} is odd; tokens of {backbone.name} cover 2 frames"
    clip_frames = None if backbone.takes_clip_frames else backbone.clip_frames
    image_settings = (backbone.aim_adapters, clip_frames, backbone.pixel_mean, backbone.pixel_std)
    targets = backbone.lora_targets
    if backbone.tuned_inside == "lora" and (not targets or len(set(targets)) != len(targets)):
        yield "backbone.lora_targets must name at least one of qkv, proj, fc1, fc2, and none twice"
    if backbone.is_image:
        if not backbone.is_aim and (backbone.aim_adapters is not None or (backbone.clip_frames or 1) != 1):
            yield (
                f"with backbone.tuning={backbone.tuning}, each frame of an image transformer attends to itself alone: "
                "aim_adapters and clip_frames are for aim, frozen and full"
            )
    elif backbone.tuning == "aim" or image_settings != (None,) * 4:
        yield (
            "backbone.tuning=aim, aim_adapters, clip_frames, pixel_mean and pixel_std are for image transformers, "
            f"which {backbone.name} is not; their names are timm's, vit_..."
        )
    if backbone.cache_features:
        yield from _cached_features(config)
    if backbone.tuning == "full" and config.train.lr_backbone is None:
        yield "backbone.tuning=full needs train.lr_backbone, e.g. --set train.lr_backbone=1e-5"


def _cached_features(config: Config) -> Iterator[str]:
    data, wanted = config.data, "backbone.cache_features keeps the features of a frozen backbone"
    if config.backbone.tuning != "frozen" or config.recognition:
        yield f"{wanted} of a detector: it needs backbone.tuning=frozen"
    if config.backbone.is_image:
        yield f"{wanted}, but of an image transformer the last norm is trained"
    if data.augment or data.short_side_before_crop != data.resolution:
        yield (
            f"{wanted}, which augmented frames change in each epoch: use --set data.augment=[] --set "
            f"data.short_side_before_crop={data.resolution}"
        )
    if config.backbone.drop_path:
        yield f"{wanted}, which backbone.drop_path changes in each step: use --set backbone.drop_path=0"
    if config.parallel.temporal != 1:
        yield "parallel.temporal splits a backbone's frames over ranks; with backbone.cache_features, none are left"


def _patch_sides(backbone: str) -> tuple[int, ...]:
    if backbone == "videomaev2_g":
        return 14, 16  # its patches are 14 pixels wide; at 160 its authors drop the last 6
    if backbone.startswith("internvideo2"):
        return (14,)
    named = re.search(r"patch(\d+)", backbone)  # as in timm's names
    return (int(named[1]),) if named else (16,)


def _training(config: Config) -> Iterator[str]:
    train, waits = config.train, config.data.worker_timeout_sec
    if train.stop_epoch > train.schedule_epochs:
        yield f"train.stop_epoch = {train.stop_epoch} must be in 1..train.schedule_epochs = {train.schedule_epochs}"
    if train.warmup_epochs >= train.schedule_epochs:
        yield (
            f"train.warmup_epochs = {train.warmup_epochs} must be below train.schedule_epochs = {train.schedule_epochs}"
        )
    if waits >= train.hang_timeout_sec:
        yield (
            f"data.worker_timeout_sec = {waits} must be below train.hang_timeout_sec = {train.hang_timeout_sec}: the "
            "others wait for a rank that is reading"
        )
