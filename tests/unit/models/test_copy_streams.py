"""Copies of stored tensors on streams of their own wait for what they need: counted, since there is no GPU here.

A stand-in for `torch.cuda` keeps, for each stream, how much of every other stream's work is certainly done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from adatad_ds.models.execution.activation_store import CopyStreams, Storage, StoragePolicy

SHAPE = (2, 8, 4, 3)


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


class Streams(CopyStreams):
    """Without an allocator to tell."""

    def used(self, values, stream) -> None:
        pass


@pytest.fixture
def machine():
    runtime = Runtime()
    storage = Storage(StoragePolicy(offload=True), streams=Streams(torch.device("cpu"), runtime))
    out, back = runtime.copies
    return runtime, storage, out, back


def test_copies_wait_for_what_they_need(machine):
    runtime, storage, out, back = machine
    addresses = []
    for _ in range(2):
        (stored,) = storage.reserve(1, SHAPE, like=torch.empty(0))
        reads_before = back.done[back]
        values = torch.randn(SHAPE)
        for start, stop in pairwise((0, 3, 8)):
            runtime.compute.work()  # computes the span
            stored.write(start, values[:, start:stop])
            assert out.knows(runtime.compute) == runtime.compute.done[runtime.compute]
            assert out.knows(back) == reads_before  # the buffer's last readers have finished
        written = out.done[out]
        pieces = []
        for piece in stored.read([(0, 2), (2, 7), (7, 8)]):
            assert back.knows(out) == written
            pieces.append(piece.clone())
            assert runtime.compute.knows(back) >= reads_before + len(pieces)
        torch.testing.assert_close(torch.cat(pieces, dim=1), values)
        addresses.append(stored._values.data_ptr())
        del stored
    assert addresses[0] == addresses[1]
    assert back.done[back] == 6


def test_one_direction_does_not_wait_for_the_other(machine):
    """A tensor is written while another one is read: neither stream knows more of the other than it must."""
    _, storage, out, back = machine
    first, second = storage.reserve(2, SHAPE, like=torch.empty(0))
    first.write(0, torch.zeros(SHAPE))
    for index, _ in enumerate(first.read([(0, 4), (4, 8)])):
        second.write(4 * index, torch.zeros(2, 4, 4, 3))
        if index == 0:
            assert out.knows(back) == 1 < back.done[back] == 2  # the second span is on its way already
    assert back.knows(out) == 1 < out.done[out] == 3
