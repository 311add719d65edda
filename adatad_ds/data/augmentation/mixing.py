"""Mixup and CutMix of clips: each sample of a batch, and its target, is blended with another one.

B batch, K classes, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mix(
    frames: Tensor,
    labels: Tensor,
    *,
    classes: int,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Blend each sample with the previous one of the batch, all with the same weight; with both kinds, a coin decides.

    The weight of the sample itself is drawn from Beta(alpha, alpha). A batch of one sample is not changed.

    Args:
        frames: (B, ..., H, W, channels), uint8 or floating; not modified.
        labels: (B,) class indices; samples to ignore have negative ones and get a target of zeros.
        classes: K.
        mixup_alpha: alpha for blending whole frames; 0: off.
        cutmix_alpha: alpha for pasting a box, the same into all frames; 0: off.
        seed: seed of this batch.

    Returns:
        Frames of the same type, and targets (B, K) float32 for torch's cross_entropy, which sum to 1 if no part of the
        sample is ignored.
    """
    targets = soft_targets(labels, classes=classes)
    kinds = [kind for kind, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha > 0]
    if not kinds or len(frames) < 2:
        return frames, targets
    rng = np.random.default_rng(seed)
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "mixup":
        own = float(rng.beta(mixup_alpha, mixup_alpha))
        mixed = _blend(frames, frames.roll(1, 0), own)
    else:
        height, width = frames.shape[-3:-1]
        top, bottom, left, right = _box(height, width, float(1 - rng.beta(cutmix_alpha, cutmix_alpha)), rng)
        own = 1 - (bottom - top) * (right - left) / (height * width)
        mixed = frames.clone()
        mixed[..., top:bottom, left:right, :] = frames.roll(1, 0)[..., top:bottom, left:right, :]
    return mixed, own * targets + (1 - own) * targets.roll(1, 0)


def soft_targets(labels: Tensor, *, classes: int) -> Tensor:
    """One-hot targets (B, K) float32 of labels (B,); zeros for negative labels."""
    targets = torch.zeros((len(labels), classes), device=labels.device)
    return targets.scatter_(1, labels.clamp(min=0)[:, None], (labels >= 0).float()[:, None])


def _blend(frames: Tensor, other: Tensor, own: float) -> Tensor:
    if frames.is_floating_point():
        return torch.lerp(other, frames, own)
    # per sample: float copies of a whole batch of clips would be large
    pairs = zip(frames, other, strict=True)
    return torch.stack([torch.lerp(b.float(), a.float(), own).round_().to(frames.dtype) for a, b in pairs])


def _box(height: int, width: int, area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box with the frame's aspect around a random pixel, clipped at the borders."""
    half_height, half_width = height * area**0.5 / 2, width * area**0.5 / 2
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, round(row - half_height)), min(height, round(row + half_height))
    left, right = max(0, round(column - half_width)), min(width, round(column + half_width))
    return top, bottom, left, right
