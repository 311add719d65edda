"""Nine-byte encoding of trainable state, per parameter; full precision takes 16.

The master keeps 24 of its 32 bits, both Adam moments and the running average's distance from the master are bf16. With
`train.compact_checkpoints` a run rounds its own state in the same way at every save: memory and checkpoint hold the
same bits, so a resume stays exact. Rounding a moment once per epoch changes its step sizes by at most 0.2 % (the
squared one; the other forgets within some ten steps), and a master by less than 1 part in 65 000, little of what bf16
compute sees of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MASTER = "master"
AVERAGE = "average"


def encode(kind: str, value: Tensor, master: Tensor) -> Tensor:
    """Compact form of a tensor.

    Args:
        kind: "master", "average", or an Adam moment.
        value: fp32, any shape.
        master: the same parameter's (unrounded) master; used for "average".

    Returns:
        (*shape, 3) uint8 for a master, else bf16 of the value's shape.
    """
    if kind == MASTER:
        bytes_ = _rounded_master(value).unsqueeze(-1).view(torch.uint8)
        return bytes_[..., 1:].contiguous()  # little-endian: the first byte is lowest, and zero
    if kind == AVERAGE:
        return (value - _rounded_master(master)).to(torch.bfloat16)
    return value.to(torch.bfloat16)


def decode(kind: str, stored: Tensor, master: Tensor) -> Tensor:
    """Decode to fp32.

    Args:
        kind: as for `encode`.
        stored: what `encode` returned.
        master: the same parameter's decoded master; used for "average".
    """
    if kind == MASTER:
        lowest = torch.zeros_like(stored[..., :1])
        return torch.cat([lowest, stored], dim=-1).view(torch.float32).squeeze(-1)
    value = stored.float()
    return master + value if kind == AVERAGE else value


def round_(master: Tensor, others: Mapping[str, Tensor]) -> None:
    """Round fp32 tensors in place to what `decode` makes of their compact form.

    Args:
        master: any shape.
        others: of the same parameter, by kind.
    """
    exact = _rounded_master(master)
    for kind, value in others.items():
        if kind == AVERAGE:
            value.sub_(exact)
        value.copy_(value.to(torch.bfloat16))
        if kind == AVERAGE:
            value.add_(exact)
    master.copy_(exact)


def _rounded_master(value: Tensor) -> Tensor:
    """fp32 rounded to its highest 24 bits; the largest ones are cut, for they would overflow."""
    bits = value.float().contiguous().view(torch.int32)
    largest = (bits & 0x7FFFFF00) >= 0x7F7FFF00
    return torch.where(largest, bits, bits + 0x80).bitwise_and_(-0x100).view(torch.float32)
