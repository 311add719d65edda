"""The blocks of timm's image transformers as separate parts, plain or with rotary positions.

n frames or other sequences, L tokens of each, C channels.
"""

from __future__ import annotations

import torch
from timm.layers import AttentionRope, LayerScale, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

MOST_SEQUENCES = 2**15  # per attention call: CUDA kernels put them on a grid axis of at most 65,535


class ImageBlock(nn.Module):
    """A block of timm's plain transformers or of its Eva models, under the names of the former.

    Layer scales are modules here, so that ZeRO-3 gathers them, and q, k and v share one bias parameter.
    """

    def __init__(self, block: Block | EvaBlock) -> None:
        super().__init__()
        self.norm1 = block.norm1
        if isinstance(block, EvaBlock):
            width = len(block.norm1.weight)
            self.attn = _rotary_attention(block.attn, width=width)
            self.ls1 = nn.Identity() if block.gamma_1 is None else LayerScale(width)
            self.norm2 = block.norm2
            self.mlp = block.mlp
            self.ls2 = nn.Identity() if block.gamma_2 is None else LayerScale(width)
        else:
            self.attn, self.ls1 = block.attn, block.ls1
            self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2

    def forward(self, tokens: Tensor, keep: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """(n, L, C) to the same.

        Args:
            tokens: of frames.
            keep: drop-path factors of the attention and the MLP branch, (n, 2); None: both branches kept.
            rotary: as for `attend`.
        """
        attended = self.attend(self.norm1(tokens), rotary=rotary)
        if keep is None:
            tokens = tokens + attended
            return tokens + self.ls2(self.mlp(self.norm2(tokens)))
        keep = keep.to(tokens.dtype)[:, :, None, None]
        tokens = torch.addcmul(tokens, attended, keep[:, 0])
        return torch.addcmul(tokens, self.ls2(self.mlp(self.norm2(tokens))), keep[:, 1])

    def attend(self, normed: Tensor, *, rotary: Tensor | None = None) -> Tensor:
        """Attention on normed tokens, (n, L, C) to the same, for any number n of sequences.

        Args:
            normed: (n, L, C).
            rotary: rotary embedding of a frame's patches (`ImageTransformer.rotary`); None: no rotation.
        """
        places = () if rotary is None else (rotary,)
        pieces = [self.ls1(self.attn(piece, *places)) for piece in normed.split(MOST_SEQUENCES)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rotary_attention(attention: nn.Module, *, width: int) -> RotaryAttention:
    assert isinstance(attention, EvaAttention | AttentionRope)
    assert attention.qkv is not None
    bias = attention.qkv.bias if isinstance(attention, AttentionRope) else attention.q_bias
    return RotaryAttention(width=width, heads=attention.num_heads, bias=bias is not None, half=attention.rotate_half)


class RotaryAttention(nn.Module):
    """Self-attention with rotary position embedding on the patches' queries and keys.

    Args:
        width: C.
        heads: attention heads, each of C / heads channels.
        bias: on query, key and value; DINOv3's keys have a bias of zero.
        half: channels that turn together are half a head apart (DINOv3, arXiv 2508.10104); False: neighbours
            (Perception Encoder, arXiv 2504.13181).
    """

    def __init__(self, *, width: int, heads: int, bias: bool, half: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.half_apart = half
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotary: Tensor | None = None) -> Tensor:
        """(n, L, C) to the same.

        Args:
            tokens: (n, L, C).
            rotary: sines and cosines (patches, 2 * C / heads) for the last tokens; None: no rotation, as in temporal
                attention.
        """
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = (_rotated(each, rotary, half=self.half_apart) for each in (q, k))
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _rotated(heads: Tensor, rotary: Tensor, *, half: bool) -> Tensor:
    """Rotate the patches, the last tokens, of queries or keys (n, heads, L, c)."""
    prefix, patches = heads.split([heads.shape[2] - len(rotary), len(rotary)], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rotary, half=half).to(heads.dtype)], dim=2)
