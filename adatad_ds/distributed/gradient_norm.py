"""The norm of all gradients in a few operations, where DeepSpeed's ZeRO-1 and 2 take a dozen for each.

They look through each gradient for what is not finite, then take each one's norm. A detector has hundreds of small
trainable tensors, and a GPU takes longer to be told of an operation than for it. The norm alone tells both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def measure_at_once(zero: Any, *, comm: Any) -> None:
    """Have DeepSpeed's optimizer of stage 1 or 2 measure its gradients so, unless they are offloaded or not measured.

    As in DeepSpeed, a norm that is not finite is infinite, and the step is skipped.

    Args:
        zero: a DeepSpeedZeroOptimizer.
        comm: the module deepspeed.comm.
    """
    if zero.cpu_offload or not zero.compute_grad_norm:
        return

    def norm(norm_type: int = 2) -> Tensor:
        assert norm_type == 2
        own = [gradient for index in range(len(zero.bit16_groups)) for gradient in zero.averaged_gradients[index]]
        squares = torch.stack(torch._foreach_norm(own, 2, torch.float32)).double().square().sum().float()
        comm.all_reduce(squares, op=comm.ReduceOp.SUM, group=zero.dp_process_group)
        total = squares.sqrt()
        return torch.where(total.isfinite(), total, torch.inf)

    def nothing_looked_through(partition_gradients: bool = True) -> None:
        """`norm` tells."""

    zero.scaled_global_norm = norm
    zero.check_overflow = nothing_looked_through
