"""The whole detector: frames of a window in, class logits and boundary distances at every pyramid point out.

B windows, F frames, T feature steps, P points of all levels, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.schema import Config
from adatad_ds.detection.points import make_points
from adatad_ds.models.backbones.vit import ViTSpec
from adatad_ds.models.execution.activation_store import Storage
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.window_share import TimeShard
from adatad_ds.models.factory import Backbone, build_backbone
from adatad_ds.models.heads.actionformer import DetectionHead
from adatad_ds.models.pyramid import Pyramid
from adatad_ds.models.sample_noise import SampleNoise


class Predictions(NamedTuple):
    """The detector's outputs for a batch of windows; a tuple, in which DeepSpeed's hooks find the tensors.

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

    def __init__(self, *, backbone: Backbone, pyramid: Pyramid, head: DetectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head

    def forward(self, frames: Tensor, valid: Tensor, seeds: Tensor | None = None) -> Predictions:
        """Predict class logits and distances.

        Args:
            frames: (B, F, H, W, 3) uint8.
            valid: (B, T) bool, False beyond the video's end.
            seeds: (B,) int64, per-sample seeds of drop path and dropout in training; None: nothing is dropped.
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
    window: TimeShard | None = None,
    storage: Storage | None = None,
    stopwatch: Stopwatch | None = None,
) -> Detector:
    """Build a config's detector, without loading pretrained weights.

    A transformer whose weights come from a file (`backbone.weights`) is left on the meta device, without memory.

    Args:
        config: config of the run.
        num_classes: K.
        spec: shape of a video transformer; None: that of `backbone.name`.
        window: this rank's share of a window in time; None: all of it.
        storage: stores activations until the backward pass; None: on the device.
        stopwatch: times recomputed segments; None: no timing.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """
    data, head = config.data, config.head
    backbone = build_backbone(
        config, feature_steps=data.window_size, spec=spec, window=window, storage=storage, stopwatch=stopwatch
    )
    pyramid = Pyramid(
        in_channels=backbone.width,
        width=head.width,
        arch=head.arch,
        heads=head.heads,
        attn_windows=head.attn_windows,
        steps=config.pyramid_steps,
        abs_pos_embed=head.abs_pos_embed,
        drop_path=head.drop_path,
        input_dropout=head.input_dropout,
        proj_dropout=head.proj_dropout,
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
    """Points of a window's pyramid, (P, 4): time, range min, range max (grid units), stride."""
    head = config.head
    return make_points(
        level_lengths=[config.pyramid_steps // stride for stride in head.strides],
        strides=head.strides,
        regression_ranges=head.regression_range,
        point_offset=head.point_offset,
        device=device,
    )


def valid_points(valid: Tensor, config: Config) -> Tensor:
    """Mask of the points inside the video: (B, window's steps) bool to (B, P) bool."""
    valid = F.pad(valid, (0, config.pyramid_steps - valid.shape[1]))
    return torch.cat([valid[:, ::stride] for stride in config.head.strides], dim=1)
