"""The whole detector: frames of a window in, class logits and boundary distances at every pyramid point out.

B windows, F frames, T feature steps, P points of all levels, K classes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config import BackboneConfig, Config, ConfigError
from adatad_ds.detection.points import make_points
from adatad_ds.models.adapters import TIA, PlainAdapter
from adatad_ds.models.backbone import AdaptedBackbone
from adatad_ds.models.heads import DetectionHead
from adatad_ds.models.noise import SampleNoise
from adatad_ds.models.pyramid import Pyramid
from adatad_ds.models.stopwatch import Stopwatch
from adatad_ds.models.stored import Storage, StoragePolicy
from adatad_ds.models.vit import VIT_SPECS, VisionTransformer, ViTSpec
from adatad_ds.models.window import WholeWindow, Window


@dataclass(frozen=True)
class Predictions:
    """What the detector says about a batch of windows.

    Attributes:
        class_logits: (B, P, K) float32.
        distances: (B, P, 2) float32, to start and end, in strides of the point's level.
        valid: (B, P) bool, False beyond the video's end.
    """

    class_logits: Tensor
    distances: Tensor
    valid: Tensor


class Detector(nn.Module):
    """Adapted backbone, pyramid and heads."""

    def __init__(self, *, backbone: AdaptedBackbone, pyramid: Pyramid, head: DetectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head

    def forward(self, frames: Tensor, valid: Tensor, seeds: Tensor | None = None) -> Predictions:
        """Detect.

        Args:
            frames: (B, F, H, W, 3) uint8.
            valid: (B, T) bool, False beyond the video's end.
            seeds: (B,) int64, each sample's seed for drop path and dropout in training; None: nothing is dropped.
        """
        noise = None if seeds is None else SampleNoise(seeds=seeds.tolist(), device=frames.device)
        features = self.backbone(frames, noise).transpose(1, 2)  # (B, T, C)
        levels, masks = self.pyramid(features.to(self.head.cls_head.weight.dtype), valid, noise)
        class_logits, distances = self.head(levels, masks)
        return Predictions(class_logits, distances, torch.cat(masks, dim=1))


def build_detector(
    config: Config,
    *,
    num_classes: int,
    spec: ViTSpec | None = None,
    window: Window | None = None,
    storage: Storage | None = None,
    stopwatch: Stopwatch | None = None,
) -> Detector:
    """Build the detector of a config, pretrained weights not yet loaded.

    A transformer whose weights come from a file (`backbone.weights`) is left on the meta device, without memory.

    Args:
        config: of the run.
        num_classes: K.
        spec: shape of the transformer; None: that of `backbone.name`.
        window: this rank's share of a window in time; None: all of it.
        storage: where activations wait for the backward pass; None: on the device.
        stopwatch: times recomputed segments; None: nothing does.

    Raises:
        ConfigError: unknown backbone, or adapter blocks that it does not have.
    """
    spec = spec or backbone_spec(config.backbone.name)
    data, head = config.data, config.head
    with torch.device("meta") if config.backbone.weights is not None else contextlib.nullcontext():
        vit = VisionTransformer(spec=spec, resolution=data.resolution)
    backbone = AdaptedBackbone(
        vit=vit,
        adapters=_adapters(config.backbone, spec),
        window=window or WholeWindow(),
        tuning=config.backbone.tuning,
        feature_steps=data.window_size,
        drop_path=config.backbone.drop_path,
        activation_checkpointing=config.backbone.activation_checkpointing,
        clips_per_chunk=config.backbone.clips_per_chunk,
        storage=storage or Storage(StoragePolicy()),
        stopwatch=stopwatch or Stopwatch(),
    )
    pyramid = Pyramid(
        in_channels=spec.width,
        width=head.width,
        arch=head.arch,
        heads=head.heads,
        attn_windows=head.attn_windows,
        steps=config.pyramid_steps,
        abs_pos_embed=head.abs_pos_embed,
        drop_path=head.drop_path,
        input_dropout=head.input_dropout,
    )
    heads = DetectionHead(
        width=head.width,
        num_classes=num_classes,
        levels=head.levels,
        num_convs=head.num_convs,
        cls_prior=head.cls_prior,
    )
    return Detector(backbone=backbone, pyramid=pyramid, head=heads)


def detector_points(config: Config, *, device: torch.device) -> Tensor:
    """The points of a window's pyramid, (P, 4): time, range min, range max (grid units), stride."""
    head = config.head
    return make_points(
        level_lengths=[config.pyramid_steps // stride for stride in head.strides],
        strides=head.strides,
        regression_ranges=head.regression_range,
        point_offset=head.point_offset,
        device=device,
    )


def valid_points(valid: Tensor, config: Config) -> Tensor:
    """Which points lie inside the video: (B, window's steps) bool to (B, P) bool."""
    valid = F.pad(valid, (0, config.pyramid_steps - valid.shape[1]))
    return torch.cat([valid[:, ::stride] for stride in config.head.strides], dim=1)


def adapted_blocks(backbone: BackboneConfig) -> tuple[int, ...]:
    """Indices of the blocks that have an adapter.

    Raises:
        ConfigError: unknown backbone, or blocks that it does not have.
    """
    return _adapted_blocks(backbone, backbone_spec(backbone.name))


def backbone_spec(name: str) -> ViTSpec:
    """Shape of a backbone by name.

    Raises:
        ConfigError: unknown.
    """
    try:
        return VIT_SPECS[name]
    except KeyError:
        raise ConfigError(f"backbone.name={name!r} is unknown; there are {', '.join(VIT_SPECS)}") from None


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
