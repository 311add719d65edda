"""Tensors that files of image transformers keep apart or together otherwise than timm's VisionTransformer."""

from __future__ import annotations

import torch
from torch import Tensor

from adatad_ds.weights.files import StoredTensor, Tensors
from adatad_ds.weights.layout import stacked


def join_attention(joined: dict[str, StoredTensor]) -> Tensors:
    """Query, key and value as one matrix and one bias; DINOv3's keys have no bias, which is one of zero."""
    for stem in [key.removesuffix(".q.weight") for key in joined if key.endswith(".attn.q.weight")]:
        names = [f"{stem}.{part}.weight" for part in "qkv"]
        if all(name in joined for name in names):
            joined[f"{stem}.qkv.weight"] = stacked([joined.pop(name) for name in names])
    for stem in [key.removesuffix(".q.bias") for key in joined if key.endswith(".attn.q.bias")]:
        query, key, value = (joined.get(f"{stem}.{part}.bias") for part in "qkv")
        if query is not None and value is not None:
            key = key or StoredTensor(query.shape, lambda shape=query.shape: torch.zeros(shape))
            joined[f"{stem}.qkv.bias"] = stacked([query, key, value])
            for part in "qkv":
                joined.pop(f"{stem}.{part}.bias", None)
    return joined


def without_key_bias(bias: StoredTensor) -> StoredTensor:
    """One bias (3C,) of query, key and value, the key's zero."""

    def read() -> Tensor:
        query, key, value = bias.read().chunk(3)
        return torch.cat([query, torch.zeros_like(key), value])

    return StoredTensor(bias.shape, read)


def positions_of_patches(token: StoredTensor, table: StoredTensor) -> tuple[StoredTensor, StoredTensor]:
    """The class token with its position, and the positions of patches alone."""
    patches = (*table.shape[:-2], table.shape[-2] - 1, table.shape[-1])
    with_position = StoredTensor(token.shape, lambda: token.read() + table.read()[..., :1, :].view(token.shape))
    return with_position, StoredTensor(patches, lambda: table.read()[..., 1:, :])
