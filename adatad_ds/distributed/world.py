"""Ranks and what they tell each other. The only module that calls torch.distributed."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from adatad_ds.config.schema import TrainConfig
from adatad_ds.distributed.hangs import HangWatch
from adatad_ds.errors import ConfigError, RankError, in_words
from adatad_ds.system.launch import complete_environment, gpu_count, local_device

T = TypeVar("T")
# A collective itself gives up later than the watch over it, which says more.
_MARGIN = timedelta(minutes=1)
_STORE_SEC = 10  # for an answer of the rendezvous, which lives in rank 0 or its launcher, when a rank ends
_END = object()


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among all ranks, and the collectives that the trainer needs.

    Works alike with one process. All but `say_once` and `to_host` are collectives: every rank calls them, in one order.
    """

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    watch: HangWatch = field(default_factory=lambda: HangWatch(timeout_sec=TrainConfig.hang_timeout_sec))

    @classmethod
    def join(cls) -> Self:
        """Enter the process group of whatever launched us: deepspeed, torchrun, srun or plain python.

        Raises:
            ConfigError: this rank has no device of its own, or another program has the port where ranks meet.
        """
        complete_environment(os.environ)
        watch = HangWatch(timeout_sec=TrainConfig.hang_timeout_sec)
        gpus = gpu_count(os.environ)
        device = torch.device("cuda", local_device(os.environ, gpus=gpus)) if gpus else torch.device("cpu")
        try:
            if gpus:
                os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")  # entries of the flight recorder
                os.environ["LOCAL_RANK"] = str(device.index)  # where DeepSpeed looks for its device
                torch.cuda.set_device(device)
                dist.init_process_group("nccl", device_id=device, timeout=_patience(watch))
            else:
                dist.init_process_group("gloo", timeout=_patience(watch))
        except dist.DistNetworkError as error:
            if "EADDRINUSE" in str(error):
                raise ConfigError(_port_in_use(os.environ["MASTER_PORT"])) from error
            raise
        world = cls(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            device=device,
            local_rank=int(os.environ["LOCAL_RANK"]),
            watch=watch,
        )
        if world.size > 1:
            watch.start(rank=world.rank, on_gpu=gpus > 0)
        return world

    def allow(self, *, hang_timeout_sec: float) -> None:
        """Set how long a rank may wait for the others; one that waits longer exits, which ends the job."""
        self.watch.timeout_sec = hang_timeout_sec
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # PyTorch < 2.14
        set_timeout(_patience(self.watch), dist.group.WORLD)

    def leave(self) -> None:
        """Leave the group before the interpreter exits; a rank that does not may abort there."""
        self.watch.stop()
        gc.collect()  # cycles first: partitioned parameters keep the group alive
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    @property
    def starts_node(self) -> bool:
        """Whether this rank does what one of each node has to do; with a GPU of its own each, every rank may."""
        return self.local_rank == 0

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """The sum of each number over all ranks, in float64 on every rank."""
        numbers = (torch.as_tensor(value, dtype=torch.float64) for value in values)
        tensor = torch.stack([number.to(self.device, non_blocking=True) for number in numbers])
        self.add_up(tensor)
        return tensor.tolist()

    def max(self, *values: float) -> list[float]:
        """The largest of each number over all ranks, on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            self.watch.beat()
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, item: Any) -> list[Any]:
        """Every rank's picklable object, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        self.watch.beat()
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a tensor on this rank's device by its sum over all ranks."""
        if self.size > 1:
            self.watch.beat()
            dist.all_reduce(tensor)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host. A GPU makes it when the collectives before it are done: here as well a rank may wait."""
        self.watch.beat()
        return tensor.cpu()

    def own_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part, (N / size,), of the sum over all ranks of a tensor (N,); size divides N."""
        if self.size == 1:
            return tensor
        self.watch.beat()
        part = tensor.new_empty(tensor.numel() // self.size)
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # PyTorch < 2.14
        scatter(part, tensor)
        return part

    def _from_main(self, item: T) -> T:
        """Rank 0's picklable object."""
        self.watch.beat()
        items = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]

    def raise_anywhere(self, error: Exception | None) -> None:
        """Raise on every rank what any rank ran into, so that none waits for another.

        Raises:
            RankError: the lowest failing rank's error in words, the same on all ranks; its cause is a rank's own error.
            Exception: with one process, the error itself.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        if not self.max(error is not None)[0]:
            return
        told = self.gather(None if error is None else in_words(error))
        raise RankError(_together(told)) from error

    def attempt(self, action: Callable[[], T]) -> T:
        """Each rank's result of an action that is no collective; if it fails on any rank, it fails on all.

        Raises:
            RankError: what the action raised on some rank; with one process, the error itself.
        """
        result, error = None, None
        try:
            result = action()
        except Exception as caught:  # whatever it is, the others must not wait
            error = caught
        self.raise_anywhere(error)
        return result  # pyright: ignore[reportReturnType]  (an error has been raised by now)

    def together(self, items: Iterable[T]) -> Iterator[T]:
        """Each rank's own items, as many on all; one that cannot be had ends the iteration on all ranks.

        Raises:
            RankError: see `attempt`.
        """
        source = iter(items)
        while (item := self.attempt(lambda: next(source, _END))) is not _END:
            yield item  # pyright: ignore[reportReturnType]

    def on_main(self, action: Callable[[], T]) -> T:
        """Rank 0's result of an action, on every rank; only rank 0 acts.

        Raises:
            RankError: what rank 0 ran into; with one process, the error itself.
        """
        if self.size == 1:
            return action()
        result, error = None, None
        if self.is_main:
            try:
                result = action()
            except Exception as caught:  # whatever it is, the others must not wait
                error = caught
        result, told = self._from_main((result, None if error is None else in_words(error)))
        if told is not None:
            raise RankError(f"rank 0: {told}") from error
        return result  # pyright: ignore[reportReturnType]  (rank 0's)

    def same(self, value: object, *, what: str) -> None:
        """Check that all ranks see the same, by its `repr`: they read it each from its own node's file system.

        Raises:
            ConfigError: some rank sees something else than rank 0; raised on all.
        """
        digest = hashlib.sha256(repr(value).encode()).hexdigest()
        differs = self.size > 1 and self._from_main(digest) != digest
        if self.max(differs)[0]:
            others = [str(rank) for rank, differs in enumerate(self.gather(differs)) if differs]
            raise ConfigError(
                f"rank {', '.join(others)} sees different {what} from rank 0: are the files the same on all nodes, and "
                "is none being written?"
            )

    def say_once(self, message: str, say: Callable[[str], None], *, of_all: bool) -> None:
        """Say on one rank what several may have to say; return when it is said. No collective: ranks may fail alone.

        Args:
            message: what to say.
            say: says it.
            of_all: every rank will say it. Rank 0, in which the store lives, waits for the others to hear that it is
                said: a rank that finds no store says it itself.
        """
        if self.size == 1:
            say(message)
            return
        key, claimed = hashlib.sha256(message.encode()).hexdigest(), []

        def claim() -> None:
            store = dist.distributed_c10d._get_default_store()
            claimed.append(store.add(f"{key}/claims", 1) == 1)
            if not claimed[0]:
                store.wait([f"{key}/said"], timedelta(seconds=_STORE_SEC))

        def confirm() -> None:
            dist.distributed_c10d._get_default_store().set(f"{key}/said", "yes")

        def until_all_came() -> None:
            store = dist.distributed_c10d._get_default_store()
            while store.add(f"{key}/claims", 0) < self.size:
                time.sleep(0.05)

        _in_time(claim)
        if claimed in ([], [True]):  # no answer: rank 0 is gone
            say(message)
            _in_time(confirm)
        if of_all and self.is_main:
            _in_time(until_all_came)

    def groups(self, size: int) -> RankGroup:
        """This rank's group where consecutive `size` ranks form one each. A collective of its members alone."""
        first = self.rank - self.rank % size
        ranks = list(range(first, first + size))
        handle = dist.new_group(ranks, timeout=_patience(self.watch), use_local_synchronization=True)
        return RankGroup(ranks=ranks, rank=self.rank - first, handle=handle)


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """Some of the ranks, in order. Every method is a collective among them.

    Attributes:
        ranks: their places in the world.
        rank: this one's place in the group.
        handle: the process group.
    """

    ranks: list[int]
    rank: int
    handle: Any

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)

    def gather(self, item: Any) -> list[Any]:
        """Every member's picklable object, in order."""
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.handle)
        return items

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the group, in place."""
        dist.all_reduce(tensor, group=self.handle)
        return tensor

    def exchange(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Send `first` to the member before and `last` to the one after; receive theirs, zeros at both ends.

        Returns:
            The `last` of the member before, shaped as `first`; the `first` of the one after, shaped as `last`.
        """
        before, after = torch.zeros_like(first), torch.zeros_like(last)
        transfers = []
        for there, sent, received in ((self.rank - 1, first, before), (self.rank + 1, last, after)):
            if 0 <= there < self.size:
                peer = self.ranks[there]
                transfers.append(dist.P2POp(dist.isend, sent.contiguous(), peer, self.handle))
                transfers.append(dist.P2POp(dist.irecv, received, peer, self.handle))
        for work in dist.batch_isend_irecv(transfers) if transfers else ():
            work.wait()
        return before, after


def _together(told: list[str | None]) -> str:
    """The message of all ranks where some have failed: that of the first of them."""
    failed = [rank for rank, message in enumerate(told) if message is not None]
    message = told[failed[0]]
    assert message is not None
    if set(told) == {message}:
        return message
    more = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
    return f"rank {failed[0]}{more}: {message}"


def _patience(watch: HangWatch) -> timedelta:
    return timedelta(seconds=watch.timeout_sec) + _MARGIN


def _in_time(action: Callable[[], None]) -> None:
    """Do what may wait for a process that is gone, and give it up after `_STORE_SEC`."""

    def quietly() -> None:
        with suppress(RuntimeError):  # as the store's errors are
            action()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(_STORE_SEC)


def _port_in_use(port: str) -> str:
    return (
        f"another program listens on port {port}, where the ranks were to meet; choose another port: deepspeed "
        "--master_port, torchrun --master-port, or MASTER_PORT in the environment"
    )
