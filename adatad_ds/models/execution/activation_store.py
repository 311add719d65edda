"""Storage of activations until the backward pass: on the device, in host memory, or in both under a byte budget.

A stored tensor is written once and read span by span, so that only the current spans of one in host memory are on the
device. On a GPU, copies run on two streams of their own, since the bus carries both directions at once, one span ahead
of use, through page-locked memory.

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


class CopyStreams:
    """Two streams beside the computation: one for copies to host memory, one for those back.

    Args:
        device: a GPU.
        runtime: `torch.cuda`.
    """

    def __init__(self, device: torch.device, runtime: Any = torch.cuda) -> None:
        self._device, self._runtime = device, runtime
        self._out, self._in = runtime.Stream(device), runtime.Stream(device)

    @contextlib.contextmanager
    def to_host(self, values: Tensor) -> Iterator[None]:
        """Copy values that the work queued so far computes."""
        self._out.wait_stream(self._runtime.current_stream(self._device))
        with self._runtime.stream(self._out):
            yield
        self.used(values, self._out)

    def written(self) -> torch.Event:
        """Event after the copies to host memory so far."""
        return self._out.record_event()

    @contextlib.contextmanager
    def to_device(self, written: torch.Event) -> Iterator[None]:
        """Copy what was written at that event, and not before the computation has come here."""
        self._in.wait_stream(self._runtime.current_stream(self._device))
        self._in.wait_event(written)
        with self._runtime.stream(self._in):
            yield

    def read(self) -> torch.Event:
        """Event after the copies to the device so far."""
        return self._in.record_event()

    def arrived(self, values: Tensor, read: torch.Event) -> None:
        """Let the computation wait for values that were copied at that event."""
        current = self._runtime.current_stream(self._device)
        current.wait_event(read)
        self.used(values, current)

    def used(self, values: Tensor, stream: Any) -> None:
        """Tell the allocator that a stream uses this tensor, which another one allocated."""
        values.record_stream(stream)


class Storage:
    """Allocates stored tensors; keeps the host buffers and the copy streams from step to step.

    Args:
        policy: where tensors are stored.
        streams: for copies; None: those of the first GPU whose tensors go to host memory.
    """

    def __init__(self, policy: StoragePolicy, *, streams: CopyStreams | None = None) -> None:
        self.policy, self.streams = policy, streams
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}  # host buffers by size and type, flat

    def reserve(self, count: int, shape: tuple[int, ...], *, like: Tensor) -> list[Stored]:
        """Allocate `count` tensors (B, T, S, C) with the type and device of `like`; they are read in reverse order."""
        elements = torch.Size(shape).numel()
        on_device = self.policy.on_device(count, elements * like.element_size())
        if on_device < count and like.device.type == "cuda" and self.streams is None:
            self.streams = CopyStreams(like.device)
        host = [HostTensor(self._host_buffer(elements, like), shape, self) for _ in range(count - on_device)]
        return [*host, *(DeviceTensor(like.new_empty(shape)) for _ in range(on_device))]

    def give_back(self, buffer: Tensor) -> None:
        """Return a host buffer for reuse, at once: a write waits for the computation, which waited for all reads."""
        self._free.setdefault((buffer.numel(), buffer.dtype), []).append(buffer)

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
        self._written: torch.Event | None = None

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
        values, streams = values.transpose(0, 1).contiguous(), self._storage.streams
        own = self._values[start : start + len(values)]
        if streams is None:
            own.copy_(values)
            return
        with streams.to_host(values):
            own.copy_(values, non_blocking=True)
        self._written = streams.written()

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
        streams = self._storage.streams
        if streams is None or self._written is None:
            return self._values[start:stop].to(self._device), None
        with streams.to_device(self._written):
            values = self._values[start:stop].to(self._device, non_blocking=True)
        return values, streams.read()

    def _arrived(self, values: Tensor, read: torch.Event | None) -> Tensor:
        if read is not None and self._storage.streams is not None:
            self._storage.streams.arrived(values, read)
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
