"""Frames as bytes to tokens: pixels normalised, tubelets flattened and projected.

n clips, H x W pixels, patch side p, t frames a tubelet, h x w = (H // p) x (W // p) patches, N tokens per clip,
C channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, RGB, on the scale 0..255
PIXEL_STD = (58.395, 57.12, 57.375)


class PatchEmbed(nn.Module):
    """Tubelets of t frames x p x p pixels to tokens: the published Conv3d as one matrix product.

    bf16 Conv3d is slow and memory-hungry in several PyTorch releases; unfolding first is exact and fast.
    """

    def __init__(self, *, width: int, patch: int, tubelet_frames: int) -> None:
        super().__init__()
        self.proj = TubeletProjection(width=width, patch=patch, tubelet_frames=tubelet_frames)
        self.pixel_scale: Tensor
        self.register_buffer("pixel_scale", pixel_scale(mean=PIXEL_MEAN, std=PIXEL_STD), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(n, F, H, W, 3) uint8 to (n, N, C); pixels beyond the last whole patch are dropped, as by Conv3d."""
        n, count, height, width, _ = frames.shape
        p, t = self.proj.patch, self.proj.tubelet_frames
        h, w = height // p, width // p
        shape = (n, count // t, t, h, p, w, p, 3)
        # Permuted while they are bytes; (n, count / t, h, w, 3, t, p, p), the kernel's order.
        tubelets = frames[:, :, : h * p, : w * p].reshape(shape).permute(0, 1, 3, 5, 7, 2, 4, 6).contiguous()
        mean, std = self.pixel_scale.view(torch.float32).view(2, 3, 1, 1, 1)
        pixels = tubelets.float().sub_(mean).div_(std).to(self.proj.weight.dtype)
        return self.proj(pixels.flatten(4).flatten(1, 3))


def pixel_scale(*, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Mean and standard deviation of pixels, (2, 3): the bits of float32 as int32, to be viewed.

    A buffer, since a tensor made of numbers in each call is a copy that the host waits for on a GPU; of integers, since
    a model that is cast would round it.
    """
    return torch.from_numpy(np.array([mean, std], dtype=np.float32).view(np.int32))


class TubeletProjection(nn.Module):
    """Linear map of flattened tubelets whose weight keeps the Conv3d shape (C, 3, t, p, p) of the checkpoints."""

    def __init__(self, *, width: int, patch: int, tubelet_frames: int) -> None:
        super().__init__()
        self.patch = patch
        self.tubelet_frames = tubelet_frames
        self.weight = nn.Parameter(torch.empty(width, 3, tubelet_frames, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, tubelets: Tensor) -> Tensor:
        """(..., 3 * t * p * p) to (..., C)."""
        return F.linear(tubelets, self.weight.flatten(1), self.bias)
