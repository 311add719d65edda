"""Access to parameters partitioned by ZeRO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adatad_ds.distributed.world import World

GATHERED_AT_ONCE = 2**26  # numbers of each kind; what a GPU can spare, 256 MB


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


def bytes_by_kind(model: nn.Module, states: Mapping[str, Sequence[Tensor]]) -> dict[str, int]:
    """This rank's bytes of a model's frozen and trainable weights, partitioned or not, and of each kind of `states`."""
    kinds: dict[str, list[Tensor]] = {"frozen_weights": [], "trainable_weights": []}
    for parameter in model.parameters():
        kind = "trainable_weights" if parameter.requires_grad else "frozen_weights"
        kinds[kind].append(held_partition(parameter) if hasattr(parameter, "ds_id") else parameter)
    return {kind: sum(each.nbytes for each in held) for kind, held in {**kinds, **states}.items()}


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """A parameter's full shape, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def fragment(parameter: Any, state: str | None) -> Tensor:
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


def gathered(
    parameters: Mapping[str, nn.Parameter],
    *,
    kinds: Sequence[str],
    part: Callable[[nn.Parameter, str], Tensor],
    world: World,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Trainable parameters' names and their full fp32 tensors by kind, on every rank. A collective.

    Args:
        parameters: by name.
        kinds: masters, Adam states.
        part: this rank's flat part of a parameter's master or state; may be filled up.
        world: the ranks.
    """
    for names in _batches({name: math.prod(whole_shape(parameter)) for name, parameter in parameters.items()}):
        batch = [parameters[name] for name in names]
        shapes = [whole_shape(parameter) for parameter in batch]
        sizes = [math.prod(shape) for shape in shapes]
        held = [held_range(parameter, rank=world.rank) for parameter in batch]
        states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for kind in kinds:
            flat = torch.zeros(sum(sizes), device=world.device)
            wholes = flat.split(sizes)
            for parameter, whole, (begin, end) in zip(batch, wholes, held, strict=True):
                whole[begin:end] = part(parameter, kind)[: end - begin].detach()
            world.add_up(flat)  # elsewhere than in a rank's own parts are zeros
            for state, whole, shape in zip(states.values(), wholes, shapes, strict=True):
                state[kind] = whole.view(shape)
        yield from states.items()


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in their order, as many at a time as are gathered at once; at least one."""
    batch: list[str] = []
    total = 0
    for name, size in sizes.items():
        if batch and total + size > GATHERED_AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch
