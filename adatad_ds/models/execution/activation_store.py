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
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Span = tuple[int, int]  # first tubelet, and one past the last

MOST_SOURCES = 2  # spans on the device while they are copied to host memory: one is written, the next one computed


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

    Tensors on the device belong to the computation's stream: their memory comes from it and goes back to it, which is
    why it waits for a copy before the tensor that was copied, or copied to, is let go. `record_stream` instead would
    free memory when the host next looks at a device that it is far ahead of, and hold dozens of spans until then.

    Args:
        device: a GPU.
        runtime: `torch.cuda`.
    """

    def __init__(self, device: torch.device, runtime: Any = torch.cuda) -> None:
        self._device, self._runtime = device, runtime
        self._out, self._in = runtime.Stream(device), runtime.Stream(device)
        self._sources: deque[tuple[Tensor, torch.Event]] = deque()  # on their way to host memory, the oldest first

    def to_host(self, values: Tensor, host: Tensor) -> torch.Event:
        """Copy values that the work queued so far computes; the event after that."""
        self._out.wait_stream(self._runtime.current_stream(self._device))
        with self._runtime.stream(self._out):
            host.copy_(values, non_blocking=True)
        written = self._out.record_event()
        self._sources.append((values, written))
        if len(self._sources) > MOST_SOURCES:
            self.let_go(self._sources[0][1])
        return written

    def let_go(self, written: torch.Event | None = None) -> None:
        """Let the computation wait for the copies to host memory up to this event, and drop what they copy.

        Args:
            written: of a copy; nothing happens if it is waited for already. None: of the last one.
        """
        while self._sources and (written is None or any(event is written for _, event in self._sources)):
            self._runtime.current_stream(self._device).wait_event(self._sources[0][1])
            self._sources.popleft()

    def to_device(self, host: Tensor, written: torch.Event) -> tuple[Tensor, torch.Event]:
        """Copy what was written at that event, and not before the computation has come here.

        Returns:
            The copy, and the event after which it is there, which `arrived` takes before the copy is used or let go.
        """
        values = torch.empty_like(host, device=self._device)  # memory that the computation may still be using
        self._in.wait_stream(self._runtime.current_stream(self._device))
        self._in.wait_event(written)
        with self._runtime.stream(self._in):
            values.copy_(host, non_blocking=True)
        return values, self._in.record_event()

    def arrived(self, read: torch.Event) -> None:
        """Let the computation wait for what was copied to the device at that event."""
        self._runtime.current_stream(self._device).wait_event(read)


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
        if self.streams is not None:
            self.streams.let_go()  # what a pass that failed has left
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
        self._written = streams.to_host(values, own)

    def read(self, spans: Iterable[Span]) -> Iterator[Tensor]:
        """Each span in turn, on the device, while the next one is being copied."""
        streams, written = self._storage.streams, self._written
        if streams is None or written is None:
            for start, stop in spans:
                yield self._values[start:stop].to(self._device).transpose(0, 1)
            return
        streams.let_go(written)  # costs no time: the first span waits for the last write, too
        coming: deque[tuple[Tensor, torch.Event]] = deque()
        try:
            for start, stop in spans:
                coming.append(streams.to_device(self._values[start:stop], written))
                if len(coming) > 1:
                    yield _arrived(streams, *coming.popleft())
            while coming:
                yield _arrived(streams, *coming.popleft())
        finally:  # a span that nobody asked for is let go as well
            for _, read in coming:
                streams.arrived(read)


def _arrived(streams: CopyStreams, values: Tensor, read: torch.Event) -> Tensor:
    streams.arrived(read)
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
