"""Parameters as ZeRO leaves them on a rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def cast_and_move_rest(model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
    """Cast the parameters that ZeRO-3 has not partitioned yet; move the buffers."""
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def held_partition(parameter: Any) -> Tensor:
    """This rank's part of a parameter that ZeRO-3 has partitioned."""
    return parameter.ds_tensor


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """A parameter's sizes on all ranks together, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def fragment(parameter: Any) -> Tensor:
    """This rank's part of a parameter's fp32 master under ZeRO-1 and 2; empty where it has none."""
    held = parameter._hp_mapping
    return torch.empty(0) if held is None else held.hp_fragment


def to_cpu(tensor: Tensor | None) -> Tensor:
    """A copy in fp32 of what DeepSpeed has put together."""
    assert tensor is not None, "DeepSpeed lost a partition of what learns"
    return tensor.detach().float().cpu().clone()
