"""What the execution asks of a video transformer: clips of frames in, blocks over the tokens of each clip, tokens out.

n clips of F frames of H x W pixels, t frames a tubelet, P prefix tokens of a clip (a class token), h * w patches of a
tubelet, N = P + F / t * h * w tokens per clip, S = P + h * w positions of a tubelet, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adatad_ds.config.parsing import TUBELET_FRAMES

Family = Literal["VideoMAE", "V-JEPA 2", "InternVideo2", "timm"]


@dataclass(frozen=True, kw_only=True)
class ViTSpec:
    """Shape of a video transformer.

    Attributes:
        width: channels C.
        depth: number of blocks.
        heads: attention heads.
        mlp_hidden: hidden channels of the MLP.
        patch: patch side p in pixels.
        pretrained_side: frame side in pixels of the pretraining.
        family: whose blocks and positions it has.
        tubelet_frames: t.
        prefix_tokens: P.
    """

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patch: int = 16
    pretrained_side: int = 224
    family: Family = "VideoMAE"
    tubelet_frames: int = TUBELET_FRAMES
    prefix_tokens: int = 0

    def positions(self, resolution: int) -> int:
        """S, of frames with a side of `resolution` pixels."""
        return self.prefix_tokens + (resolution // self.patch) ** 2

    def block_flop(self, tokens: int, *, attended: int) -> float:
        """FLOPs of a block's forward pass on so many tokens, each of which attends to `attended`, a clip's."""
        linear = 4 * self.width**2 + 2 * self.width * self.mlp_hidden
        return 2.0 * tokens * (linear + 2 * attended * self.width)


class VideoTransformer(nn.Module, ABC):
    """A transformer whose attention never leaves a clip. Its parts run one after another, and clips apart.

    Tokens of a clip are its prefix and then its patches in order of time, then rows, then columns. `adapted_video.py`
    calls `embed` once, `run_block` for each block and `finish` at the end; features are the mean of a tubelet's
    `pooled` positions. Parameters lie in modules that these call, since ZeRO-3 gathers a module's weights when it is
    called.

    Between the blocks, a window is a sequence of tubelets, each of S positions: its clip's prefix, repeated in every
    tubelet, and its patches. So adapters see the prefix over time like any patch; a clip's blocks take the mean of what
    they make of its copies.

    Args:
        spec: its shape.
        clip_frames: F.
        resolution: side in pixels of the input frames.

    Attributes:
        grid_side: patches of a frame in a row.
        patch_embed: tubelets to tokens, with their weights in `proj`.
        blocks: the blocks, each with linear layers `attn.qkv`, `attn.proj`, `mlp.fc1` and `mlp.fc2`, and LayerNorms.
    """

    patch_embed: nn.Module
    blocks: nn.ModuleList

    def __init__(self, *, spec: ViTSpec, clip_frames: int, resolution: int) -> None:
        super().__init__()
        self.spec = spec
        self.clip_frames = clip_frames
        self.grid_side = resolution // spec.patch

    @property
    def clip_tubelets(self) -> int:
        """F / t."""
        return self.clip_frames // self.spec.tubelet_frames

    @property
    def positions(self) -> int:
        """S."""
        return self.spec.prefix_tokens + self.grid_side**2

    @property
    def pooled(self) -> slice:
        """Those of a tubelet's positions whose mean is its feature: its patches."""
        return slice(self.spec.prefix_tokens, None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tokens."""
        return self.patch_embed.get_parameter("proj.weight").dtype

    @abstractmethod
    def embed(self, frames: Tensor) -> Tensor:
        """Frames (n, F, H, W, 3) uint8 to tokens (n, N, C)."""

    @abstractmethod
    def run_block(self, index: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run a block on tokens (n, N, C); `keep`: drop-path factors of its two branches, (n, 2), or None."""

    def finish(self, tokens: Tensor) -> Tensor:
        """What follows the last block, position by position: (..., C) to the same."""
        return tokens

    def by_tubelet(self, clips: Tensor, *, windows: int) -> Tensor:
        """Tokens of the clips of some windows, (B * n, N, C), to (B, n * F / t, S, C)."""
        prefix = self.spec.prefix_tokens
        if prefix and self.clip_tubelets > 1:
            patches = clips[:, prefix:].unflatten(1, (self.clip_tubelets, -1))
            repeated = clips[:, None, :prefix].expand(-1, self.clip_tubelets, -1, -1)
            clips = torch.cat([repeated, patches], dim=2)
        return clips.reshape(windows, -1, self.positions, clips.shape[-1])

    def by_clip(self, tokens: Tensor) -> Tensor:
        """The inverse of `by_tubelet`: (B, n * F / t, S, C) to (B * n, N, C)."""
        tubelets = tokens.reshape(-1, self.clip_tubelets, *tokens.shape[2:])
        prefix = self.spec.prefix_tokens
        if not prefix or self.clip_tubelets == 1:
            return tubelets.flatten(1, 2)
        return torch.cat([tubelets[:, :, :prefix].mean(dim=1), tubelets[:, :, prefix:].flatten(1, 2)], dim=1)
