"""Access to parameters partitioned by ZeRO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def cast_and_move_rest(model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
    """Cast parameters that ZeRO-3 has not partitioned; move buffers to the device."""
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def held_partition(parameter: Any) -> Tensor:
    """This rank's part of a parameter partitioned by ZeRO-3."""
    return parameter.ds_tensor


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """A parameter's full shape, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def fragment(parameter: Any, state: str | None = None) -> Tensor:
    """This rank's part of a parameter's fp32 master, or of an Adam state, under ZeRO-1 and 2; may be empty."""
    held = parameter._hp_mapping
    return torch.empty(0) if held is None else held.get_hp_fragment(state)


def held_range(parameter: Any, *, rank: int) -> tuple[int, int]:
    """Where this rank's part of a trainable parameter's master begins and ends in the flattened parameter."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3: equal parts, the last ones filled up
        size = parameter.ds_tensor.numel()
        begin = size * rank
        return min(begin, parameter.ds_numel), min(begin + size, parameter.ds_numel)
    held = parameter._hp_mapping
    if held is None:
        return 0, 0
    address = held.lp_fragment_address
    return address.start, address.start + address.numel


def gather_weights(zero: Any, *, by: Callable[..., None]) -> None:
    """Gather the ranks' parts of trainable weights under ZeRO-1 and 2, as after a step. A collective.

    Args:
        zero: DeepSpeed's optimizer.
        by: its function for that, `all_gather_dp_groups`.
    """
    by(
        groups_flat=zero.bit16_groups_flat,
        partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
        dp_process_group=zero.real_dp_process_group,
        start_alignment_factor=zero.nccl_start_alignment_factor,
        allgather_bucket_size=zero.allgather_bucket_size,
    )


def gathered(tensor: Tensor | None) -> Tensor:
    """A tensor that DeepSpeed has gathered for this call alone, in fp32."""
    assert tensor is not None, "DeepSpeed lost a partition of a trainable parameter"
    return tensor.detach().float()
