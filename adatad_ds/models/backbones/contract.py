"""What the execution asks of a video transformer: clips of frames in, blocks over the tokens of each clip, tokens out.

n clips of F frames of H x W pixels, t frames a tubelet, S positions of a tubelet, N = F / t * S tokens per clip,
C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from adatad_ds.models.backbones.patch_embed import PatchEmbed


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
        rotary: positions are rotated into queries and keys, and a norm follows the last block (V-JEPA 2); False: they
            are added to the tokens, and there is no such norm (VideoMAE).
    """

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patch: int = 16
    pretrained_side: int = 224
    rotary: bool = False

    def positions(self, resolution: int) -> int:
        """S, patches of a frame with a side of `resolution` pixels."""
        return (resolution // self.patch) ** 2


class VideoTransformer(nn.Module, ABC):
    """A transformer whose attention never leaves a clip. Its parts run one after another, and clips apart.

    Tokens of a clip are in order of time, then rows, then columns. `adapted_video.py` calls `embed` once, `run_block`
    for each block and `finish` at the end; features are the mean of a tubelet's tokens. Parameters lie in modules that
    these call, since ZeRO-3 gathers a module's weights when it is called.

    Args:
        spec: its shape.
        clip_frames: F.
        tubelet_frames: t.
        resolution: side in pixels of the input frames.

    Attributes:
        grid_side: patches of a frame in a row.
        patch_embed: tubelets to tokens.
        blocks: the blocks, each with linear layers `attn.qkv`, `attn.proj`, `mlp.fc1` and `mlp.fc2`, and LayerNorms.
    """

    patch_embed: PatchEmbed
    blocks: nn.ModuleList

    def __init__(self, *, spec: ViTSpec, clip_frames: int, tubelet_frames: int, resolution: int) -> None:
        super().__init__()
        self.spec = spec
        self.clip_frames = clip_frames
        self.tubelet_frames = tubelet_frames
        self.grid_side = resolution // spec.patch

    @property
    def clip_tubelets(self) -> int:
        """F / t."""
        return self.clip_frames // self.tubelet_frames

    @property
    def positions(self) -> int:
        """S."""
        return self.grid_side**2

    @abstractmethod
    def embed(self, frames: Tensor) -> Tensor:
        """Frames (n, F, H, W, 3) uint8 to tokens (n, N, C)."""

    @abstractmethod
    def run_block(self, index: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run a block on tokens (n, N, C); `keep`: drop-path factors of its two branches, (n, 2), or None."""

    def finish(self, tokens: Tensor) -> Tensor:
        """What follows the last block, position by position: (..., C) to the same."""
        return tokens


def frozen_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model's video transformers in which nothing learns; each is called as a whole."""
    transformers = (module for module in model.modules() if isinstance(module, VideoTransformer))
    blocks = [block for transformer in transformers for block in transformer.blocks]
    return [block for block in blocks if not any(parameter.requires_grad for parameter in block.parameters())]
