"""Bytes of the tensors that code creates, counted as they come and go; on the meta device, too."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def live_bytes(run: Callable[[], object]) -> int:
    """Peak bytes of the tensors that `run` creates."""
    with LiveBytes() as count:
        run()
    return count.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are created in it: those `held` now, and their `peak`.

    On the meta device an operator is worked out once for each shape of its inputs: PyTorch decomposes many there in
    Python, which takes most of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.held = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._outputs: dict[Hashable, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if _only_aliases(func):
            return func(*args, **named)
        inputs: list[Tensor] = []
        key = (func, _signature(args, inputs), _signature(tuple(named.items()), inputs))
        for tensor in inputs:
            self._known.add(tensor.untyped_storage())
        if key in self._outputs:
            out = _made_again(self._outputs[key])
        else:
            out = func(*args, **named)
            if not func._schema.is_mutable and all(tensor.is_meta for tensor in inputs):
                shapes = _shapes(out, {id(tensor.untyped_storage()) for tensor in inputs})
                if shapes is not None:
                    self._outputs[key] = shapes
        created: list[Tensor] = []
        _signature(out, created)
        for tensor in created:
            self._count(tensor)
        if func in _CONVOLUTIONS:  # copies what is not contiguous, for as long as it runs
            copies = sum(each.nbytes for each in args if isinstance(each, Tensor) and not each.is_contiguous())
            self.peak = max(self.peak, self.held + copies)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.held -= size


class _Shape(NamedTuple):
    """A tensor on the meta device with a storage of its own."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _signature(value: Any, found: list[Tensor]) -> Hashable:
    """What an operator on the meta device sees of an argument; its tensors are put into `found`."""
    if isinstance(value, Tensor):
        found.append(value)
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple([_signature(each, found) for each in value])
    return type(value), value  # 1, 1.0 and True are equal


@cache
def _only_aliases(func: Any) -> bool:
    """Whether an operator's outputs are views of its inputs, or inputs themselves: nothing new to count."""
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info is not None for each in returns)


def _shapes(out: Any, inputs: set[int]) -> Any:
    """What makes an output again: tensors as `_Shape`. None: it is more than new tensors of their own."""
    each = out if isinstance(out, tuple) else (out,)
    tensors = [tensor for tensor in each if tensor is not None]
    if not all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors):
        return None
    storages = {id(tensor.untyped_storage()) for tensor in tensors}
    made = [None if tensor is None else _Shape(tensor.shape, tensor.stride(), tensor.dtype) for tensor in each]
    again = [_made_again(shape).untyped_storage().nbytes() for shape in made if shape is not None]
    if storages & inputs or len(storages) < len(tensors) or again != [t.untyped_storage().nbytes() for t in tensors]:
        return None
    return tuple(made) if isinstance(out, tuple) else made[0]


def _made_again(shapes: Any) -> Any:
    if isinstance(shapes, _Shape):
        return torch.empty_strided(shapes.size, shapes.stride, dtype=shapes.dtype, device="meta")
    return None if shapes is None else tuple([_made_again(each) for each in shapes])
