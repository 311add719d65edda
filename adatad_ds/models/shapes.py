"""Models by names and shapes alone, without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device inside."""
    with torch.device("meta"), _NothingDrawn():
        yield


_INITIALISATION = frozenset(  # what normal and truncated normal initialisation call; timm's, too
    (nn.init.normal_, Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_)
)


class _NothingDrawn(TorchFunctionMode):
    """Leaves out normal and truncated normal initialisation of meta tensors, which have no values.

    PyTorch's own way to do nothing there imports torch.compile's packages (torch._dynamo, SymPy, pandas), 2 CPU s, and
    takes longer than building a model's modules.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in _INITIALISATION:
            tensor = named["tensor"] if "tensor" in named else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **named)
