"""A rank's start without what training does not need.

No rank compiles, so none imports what would: PyTorch and DeepSpeed exclude many of their functions from compilation,
and the exclusion alone imports torch._dynamo with inductor, SymPy and pandas, 2 CPU s of each rank's start.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, whose methods are called as they are."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's."""
        inspect.unwrap(torch.optim.AdamW.add_param_group)(self, param_group)

    @torch.no_grad()  # which the wrapper of PyTorch's sees to
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As PyTorch's."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


@contextmanager
def exclusions_left_out() -> Iterator[None]:
    """Functions defined inside stay as they are where their authors exclude them from compilation."""
    lazy, eager = torch._disable_dynamo, torch.compiler.disable
    torch._disable_dynamo = torch.compiler.disable = _unchanged
    try:
        yield
    finally:
        torch._disable_dynamo, torch.compiler.disable = lazy, eager


@contextmanager
def muon_uncompiled(compiler: Any) -> Iterator[None]:
    """DeepSpeed asks whether the optimizer is Muon, and compiles Muon's kernels for the answer: 1 to 3 s a process.

    Args:
        compiler: the module deepspeed.runtime.compiler.
    """
    compile_ = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        yield
    finally:
        compiler.compile = compile_


@contextmanager
def parameters_unprinted() -> Iterator[None]:
    """DeepSpeed's ZeRO-3 writes every trainable parameter's numbers into a line that it then does not print."""
    shown = nn.Parameter.__repr__
    nn.Parameter.__repr__ = object.__repr__  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        nn.Parameter.__repr__ = shown


def _unchanged(function: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """A decorator of PyTorch's signature that changes nothing."""
    return (lambda decorated: decorated) if function is None else function
