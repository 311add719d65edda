"""Copies of stored tensors on streams of their own wait for what they need: counted, since there is no GPU here."""

from __future__ import annotations

import weakref
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adatad_ds.models.execution.activation_store import MOST_SOURCES, CopyStreams, Storage, StoragePolicy
from tests.support.copy_streams import Runtime, Stream

SHAPE = (2, 8, 4, 3)


class Memory(TorchDispatchMode):
    """Of tensors that are copied or copied to: for each whose memory was freed, the copies certainly done by then.

    The computation frees memory for its own next work, and made it: what is made while another stream is current would
    be that one's.
    """

    def __init__(self, runtime: Runtime, copies: Stream) -> None:
        super().__init__()
        self._runtime, self._copies = runtime, copies
        self.made, self.freed = 0, list[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("clone", "empty_like"):
            assert self._runtime.current is self._runtime.compute
            self.made += 1
            weakref.finalize(result.untyped_storage(), self._free)
        return result

    def _free(self) -> None:
        self.freed.append(self._runtime.compute.knows(self._copies))


@pytest.fixture
def machine():
    runtime = Runtime()
    storage = Storage(StoragePolicy(offload=True), streams=CopyStreams(torch.device("cpu"), runtime))
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


@pytest.mark.parametrize("windows", [1, 2])  # of one, the given tensor itself is copied; of two, they change places
def test_what_is_written_is_freed_once_it_is_copied(machine, windows: int):
    """Few spans wait for that, and the first reader waits for all that were written to its tensor."""
    runtime, storage, out, _ = machine
    stored, later = storage.reserve(2, (windows, 8, 4, 3), like=torch.empty(0))
    with Memory(runtime, out) as memory:
        for number, start in enumerate(range(0, 8, 2), 1):
            values = torch.zeros(windows, 2, 4, 3)
            stored.write(start, values.clone() if windows == 1 else values)
            assert memory.made == number
            assert memory.freed == list(range(1, number - MOST_SOURCES + 1))
            assert runtime.compute.knows(out) == max(0, number - MOST_SOURCES)
        next(stored.read([(0, 8)]))
        assert memory.freed[:4] == [1, 2, 3, 4]
        later.write(0, torch.zeros(windows, 2, 4, 3).clone())
        for _ in stored.read([(0, 4), (4, 8)]):
            assert runtime.compute.knows(out) == 4  # nobody needs what `later` writes


def test_spans_that_nobody_asks_for_are_freed_once_they_are_copied(machine):
    """A reader that stops early, as where an error ends a pass, has the next span on its way."""
    runtime, storage, _, back = machine
    (stored,) = storage.reserve(1, SHAPE, like=torch.empty(0))
    stored.write(0, torch.zeros(SHAPE))
    with Memory(runtime, back) as memory:
        reader = stored.read([(0, 3), (3, 6), (6, 8)])
        next(reader)
        assert (memory.made, memory.freed) == (2, [1])
        reader.close()
    assert memory.freed == [1, 2]
    assert runtime.compute.knows(back) == back.done[back] == 2  # so that the host's memory may be written again


def test_a_pass_that_failed_leaves_nothing(machine):
    runtime, storage, out, _ = machine
    (stored,) = storage.reserve(1, SHAPE, like=torch.empty(0))
    with Memory(runtime, out) as memory:
        stored.write(0, torch.zeros(SHAPE))
        del stored
        assert memory.freed == []
        storage.reserve(1, SHAPE, like=torch.empty(0))
        assert memory.freed == [1]
