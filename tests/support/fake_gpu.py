"""Shared by tests: a GPU where there is none, whose tensors have shapes and types but no memory.

PyTorch's FakeTensorMode runs code on them, and raises where devices are mixed. Seen here besides: what makes the host
wait for the GPU, which gets some answer; indices on the GPU into host memory; products of different types. Not seen:
what kernels ask of sizes, alignment and memory, which of them attention takes, and what streams are for.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ModuleT = TypeVar("ModuleT", bound=nn.Module)

PACKAGE = Path(__file__).parents[2] / "adatad_ds"
GPU = torch.device("cuda", 0)
FOUND = 3  # elements that are not zero, wherever they are looked for
STAGED_BYTES = 2**16  # for more that is not page-locked, the host waits
aten = torch.ops.aten
ASKING = (aten._local_scalar_dense, aten.nonzero, aten.bincount)  # for what only the values tell
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class FakeGPU(TorchDispatchMode):
    """Watches what runs inside; FakeTensorMode is around it.

    Attributes:
        waits: what made the host wait, and which function of the package asked for it, with how often.
        launched: operations on the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.launched = Counter[str](), 0
        self._locked: list[Tensor] = []

    def lock(self, tensor: Tensor) -> Tensor:
        """Take a tensor's memory as page-locked."""
        self._locked.append(tensor)
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        operation, named = func.overloadpacket, dict(kwargs or {})
        if operation is torch.ops.prim.device:  # C++ asks, and would look for a GPU's streams in backward passes
            return torch.device("meta") if _on_gpu(args[0]) else args[0].fake_device
        if str(named.get("device")) == "meta":  # as C++ was told
            named["device"] = GPU
        tensors = [each for each in tree_leaves((args, named)) if isinstance(each, Tensor)]
        if any(map(_on_gpu, tensors)):
            self.launched += 1
            self._check(operation, args, tensors)
            if operation in ASKING:
                self._waits(operation)
        if operation is aten.copy_:
            self._copies(args[1], args[0].device, (*args, False)[2])
        if operation is aten._to_copy and "device" in named:
            self._copies(args[0], torch.device(named["device"]), named.get("non_blocking", False))
        if operation in INDEXING:
            args = (args[0], [_found(index) for index in args[1]], *args[2:])
        return self._answer(operation, args, named) if operation in _ANSWERED else func(*args, **named)

    def _answer(self, operation: Any, args: Any, named: dict[str, Any]) -> Any:
        """Of what FakeTensorMode has no answer to."""
        tensor = args[0]
        if operation is aten._pin_memory:
            return self.lock(tensor.clone())
        if operation is aten._local_scalar_dense:  # nothing is left to do, and nothing is divided by zero
            return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1
        if operation is aten.nonzero:
            return tensor.new_empty((FOUND, tensor.dim()), dtype=torch.int64)
        return tensor.new_empty(named.get("minlength", args[-1]), dtype=torch.int64)  # bincount

    def _check(self, operation: Any, args: Any, tensors: list[Tensor]) -> None:
        """Raise where a GPU would, and FakeTensorMode does not."""
        if operation in PRODUCTS and len({each.dtype for each in tensors}) > 1:
            raise RuntimeError(f"{operation} of different types")
        together = operation.__name__.startswith("_foreach") and operation is not aten._foreach_copy_
        if together and len({each.device for each in tensors}) > 1:
            raise RuntimeError(f"{operation} on different devices")
        for index in (each for each in args[1] if each is not None) if operation in INDEXING else ():
            if _on_gpu(index) > _on_gpu(args[0]):
                raise RuntimeError("the index of a tensor in host memory is on the GPU")
            if _on_gpu(index) < _on_gpu(args[0]) or index.dtype == torch.bool:
                self._waits(operation)

    def _copies(self, source: Tensor, target: torch.device, non_blocking: bool) -> None:
        if _on_gpu(source) == (target.type == "cuda"):
            return
        host = {tensor.untyped_storage()._cdata for tensor in self._locked}
        staged = not _on_gpu(source) and source.nbytes <= STAGED_BYTES
        if not non_blocking or not (_on_gpu(source) or staged or source.untyped_storage()._cdata in host):
            self._waits("copy to the host" if _on_gpu(source) else "copy to the GPU")

    def _waits(self, what: Any) -> None:
        frame, where = sys._getframe(), "elsewhere"
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                where = f"{path.relative_to(PACKAGE)} {frame.f_code.co_qualname}"
                break
            frame = frame.f_back
        self.waits[f"{where}: {what}"] += 1


_ANSWERED = (*ASKING, aten._pin_memory)


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """Context in which tensors may be on the GPU; those made outside are in host memory."""
    with (
        patch.object(FakeTensor, "is_cuda", property(_on_gpu)),
        FakeTensorMode(allow_non_fake_inputs=True),
        FakeGPU() as gpu,
    ):
        yield gpu


def on_gpu(model: ModuleT, dtype: torch.dtype = torch.float32) -> ModuleT:
    """A model that was made outside, perhaps on the meta device, on the GPU and with parameters of this type."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.empty(parameter.shape, dtype=dtype, device=GPU)
            module.register_parameter(name, nn.Parameter(values, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU), persistent=False)
    return model


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _found(index: Tensor | None) -> Tensor | None:
    """What an index of one dimension chooses, if it is a mask."""
    if index is None or index.dtype != torch.bool:
        return index
    assert index.dim() == 1
    return index.new_empty(FOUND, dtype=torch.int64)
