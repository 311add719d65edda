"""Ranks and what they tell each other. The only module that calls torch.distributed."""

from __future__ import annotations

import atexit
import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar

import torch
import torch.distributed as dist

from adatad_ds.config import ConfigError

T = TypeVar("T")
# How long a collective waits. Longer than NCCL's own 10 minutes: ranks that wait for one that still reads videos are to
# hear of its error, not to end in their own.
PATIENCE = timedelta(minutes=30)
SILENT_SEC = 20  # that a rank without a word waits to be ended when the program fails
_MARGIN = timedelta(minutes=5)
_SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among all ranks, and the collectives that the trainer needs.

    Works alike with one process. Every method is a collective: all ranks call it, in the same order.
    """

    rank: int
    size: int
    device: torch.device
    patience: timedelta = PATIENCE

    @classmethod
    def join(cls, *, worker_timeout_sec: float = 0) -> Self:
        """Enter the process group of whatever launched us: deepspeed, torchrun, srun or plain python.

        Args:
            worker_timeout_sec: how long a rank may wait for its videos; the others wait longer for it.

        Raises:
            ConfigError: this rank has no device of its own.
        """
        patience = max(PATIENCE, timedelta(seconds=worker_timeout_sec) + _MARGIN)
        complete_environment(os.environ)
        if gpus := gpu_count(os.environ):
            device = torch.device("cuda", local_device(os.environ, gpus=gpus))
            os.environ["LOCAL_RANK"] = str(device.index)  # where DeepSpeed looks for its device
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device, timeout=patience)
        else:
            device = torch.device("cpu")
            dist.init_process_group("gloo", timeout=patience)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=device, patience=patience)

    def leave(self) -> None:
        """Leave the group before the interpreter exits; a rank that does not may abort there.

        So it may where something still holds on to the group, as what DeepSpeed has partitioned does, in cycles.
        """
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """The sum of each number over all ranks, in float64 on every rank."""
        tensor = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def max(self, *values: float) -> list[float]:
        """The largest of each number over all ranks, on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, item: Any) -> list[Any]:
        """Every rank's picklable object, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank what any rank ran into, so that none waits for another.

        Raises:
            Exception: the lowest failing rank's error (its own on that rank).
        """
        errors = self.gather(None if error is None else (type(error), str(error)))
        if error is not None:
            raise error
        for rank, other in enumerate(errors):
            if other is not None:
                kind, message = other
                raise kind(message if self.size == 1 else f"{message} (rank {rank})")

    def attempt(self, action: Callable[[], T]) -> T:
        """Each rank's result of an action that is no collective; if it fails on any rank, it fails on all.

        Raises:
            Exception: what the action raised, here or on the lowest failing rank.
        """
        result, error = None, None
        try:
            result = action()
        except Exception as caught:  # whatever it is, the others must not wait
            error = caught
        self.agree(error)
        return result  # pyright: ignore[reportReturnType]  (an error has been raised by now)

    def on_main(self, action: Callable[[], T]) -> T:
        """Rank 0's result of an action, on every rank; only rank 0 acts.

        Raises:
            Exception: what rank 0 ran into.
        """
        return self.gather(self.attempt(lambda: action() if self.is_main else None))[0]

    def groups(self, size: int) -> RankGroup:
        """This rank's group where consecutive `size` ranks form one each. A collective."""
        own = None
        for first in range(0, self.size, size):
            ranks = list(range(first, first + size))
            group = dist.new_group(ranks, timeout=self.patience)  # every rank makes all of them
            if self.rank in ranks:
                own = RankGroup(ranks=ranks, rank=self.rank - first, handle=group)
        assert own is not None, "the groups leave out a rank"
        return own


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
        """How many they are."""
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


def report_error(error: Exception) -> None:
    """Print what ends this program, once for all ranks.

    The first rank that exits has its launcher end the others, so the silent ones wait until rank 0 must have spoken.
    """
    if speaks():
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(SILENT_SEC)


def end_process(code: int) -> NoReturn:
    """End this process with an exit code; one of several ranks does not tear down its interpreter.

    DeepSpeed's hooks keep partitioned parameters alive, these their process group, and that its threads in gloo: to
    take the interpreter away beneath them aborts a rank that has done all its work, once in some hundred runs. Exit
    functions are run and output is flushed.
    """
    if launched_ranks() == 1:  # nothing to talk about; and a profiler around it still writes its figures
        sys.exit(code)
    atexit._run_exitfuncs()  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def complete_environment(environment: MutableMapping[str, str]) -> int:
    """Fill in the rendezvous variables that the launcher left out; return the local rank.

    srun's variables are mapped; with no launcher at all this is a world of one.
    """
    if "RANK" not in environment and _in_slurm_step(environment):
        environment.update({name: environment[slurm_name] for name, slurm_name in _SLURM_NAMES.items()})
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        environment.setdefault(name, value)
    if "MASTER_PORT" not in environment:
        environment["MASTER_PORT"] = str(_free_port())
    return int(environment["LOCAL_RANK"])


def gpu_count(environment: Mapping[str, str] = os.environ) -> int:
    """GPUs that this process may use: none under `DS_ACCELERATOR=cpu`, whatever the machine has."""
    return 0 if environment.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()


def local_device(environment: Mapping[str, str], *, gpus: int) -> int:
    """Index of this rank's own device among the `gpus` that it sees.

    That is its local rank; but where Slurm has bound a GPU to each task (`--gpus-per-task=1`), a rank sees no other.

    Raises:
        ConfigError: there are fewer devices than local ranks.
    """
    local_rank = int(environment["LOCAL_RANK"])
    if local_rank < gpus:
        return local_rank
    if gpus == 1 and _is_srun_rank(environment) and _slurm_binds_gpus(environment):
        return 0
    raise ConfigError(
        f"local rank {local_rank} has no GPU of its own: this process sees {gpus} "
        f"(CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', 'not set')}); start at most {gpus} ranks a "
        "node, or set DS_ACCELERATOR=cpu to train on the CPU"
    )


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints the errors of a run that never starts: it will be rank 0."""
    name = "SLURM_PROCID" if _in_slurm_step(environment) and "RANK" not in environment else "RANK"
    return environment.get(name, "0") == "0"


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes the launcher has started, without joining them."""
    name = "SLURM_NTASKS" if _in_slurm_step(environment) and "WORLD_SIZE" not in environment else "WORLD_SIZE"
    return int(environment.get(name, "1"))


def split_batch(*, global_batch: int, data_ranks: int, micro_batch: int | None) -> tuple[int, int]:
    """How a global batch is run: (windows a rank and forward pass, forward passes a step).

    Raises:
        ConfigError: the batch cannot be split evenly; the message says what would fit.
    """
    if global_batch % data_ranks:
        fitting = [ranks for ranks in range(1, global_batch + 1) if global_batch % ranks == 0]
        raise ConfigError(
            f"train.global_batch={global_batch} windows cannot be spread evenly over {data_ranks} ranks; "
            f"use {', '.join(map(str, fitting))} ranks, or --set "
            f"train.global_batch={_next_multiple(global_batch, data_ranks)}"
        )
    share = global_batch // data_ranks
    micro = micro_batch or share
    if share % micro:
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        raise ConfigError(
            f"train.micro_batch={micro} does not divide the {share} windows that each of {data_ranks} ranks has of "
            f"train.global_batch={global_batch}; use {', '.join(map(str, fitting))}"
        )
    return micro, share // micro


def _next_multiple(number: int, step: int) -> int:
    return -(-number // step) * step


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    return all(name in environment for name in _SLURM_NAMES.values()) and "SLURM_STEP_ID" in environment


def _is_srun_rank(environment: Mapping[str, str]) -> bool:
    """Whether srun started this very rank, rather than a launcher that started it and others in one task."""
    return _in_slurm_step(environment) and all(
        environment.get(name, environment[slurm_name]) == environment[slurm_name]
        for name, slurm_name in _SLURM_NAMES.items()
    )


def _slurm_binds_gpus(environment: Mapping[str, str]) -> bool:
    """Whether each task has GPUs of its own: a bind may be `none`, and SLURM_TRES_PER_TASK may name CPUs only."""
    bind = environment.get("SLURM_GPU_BIND", "")
    return (
        "SLURM_GPUS_PER_TASK" in environment
        or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
        or bind.removeprefix("verbose,").startswith(("single:", "per_task:"))
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
