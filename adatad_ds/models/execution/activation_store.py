"""Storage of activations until the backward pass: on the device, in host memory, or in both under a byte budget.

A stored tensor is written once and read span by span, so that only the current spans of one in host memory are on the
device. On a GPU, copies run on their own stream, one span ahead of use, through page-locked memory.

B windows, T tubelets, S positions, C channels.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Span = tuple[int, int]  # first tubelet, and one past the last


class Stored(Protocol):
    """A stored tensor (B, T, S, C)."""

    @property
    def steps(self) -> int:
        """T."""
        ...

    def write(self, start: int, values: Tensor) -> None:
        """Put (B, t, S, C) at tubelet `start`."""
        ...

    def read(self, spans: Iterable[Span]) -> Iterator[Tensor]:
        """Each span in turn, (B, t, S, C) on the device; read-only."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoragePolicy:
    """Which stored tensors go to host memory: like DeepSpeed's `cpu_checkpointing`, with a budget.

    Attributes:
        offload: store in host memory what exceeds `device_bytes`.
        device_bytes: stored tensors kept on the device all the same: the last ones, which are needed first.
    """

    offload: bool = False
    device_bytes: int = 0

    def on_device(self, count: int, tensor_bytes: int) -> int:
        """How many of `count` tensors of `tensor_bytes` each stay on the device."""
        return min(count, self.device_bytes // tensor_bytes) if self.offload else count


class Storage:
    """Allocates stored tensors; keeps the host buffers and the copy stream from step to step."""

    def __init__(self, policy: StoragePolicy) -> None:
        self.policy = policy
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}  # host buffers by size and type, flat
        self._stream: torch.cuda.Stream | None = None

    def reserve(self, count: int, shape: tuple[int, ...], *, like: Tensor) -> list[Stored]:
        """Allocate `count` tensors (B, T, S, C) with the type and device of `like`; they are read in reverse order."""
        elements = torch.Size(shape).numel()
        on_device = self.policy.on_device(count, elements * like.element_size())
        if on_device < count and like.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(like.device)
        host = [HostTensor(self._host_buffer(elements, like), shape, self) for _ in range(count - on_device)]
        return [*host, *(DeviceTensor(like.new_empty(shape)) for _ in range(on_device))]

    def give_back(self, buffer: Tensor) -> None:
        """Return a host buffer for reuse, at once: all copies are ordered on one stream."""
        self._free.setdefault((buffer.numel(), buffer.dtype), []).append(buffer)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Run on the copy stream, after the work queued so far on the compute stream."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def mark_used(self, tensor: Tensor, *, by_copies: bool) -> None:
        """Tell the allocator that the other stream uses this tensor."""
        if self._stream is not None:
            tensor.record_stream(self._stream if by_copies else torch.cuda.current_stream(tensor.device))

    def copied(self) -> torch.Event | None:
        """Event after the copies queued so far."""
        return None if self._stream is None else self._stream.record_event()  # pyright: ignore[reportReturnType]

    def _host_buffer(self, elements: int, like: Tensor) -> Tensor:
        if free := self._free.get((elements, like.dtype)):
            return free.pop()
        buffer = torch.empty(elements, dtype=like.dtype)
        if like.device.type == "cuda" and not lock_pages(buffer, torch.cuda.cudart()):
            with contextlib.suppress(RuntimeError):  # clear the error, which the next launch would report
                torch.zeros(1, device=like.device)
        return buffer


class DeviceTensor:
    """A stored tensor on the device."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    @property
    def steps(self) -> int:
        """T."""
        return self._values.shape[1]

    def write(self, start: int, values: Tensor) -> None:
        """Put (B, t, S, C) at tubelet `start`."""
        self._values[:, start : start + values.shape[1]] = values

    def read(self, spans: Iterable[Span]) -> Iterator[Tensor]:
        """Views of the spans, in turn."""
        for start, stop in spans:
            yield self._values[:, start:stop]


class HostTensor:
    """A stored tensor in host memory, time first, so that a span is contiguous; deletion returns the buffer."""

    def __init__(self, buffer: Tensor, shape: tuple[int, ...], storage: Storage) -> None:
        windows, steps, *rest = shape
        self._buffer = buffer
        self._values = buffer.view(steps, windows, *rest)
        self._storage = storage
        self._device = torch.device("cpu")

    def __del__(self) -> None:
        """Return the buffer."""
        self._storage.give_back(self._buffer)

    @property
    def steps(self) -> int:
        """T."""
        return self._values.shape[0]

    def write(self, start: int, values: Tensor) -> None:
        """Put (B, t, S, C) at tubelet `start`, in the background."""
        self._device = values.device
        values = values.transpose(0, 1).contiguous()
        with self._storage.aside():
            self._values[start : start + len(values)].copy_(values, non_blocking=True)
            self._storage.mark_used(values, by_copies=True)

    def read(self, spans: Iterable[Span]) -> Iterator[Tensor]:
        """Each span in turn, on the device, while the next one is being copied."""
        ahead = None
        for span in spans:
            coming = self._fetch(span)
            if ahead is not None:
                yield self._arrived(*ahead)
            ahead = coming
        if ahead is not None:
            yield self._arrived(*ahead)

    def _fetch(self, span: Span) -> tuple[Tensor, torch.Event | None]:
        start, stop = span
        with self._storage.aside():
            values = self._values[start:stop].to(self._device, non_blocking=True)
            return values, self._storage.copied()

    def _arrived(self, values: Tensor, copied: torch.Event | None) -> Tensor:
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)  # pyright: ignore[reportArgumentType]
            self._storage.mark_used(values, by_copies=False)
        return values.transpose(0, 1)


def lock_pages(buffer: Tensor, runtime: Any) -> bool:
    """Page-lock a buffer in place: torch's pinned memory comes in powers of two, up to twice the requested size.

    If the system refuses (`ulimit -l`, a container's limit), the buffer stays pageable, with a warning: copies are
    slower and computation waits for them, but they are correct. The lock ends with the buffer.

    Args:
        buffer: in host memory.
        runtime: `torch.cuda.cudart()`.

    Returns:
        Whether it is now locked.
    """
    storage = buffer.untyped_storage()
    status = runtime.cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0)
    if int(status) != 0:
        warnings.warn(
            f"host memory could not be page-locked (CUDA error {int(status)}); "  # no size: one warning for all buffers
            "copies of stored activations will be slow. Raise the limit (ulimit -l), or keep them on the device with "
            "cpu_checkpointing: false in the DeepSpeed config",
            stacklevel=2,
        )
        return False
    weakref.finalize(storage, runtime.cudaHostUnregister, storage.data_ptr())
    return True
