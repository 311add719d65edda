"""Compact form of what learns: 9 bytes a parameter where full precision takes 16.

The master keeps 24 of its 32 bits, both Adam moments and the running average's distance from the master are bf16. With
`train.compact_checkpoints` a run rounds its own state so at every save: what continues in memory and what is read back
later are the same bits, so a resume stays exact. Rounding a moment once an epoch changes its step sizes by at most
0.2 % (the squared one; the other forgets within some ten steps), and a master by less than 1 part in 65 000, a small
part of what bf16 compute sees of it.
"""

from __future__ import annotations

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
        bits = value.float().contiguous().view(torch.int32)
        rounded = torch.where((bits & 0x7FFFFF00) < 0x7F7FFF00, bits + 0x80, bits)  # not the largest: it would overflow
        return rounded.unsqueeze(-1).view(torch.uint8)[..., 1:].contiguous()  # little-endian: the first byte is lowest
    if kind == AVERAGE:
        return (value - decode(MASTER, encode(MASTER, master, master), master)).to(torch.bfloat16)
    return value.to(torch.bfloat16)


def decode(kind: str, stored: Tensor, master: Tensor) -> Tensor:
    """The fp32 tensor again.

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


def rounded(kind: str, value: Tensor, master: Tensor) -> Tensor:
    """What `decode` gives back of `encode`; `master` not rounded."""
    return decode(kind, encode(kind, value, master), decode(MASTER, encode(MASTER, master, master), master))
