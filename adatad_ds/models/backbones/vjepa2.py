"""V-JEPA 2 (arXiv 2506.09985): video transformers with rotary positions and a final norm.

The blocks are VideoMAE's, with rotated queries and keys. transformers' own modules compute the rotation in each block
and call anew, in the tokens' type; here it is a table, made once in float32. Parameter names are the authors'.

n clips, N tokens per clip, S positions of a tubelet, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from adatad_ds.models.backbones.contract import VideoTransformer, ViTSpec
from adatad_ds.models.backbones.patch_embed import PatchEmbed
from adatad_ds.models.backbones.vit import NORM_EPS, Block

VJEPA2_SPECS: dict[str, ViTSpec] = {
    "vjepa2_l": ViTSpec(width=1024, depth=24, heads=16, mlp_hidden=4096, pretrained_side=256, family="V-JEPA 2"),
    "vjepa2_h": ViTSpec(width=1280, depth=32, heads=16, mlp_hidden=5120, pretrained_side=256, family="V-JEPA 2"),
    "vjepa2_g": ViTSpec(width=1408, depth=40, heads=22, mlp_hidden=6144, pretrained_side=256, family="V-JEPA 2"),
}


class VJEPA2(VideoTransformer):
    """The encoder of V-JEPA 2, without its predictor.

    Args:
        spec: shape of the model.
        clip_frames: frames per clip; the authors pretrain with 16 and 64, and positions follow from it.
        resolution: side in pixels of the input frames; positions are counted in patches, whatever the resolution.
    """

    def __init__(self, *, spec: ViTSpec, clip_frames: int, resolution: int) -> None:
        super().__init__(spec=spec, clip_frames=clip_frames, resolution=resolution)
        self.patch_embed = PatchEmbed(width=spec.width, patch=spec.patch, tubelet_frames=spec.tubelet_frames)
        self.blocks = nn.ModuleList(
            Block(width=spec.width, heads=spec.heads, mlp_hidden=spec.mlp_hidden) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width, eps=NORM_EPS)
        self.rotary: Tensor
        table = rotary_table(steps=self.clip_tubelets, side=self.grid_side, channels=spec.width // spec.heads)
        self.register_buffer("rotary", table, persistent=False)

    def embed(self, frames: Tensor) -> Tensor:
        """Frames (n, F, H, W, 3) uint8 to tokens (n, N, C)."""
        return self.patch_embed(frames)

    def run_block(self, index: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run a block on tokens (n, N, C)."""
        return self.blocks[index](tokens, keep, self.rotary)

    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm: (..., C) to the same."""
        return self.norm(tokens)


def rotary_table(*, steps: int, side: int, channels: int) -> Tensor:
    """Cosines and sines of a clip's positions for each channel of a head, (2, N, channels) float32.

    A third of the channels each turn with the tubelet, the row and the column; what is left over does not. Within a
    third of d channels, channel c has the frequency 10000^(-2 (c mod d/2) / d), as pretrained: the two channels of a
    rotated pair differ in it.
    """
    third = 2 * (channels // 3 // 2)
    frequencies = np.tile(10000.0 ** (-np.arange(third // 2) / (third / 2)), 2)
    places = np.stack(np.meshgrid(np.arange(steps), np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    angles = (places.reshape(-1, 3, 1) * frequencies).reshape(-1, 3 * third)
    angles = np.pad(angles, ((0, 0), (0, channels - 3 * third)))
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)])).float()
