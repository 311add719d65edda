"""Gradients under ZeRO-1 and 2, a group of parameters at a time.

DeepSpeed takes them one by one: it copies each gradient into a bucket as it comes and from there into a partition, adds
the one of the micro batch before, looks through it for what is not finite and takes its norm. A detector has hundreds
of small trainable tensors, and a GPU takes longer to be told of an operation than for it. So here a group's gradients
are added up in one flat tensor, as its weights lie in one, after each backward pass; a step reduces it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adatad_ds.distributed.world import World

MEASURED_AT_ONCE = 2**18  # numbers; a CPU adds them up in fp32, and would be off by 1e-3 for 28 M


class Reduced(list[Tensor]):
    """This rank's part of a group's gradients, the mean over all ranks, as DeepSpeed expects it of its compiler."""

    def __init__(self, flat_partition: Tensor) -> None:
        super().__init__([flat_partition])
        self.flat_partition = flat_partition


class FlatGradients:
    """Adds up, reduces and measures gradients in DeepSpeed's place; its optimizer finds them where it expects them.

    Between the micro batches of a step a rank holds the sum of all its gradients, in stage 2, too.

    Args:
        engine: DeepSpeed's, of stage 1 or 2, with the optimizer's states on the device.
        world: the ranks.
    """

    def __init__(self, engine: Any, *, world: World) -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._world = world
        self._sums: list[Tensor] = []  # of each group; none before a step's first backward pass
        engine.enable_backward_allreduce = False
        for hook in self._zero._grad_acc_hooks:
            hook.remove()
        self._zero._grad_acc_hooks.clear()
        self._zero._update_model_bit16_weights = lambda index: None  # weights are views of their flat ones already
        if self._zero.compute_grad_norm:
            self._zero.scaled_global_norm = self._norm
            self._zero.check_overflow = lambda partition_gradients=True: None  # the norm tells

    def add(self) -> None:
        """Take over what a backward pass left at the parameters; reduce it if it was a step's last one.

        A collective then.
        """
        first = not self._sums
        if first:
            kept_in = self._zero.gradient_accumulation_dtype
            self._sums = [torch.zeros_like(flat, dtype=kept_in) for flat in self._zero.bit16_groups_flat]
        groups = zip(self._zero.bit16_groups, self._zero.bit16_groups_flat, self._sums, strict=True)
        for parameters, weights, total in groups:
            _take_over(parameters, weights, total, first=first)
        if self._engine.is_gradient_accumulation_boundary():
            for index, total in enumerate(self._sums):
                mean = total.to(self._engine.communication_data_type).div_(self._world.size)
                self._zero.averaged_gradients[index] = Reduced(self._world.own_sum(mean))
            self._sums = []

    def _norm(self, norm_type: int = 2) -> Tensor:
        """The norm of all gradients, times fp16's loss scale; infinite where it is not finite, as in DeepSpeed.

        On the host: DeepSpeed looks at it for each group, and waits for the device only once so.
        """
        assert norm_type == 2
        reduced = [self._zero.averaged_gradients[index].flat_partition for index in range(len(self._zero.bit16_groups))]
        parts = [part for flat in reduced for part in flat.split(MEASURED_AT_ONCE)]
        squares = torch.stack(torch._foreach_norm(parts, 2, torch.float32)).double().square().sum()
        self._world.add_up(squares)
        norm = self._world.to_host(squares.sqrt().float())
        return torch.where(norm.isfinite(), norm, torch.inf)


def _take_over(parameters: Sequence[nn.Parameter], weights: Tensor, total: Tensor, *, first: bool) -> None:
    """Add gradients to a group's sum, where the parameters lie in its flat weights; of the first ones it is made."""
    learned = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not learned:
        return
    places = [
        total.as_strided(each.shape, each.stride(), each.storage_offset() - weights.storage_offset())
        for each, _ in learned
    ]
    (torch._foreach_copy_ if first else torch._foreach_add_)(places, [gradient for _, gradient in learned])
    for parameter, _ in learned:
        parameter.grad = None
