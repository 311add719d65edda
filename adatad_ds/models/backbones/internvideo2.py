"""InternVideo2 (arXiv 2403.15377): video transformers with a class token, and tokens of a single frame.

Blocks have RMS norms, also on queries and keys, and scaled branches; positions are learnt. The attention pooling of the
published models, which makes one vector of a whole clip, is absent: a detector wants a feature for each frame.

n clips, F frames of each, h * w patches of a frame, N = 1 + F * h * w tokens per clip, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.models.backbones.contract import VideoTransformer, ViTSpec
from adatad_ds.models.backbones.patch_embed import PatchEmbed
from adatad_ds.models.backbones.vit import MLP, NORM_EPS


def _spec(*, width: int, depth: int, heads: int, mlp_hidden: int) -> ViTSpec:
    return ViTSpec(
        width=width,
        depth=depth,
        heads=heads,
        mlp_hidden=mlp_hidden,
        patch=14,
        family="InternVideo2",
        tubelet_frames=1,
        prefix_tokens=1,
    )


INTERNVIDEO2_SPECS: dict[str, ViTSpec] = {
    "internvideo2_s": _spec(width=384, depth=12, heads=6, mlp_hidden=1536),
    "internvideo2_b": _spec(width=768, depth=12, heads=12, mlp_hidden=3072),
    "internvideo2_l": _spec(width=1024, depth=24, heads=16, mlp_hidden=4096),
    "internvideo2_1b": _spec(width=1408, depth=40, heads=16, mlp_hidden=6144),
}


class InternVideo2(VideoTransformer):
    """The vision encoder of InternVideo2, without attention pooling and classifier.

    Args:
        spec: shape of the model.
        clip_frames: F; the authors pretrain with 8 frames and fine-tune with 8 and 16.
        resolution: side in pixels of the input frames.
    """

    def __init__(self, *, spec: ViTSpec, clip_frames: int, resolution: int) -> None:
        super().__init__(spec=spec, clip_frames=clip_frames, resolution=resolution)
        self.patch_embed = PatchEmbed(width=spec.width, patch=spec.patch, tubelet_frames=spec.tubelet_frames)
        self.prefix = ClassAndPositions(width=spec.width, patches=clip_frames * self.grid_side**2)
        self.blocks = nn.ModuleList(
            Block(width=spec.width, heads=spec.heads, mlp_hidden=spec.mlp_hidden) for _ in range(spec.depth)
        )

    def embed(self, frames: Tensor) -> Tensor:
        """Frames (n, F, H, W, 3) uint8 to tokens (n, N, C), with positions added."""
        return self.prefix(self.patch_embed(frames))

    def run_block(self, index: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run a block on tokens (n, N, C)."""
        return self.blocks[index](tokens, keep)


class ClassAndPositions(nn.Module):
    """The class token before a clip's patches, and the learnt positions of them all."""

    def __init__(self, *, width: int, patches: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, width))
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """(n, N - 1, C) to (n, N, C)."""
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled channel by channel, with a residual.

    GELU is the tanh approximation, as in the fused MLP that the authors train with.
    """

    def __init__(self, *, width: int, heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=NORM_EPS)
        self.attn = Attention(width=width, heads=heads)
        self.ls1 = LayerScale(width=width)
        self.norm2 = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width=width, hidden=mlp_hidden, gelu="tanh")
        self.ls2 = LayerScale(width=width)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """(n, N, C) to (n, N, C).

        Args:
            tokens: the clips' tokens.
            keep: drop-path factors of the attention and the MLP branch, (n, 2); None: both branches kept.
        """
        if keep is None:
            tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
            return tokens + self.ls2(self.mlp(self.norm2(tokens)))
        keep = keep.to(tokens.dtype)[:, :, None, None]
        tokens = torch.addcmul(tokens, self.ls1(self.attn(self.norm1(tokens))), keep[:, 0])
        return torch.addcmul(tokens, self.ls2(self.mlp(self.norm2(tokens))), keep[:, 1])


class Attention(nn.Module):
    """Multi-head self-attention within a clip; queries and keys are normed over all heads together."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, N, C) to (n, N, C)."""
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        heads = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in (self.q_norm(query), self.k_norm(key), value)
        )
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A trainable factor for each channel."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return tokens * self.gamma
