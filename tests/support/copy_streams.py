"""Shared by tests: a stand-in for `torch.cuda` where there is no GPU.

It keeps, for each stream, how much of every other stream's work is certainly done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class Stream:
    def __init__(self, device: torch.device | None = None) -> None:
        self.done: dict[Stream, int] = {self: 0}  # work of each stream that comes before what is queued next here

    def work(self) -> None:
        self.done[self] += 1

    def record_event(self) -> dict[Stream, int]:
        return dict(self.done)

    def wait_event(self, event: dict[Stream, int]) -> None:
        for stream, count in event.items():
            self.done[stream] = max(self.done.get(stream, 0), count)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.done)

    def knows(self, stream: Stream) -> int:
        return self.done.get(stream, 0)


class Runtime:
    """Of a device: the streams, and which one is current."""

    def __init__(self) -> None:
        self.compute = self.current = Stream()
        self.copies: list[Stream] = []

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802 - as in torch.cuda
        self.copies.append(Stream(device))
        return self.copies[-1]

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        stream.work()
        self.current = before
