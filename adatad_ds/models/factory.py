"""Build a config's adapted backbone, a video or an image transformer, for detection and recognition."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from adatad_ds.config.schema import BackboneConfig, Config
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.vit import VIT_SPECS, VisionTransformer, ViTSpec
from adatad_ds.models.execution.activation_store import Storage, StoragePolicy
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.window_share import TimeShard, WholeWindow
from adatad_ds.models.tuning.adapters import TIA, PlainAdapter

if TYPE_CHECKING:
    from adatad_ds.models.backbones.adapted_image import AIMTransformer

Backbone: TypeAlias = "AdaptedBackbone | AIMTransformer"  # frames (B, F, H, W, 3) to features (B, C, T)


def build_backbone(
    config: Config,
    *,
    feature_steps: int,
    spec: ViTSpec | None = None,
    window: TimeShard | None = None,
    storage: Storage | None = None,
    stopwatch: Stopwatch | None = None,
) -> Backbone:
    """Build a backbone, without loading pretrained weights.

    A transformer whose weights come from a file (`backbone.weights`) is left on the meta device, without memory.

    Args:
        config: config of the run.
        feature_steps: T.
        spec: shape of a video transformer; None: that of `backbone.name`.
        window: this rank's share of a window in time; None: all of it.
        storage: stores activations until the backward pass; None: on the device. Unused by image transformers.
        stopwatch: times recomputed segments; None: no timing.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """
    backbone, resolution = config.backbone, config.data.resolution
    memory = torch.device("meta") if backbone.weights is not None else contextlib.nullcontext()
    if backbone.is_image:
        from adatad_ds.models.backbones.adapted_image import (  # here, as timm takes seconds to import
            ALL_ADAPTERS,
            AIMTransformer,
        )
        from adatad_ds.models.backbones.image_vit import build_image_transformer

        with memory:
            image = build_image_transformer(
                backbone.name, resolution=resolution, pixel_mean=backbone.pixel_mean, pixel_std=backbone.pixel_std
            )
        adapt = backbone.aim_adapters
        if adapt is None:
            adapt = ALL_ADAPTERS if backbone.tuning == "aim" else ()
        return AIMTransformer(
            vit=image,
            clip_frames=config.clip_frames,
            feature_steps=feature_steps,
            adapt=adapt,
            tuning=backbone.tuning,
            adapter_before_time=backbone.aim_before_time,
            adapter_ratio=backbone.adapter_ratio,
            joint_scale=backbone.aim_joint_scale,
            drop_path=backbone.drop_path,
            activation_checkpointing=backbone.activation_checkpointing,
            clips_per_chunk=backbone.clips_per_chunk,
            window=window,
        )
    spec = spec or backbone_spec(backbone.name)
    with memory:
        vit = VisionTransformer(spec=spec, resolution=resolution)
    return AdaptedBackbone(
        vit=vit,
        adapters=_adapters(backbone, spec),
        window=window or WholeWindow(),
        tuning=backbone.tuning,
        feature_steps=feature_steps,
        drop_path=backbone.drop_path,
        activation_checkpointing=backbone.activation_checkpointing,
        clips_per_chunk=backbone.clips_per_chunk,
        storage=storage or Storage(StoragePolicy()),
        stopwatch=stopwatch or Stopwatch(),
    )


def adapted_blocks(backbone: BackboneConfig) -> tuple[int, ...]:
    """Indices of a video transformer's adapted blocks, each with one stored tensor; () for image transformers.

    Raises:
        ConfigError: unknown backbone, or blocks that it does not have.
    """
    if backbone.is_image:
        return ()
    return _adapted_blocks(backbone, backbone_spec(backbone.name))


def backbone_spec(name: str) -> ViTSpec:
    """Shape of a video transformer by name.

    Raises:
        ConfigError: unknown name.
    """
    try:
        return VIT_SPECS[name]
    except KeyError:
        raise ConfigError(
            f"backbone.name={name!r} is unknown; known: {', '.join(VIT_SPECS)}, and timm's image models vit_..."
        ) from None


def _adapted_blocks(backbone: BackboneConfig, spec: ViTSpec) -> tuple[int, ...]:
    if backbone.tuning in ("frozen", "full"):
        return ()
    blocks = backbone.adapter_blocks if backbone.adapter_blocks is not None else tuple(range(spec.depth))
    outside = [block for block in blocks if not 0 <= block < spec.depth]
    if outside or not blocks:
        raise ConfigError(
            f"backbone.adapter_blocks={list(blocks)} must name blocks 0..{spec.depth - 1} of {backbone.name}; "
            f"not there: {outside}"
        )
    return blocks


def _adapters(backbone: BackboneConfig, spec: ViTSpec) -> dict[int, nn.Module]:
    def adapter() -> nn.Module:
        if backbone.adapter == "plain":
            return PlainAdapter(width=spec.width, ratio=backbone.adapter_ratio)
        return TIA(
            width=spec.width,
            ratio=backbone.adapter_ratio,
            kernel=backbone.adapter_kernel,
            dilation=backbone.adapter_dilation,
        )

    return {block: adapter() for block in _adapted_blocks(backbone, spec)}
