"""The whole detector: frames of a window in, predictions at every pyramid point out.

B windows, F frames, T feature steps, P points of all levels, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.schema import Config, HeadConfig
from adatad_ds.detection.points import make_points
from adatad_ds.models.backbones.kinds import AnyBackbone, Backbone
from adatad_ds.models.heads.actionformer import ActionFormerHead
from adatad_ds.models.heads.interface import Predictions
from adatad_ds.models.heads.tridet import TriDetHead
from adatad_ds.models.pyramid import Pyramid
from adatad_ds.models.sample_noise import SampleNoise

CLASS_LOGITS = "head.cls_head.weight"  # the parameter with a row for each class


class Detector(nn.Module):
    """Adapted backbone, pyramid and heads."""

    def __init__(self, *, backbone: AnyBackbone, pyramid: Pyramid, head: ActionFormerHead | TriDetHead) -> None:
        super().__init__()
        # Features have an empty transformer; all else that asks for one takes it for a backbone like any other.
        self.backbone: Backbone = backbone  # pyright: ignore[reportAttributeAccessIssue]
        self.pyramid = pyramid
        self.head = head

    def forward(self, frames: Tensor, valid: Tensor, seeds: Tensor | None = None) -> Predictions:
        """Predict at every point of the pyramid.

        Args:
            frames: (B, F, H, W, 3) uint8; or features (B, T, C).
            valid: (B, T) bool, False beyond the video's end.
            seeds: (B,) int64, per-sample seeds of drop path, dropout and noise in training; None: without.
        """
        noise = None if seeds is None else SampleNoise(seeds=seeds.tolist(), device=frames.device)
        features = self.backbone(frames, noise).transpose(1, 2)  # (B, T, C)
        levels, masks = self.pyramid(features.to(self.head.cls_head.weight.dtype), valid, noise)
        return self.head(levels, masks)


def detector_points(config: Config, *, device: torch.device, steps: int = 0) -> Tensor:
    """Points of a window's pyramid, (P, 4): time, range min, range max (grid units), stride.

    Args:
        config: of the run.
        device: of the result.
        steps: feature steps of whole videos that are longer than a window.
    """
    head, padded = config.head, padded_steps(config, steps)
    return make_points(
        level_lengths=[padded // stride for stride in head.strides],
        strides=head.strides,
        regression_ranges=head.regression_range,
        point_offset=head.point_offset,
        device=device,
    )


def padded_steps(config: Config, steps: int) -> int:
    """Feature steps of the pyramid's input for samples of so many: more than a window's only of whole videos."""
    if steps <= config.pyramid_steps:
        return config.pyramid_steps
    multiple = step_multiple(config.head)
    return -(-steps // multiple) * multiple


def step_multiple(head: HeadConfig) -> int:
    """What whole videos are padded to a multiple of: complete windows of attention or SGP layers, as published."""
    if head.name == "tridet":
        return head.strides[-1] * head.sgp_window
    windows = zip(head.strides, head.attn_windows, strict=True)
    return math.lcm(head.strides[-1], max(stride * (max(window, 1) // 2 * 2 or 1) for stride, window in windows))


def valid_points(valid: Tensor, config: Config) -> Tensor:
    """Mask of the points inside the video: (B, window's steps) bool to (B, P) bool."""
    valid = F.pad(valid, (0, config.pyramid_steps - valid.shape[1]))
    return torch.cat([valid[:, ::stride] for stride in config.head.strides], dim=1)
