"""PyTorch's AdamW without what prepares it for torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, for optimizers that nobody compiles.

    PyTorch wraps `add_param_group` and `step` for torch.compile, and the wrappers import torch._dynamo with inductor,
    SymPy and pandas: 2 CPU s of each rank's start. What they wrap is called here as it is, without gradients.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's."""
        inspect.unwrap(torch.optim.AdamW.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As PyTorch's."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
