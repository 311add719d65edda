"""The VideoMAE family of video transformers: clips of 16 frames in, tokens out.

VideoMAE (arXiv 2203.12602) and VideoMAE V2 (arXiv 2303.16727), as used by AdaTAD: no class token, no final norm,
parameter names as in the original checkpoints.

n clips, H x W pixels, patch side p, h x w = (H // p) x (W // p) patches, N = 8 * h * w tokens per clip, C channels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.parsing import CLIP_FRAMES
from adatad_ds.models.backbones.contract import VideoTransformer, ViTSpec
from adatad_ds.models.backbones.patch_embed import PatchEmbed

NORM_EPS = 1e-6


VIT_SPECS: dict[str, ViTSpec] = {
    "tiny": ViTSpec(width=192, depth=6, heads=3, mlp_hidden=768, pretrained_side=64),
    "videomae_s": ViTSpec(width=384, depth=12, heads=6, mlp_hidden=1536),
    "videomae_b": ViTSpec(width=768, depth=12, heads=12, mlp_hidden=3072),
    "videomae_l": ViTSpec(width=1024, depth=24, heads=16, mlp_hidden=4096),
    "videomae_h": ViTSpec(width=1280, depth=32, heads=16, mlp_hidden=5120),
    "videomaev2_g": ViTSpec(width=1408, depth=40, heads=16, mlp_hidden=6144, patch=14),
}


class VisionTransformer(VideoTransformer):
    """A stack of pre-norm blocks over the tubelets of each 16-frame clip; attention never leaves the clip.

    Args:
        spec: shape of the model.
        resolution: side in pixels of the input frames; the position table is resized to it.
    """

    def __init__(self, *, spec: ViTSpec, resolution: int) -> None:
        super().__init__(spec=spec, clip_frames=CLIP_FRAMES, resolution=resolution)
        self.patch_embed = PatchEmbed(width=spec.width, patch=spec.patch, tubelet_frames=spec.tubelet_frames)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", position_table(spec=spec, grid_side=self.grid_side), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width=spec.width, heads=spec.heads, mlp_hidden=spec.mlp_hidden) for _ in range(spec.depth)
        )

    def embed(self, frames: Tensor) -> Tensor:
        """Frames (n, 16, H, W, 3) uint8 to tokens (n, N, C), with positions added."""
        tokens = self.patch_embed(frames)
        return tokens + self.pos_embed.to(tokens.dtype)

    def run_block(self, index: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run a block on tokens (n, N, C)."""
        return self.blocks[index](tokens, keep)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, *, width: int, heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width=width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width=width, hidden=mlp_hidden)

    def forward(self, tokens: Tensor, keep: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """(n, N, C) to (n, N, C).

        Args:
            tokens: the clips' tokens.
            keep: drop-path factors of the attention and the MLP branch, (n, 2); None: both branches kept.
            rotary: as for `Attention`.
        """
        if keep is None:
            tokens = tokens + self.attn(self.norm1(tokens), rotary)
            return tokens + self.mlp(self.norm2(tokens))
        keep = keep.to(tokens.dtype)[:, :, None, None]
        tokens = torch.addcmul(tokens, self.attn(self.norm1(tokens), rotary), keep[:, 0])
        return torch.addcmul(tokens, self.mlp(self.norm2(tokens)), keep[:, 1])


class Attention(nn.Module):
    """Multi-head self-attention within a clip.

    The published models have a bias on q and v only. Here a single bias of 3C has zeros for k: the softmax is invariant
    to a bias on k, so it changes nothing (and its gradient is zero).
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, rotary: Tensor | None = None) -> Tensor:
        """(n, N, C) to (n, N, C).

        Args:
            tokens: the clips' tokens.
            rotary: cosines and sines by which queries and keys are rotated, (2, N, C / heads); None: they are not.
        """
        n, count, width = tokens.shape
        qkv = self.qkv(tokens).view(n, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (n, heads, N, C / heads)
        if rotary is not None:
            cosines, sines = rotary.to(query.dtype)
            query, key = (each * cosines + _turned(each) * sines for each in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, count, width))


def _turned(heads: Tensor) -> Tensor:
    """Pairs of channels by a right angle: (x, y) to (-y, x)."""
    x, y = heads.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-y, x), dim=-1).flatten(-2)


class MLP(nn.Module):
    """Linear, GELU (exact, or by tanh), linear."""

    def __init__(self, *, width: int, hidden: int, gelu: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, N, C) to (n, N, C)."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate=self.gelu))


def position_table(*, spec: ViTSpec, grid_side: int) -> Tensor:
    """Fixed sine-cosine position table of a clip, (N, C) float32, resized to `grid_side` patches a side.

    Defined on the pretrained grid; for another grid, each time step is resized bicubically (align_corners false).
    """
    steps, side = CLIP_FRAMES // spec.tubelet_frames, spec.pretrained_side // spec.patch
    table = sinusoid(length=steps * side * side, width=spec.width)
    if grid_side == side:
        return table
    maps = table.view(steps, side, side, spec.width).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=(grid_side, grid_side), mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(-1, spec.width)


def sinusoid(*, length: int, width: int) -> Tensor:
    """Sine on even and cosine on odd channels (arXiv 1706.03762, section 3.5), (length, width) float32."""
    position = np.arange(length)[:, None]
    channel = np.arange(width)[None, :]
    angle = position / np.power(10000.0, 2 * (channel // 2) / width)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table).float()
