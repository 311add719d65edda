"""Samples of each rank and their order, and the worker processes that load them.

A global batch is the same set of samples, however it is split over data ranks, micro batches and accumulation.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.video_dataset import SampleKey
from adatad_ds.data.worker_process import WorkerContext, start_worker
from adatad_ds.errors import ConfigError, DataError

PRELOADED = ["torch", "adatad_ds.data.window_dataset", "adatad_ds.data.clip_dataset"]
SHARED_MEMORY = Path("/dev/shm")
LOOK_AFTER_WORKERS_SEC = 5.0  # between checks that workers are alive, while waiting for a batch

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class Samples(Protocol[BatchT_co]):
    """A dataset: samples by key, None for padding, and their collation into a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey | None) -> Any: ...

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample's frames."""
        ...

    @property
    def videos(self) -> Sequence[Any]:
        """The videos that samples come from, with their annotations."""
        ...

    @property
    def collate(self) -> Callable[[Sequence[Any]], BatchT_co]:
        """Collation of samples into a batch; a function that worker processes can import."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """One rank's part of the global batches of every epoch.

    Attributes:
        num_samples: samples per epoch.
        global_batch: samples per optimizer step, over all ranks.
        data_rank: this rank among `data_ranks`.
        data_ranks: number of ranks that read different samples.
        micro_batch: samples per forward pass on one rank.
        seed: seed of the order of samples.

    Raises:
        ConfigError: the global batch is not divisible, or larger than an epoch.
    """

    num_samples: int
    global_batch: int
    data_rank: int
    data_ranks: int
    micro_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.global_batch % (self.data_ranks * self.micro_batch):
            raise ConfigError(
                f"train.global_batch={self.global_batch} is not a multiple of {self.data_ranks} data ranks x "
                f"train.micro_batch={self.micro_batch}; change one of the three"
            )
        if self.num_samples < self.global_batch:
            raise ConfigError(
                f"an epoch has {self.num_samples} samples (training videos x train.repeats), fewer than "
                f"train.global_batch={self.global_batch}; raise train.repeats or lower train.global_batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch; remaining samples are dropped."""
        return self.num_samples // self.global_batch

    def batches(self, epoch: int, start_step: int) -> Iterator[list[SampleKey]]:
        """This rank's micro batches of an epoch, from `start_step` on, as keys of the dataset."""
        order = self._order(epoch)
        share = self.global_batch // self.data_ranks
        for step in range(start_step, self.steps_per_epoch):
            begin = step * self.global_batch + self.data_rank * share
            for first in range(begin, begin + share, self.micro_batch):
                yield [(epoch, int(sample_id)) for sample_id in order[first : first + self.micro_batch]]

    def between(self, start_step: int, stop_step: int) -> StepRange:
        """This rank's micro batches between two steps of the run, across epochs."""
        return StepRange(batches=self, start_step=start_step, stop_step=stop_step)

    def _order(self, epoch: int) -> np.ndarray:
        # The spawn key separates this stream from that of sample 0, which has the same entropy.
        source = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
        return np.random.default_rng(source).permutation(self.num_samples)


@dataclass(frozen=True, kw_only=True)
class StepRange:
    """Micro batches of consecutive optimizer steps; can be iterated repeatedly, and has a length."""

    batches: TrainBatches
    start_step: int
    stop_step: int

    def __iter__(self) -> Iterator[list[SampleKey]]:
        source = self.batches
        micro_per_step = source.global_batch // (source.data_ranks * source.micro_batch)
        step = self.start_step
        while step < self.stop_step:
            epoch, inside_epoch = divmod(step, source.steps_per_epoch)
            steps = min(source.steps_per_epoch - inside_epoch, self.stop_step - step)
            keys = source.batches(epoch, inside_epoch)
            for _ in range(steps * micro_per_step):
                yield next(keys)
            step += steps

    def __len__(self) -> int:
        source = self.batches
        steps = max(0, self.stop_step - self.start_step)
        return steps * (source.global_batch // (source.data_ranks * source.micro_batch))


def test_shard(num_windows: int, *, batch: int, rank: int, ranks: int) -> list[list[int | None]]:
    """One rank's consecutive part of the test windows, in batches; None is padding.

    All ranks get the same number and sizes of batches, since under ZeRO-3 every forward pass is a collective.
    """
    share = -(-num_windows // ranks)
    ids = [index if index < num_windows else None for index in range(rank * share, (rank + 1) * share)]
    return [ids[first : first + batch] for first in range(0, share, batch)]


def check_shared_memory(*, batch_bytes: int, batches: int, config: DataConfig, folder: Path = SHARED_MEMORY) -> None:
    """Check that the batches that workers hold ready fit into shared memory, through which they come.

    Without room, a worker would be killed in the middle of training (SIGBUS).

    Raises:
        DataError: they do not fit; with the settings that do.
    """
    if not config.workers or not folder.is_dir():
        return
    free_bytes = shutil.disk_usage(folder).free
    ahead = min(config.workers * config.prefetch, batches)
    if ahead * batch_bytes <= free_bytes:
        return
    fitting = free_bytes // batch_bytes
    workers = min(config.workers, fitting)
    fits = f"data.workers={workers}" + (f" --set data.prefetch={fitting // workers}" if workers else "")
    raise DataError(
        f"data.workers={config.workers} x data.prefetch={config.prefetch}: {ahead} batches of "
        f"{batch_bytes / 1e6:.1f} MB need {ahead * batch_bytes / 1e6:.1f} MB of shared memory, and {folder} has "
        f"{free_bytes / 1e6:.1f} MB. "
        f"Use --set {fits}, or enlarge it (docker --shm-size)"
    )


class BatchLoader(Generic[BatchT]):
    """A DataLoader that raises a `DataError` with advice when its workers die or get stuck."""

    def __init__(
        self,
        dataset: Samples[BatchT],
        *,
        keys: StepRange | Sequence[Sequence[SampleKey | None]],
        config: DataConfig,
        pin_memory: bool,
    ) -> None:
        self._config = config
        several = config.workers > 0
        self._loader = DataLoader(
            dataset,  # pyright: ignore[reportArgumentType]  keys are tuples, which the DataLoader does not mind
            batch_sampler=keys,  # pyright: ignore[reportArgumentType]
            collate_fn=dataset.collate,
            num_workers=config.workers,
            prefetch_factor=config.prefetch if several else None,
            timeout=min(LOOK_AFTER_WORKERS_SEC, config.worker_timeout_sec) if several else 0,
            multiprocessing_context=WorkerContext(PRELOADED) if several else None,
            worker_init_fn=start_worker,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # separate, so that loading does not affect the trainer's random numbers
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[BatchT]:
        batches, asked = iter(self._loader), time.monotonic()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                cause = " ".join(str(error).split())
                if not cause.startswith(("DataLoader", "Pin memory thread")):
                    raise
                # The DataLoader checks for dead workers at its timeout; the workers' own is longer, so retry.
                waited_sec = time.monotonic() - asked
                if "timed out" in cause and waited_sec < self._config.worker_timeout_sec:
                    continue
                raise DataError(self._advice(cause, waited_sec)) from error
            yield batch
            asked = time.monotonic()

    def _advice(self, cause: str, waited_sec: float) -> str:
        config = self._config
        return (
            f"reading videos failed after {waited_sec:.0f} s: {cause}. A decoding process died, or took longer "
            f"than data.worker_timeout_sec={config.worker_timeout_sec}. It may lack memory: /dev/shm must hold "
            f"data.prefetch={config.prefetch} batches for each of data.workers={config.workers}. Lower these, "
            "enlarge /dev/shm (docker --shm-size), raise the time for slow storage, or find a broken file with "
            "--set data.workers=0"
        )


def make_train_loader(
    dataset: Samples[BatchT], *, batches: StepRange, config: DataConfig, pin_memory: bool
) -> BatchLoader[BatchT]:
    """Loader of the micro batches of the coming optimizer steps, prefetched by worker processes."""
    batch_bytes = batches.batches.micro_batch * dataset.sample_bytes
    check_shared_memory(batch_bytes=batch_bytes, batches=len(batches), config=config)
    return BatchLoader(dataset, keys=batches, config=config, pin_memory=pin_memory)


def make_test_loader(
    dataset: Samples[BatchT], *, config: DataConfig, batch: int, rank: int, ranks: int, pin_memory: bool
) -> BatchLoader[BatchT]:
    """Loader of this rank's share of the test samples, padded so that every rank has the same number of batches."""
    shard = test_shard(len(dataset), batch=batch, rank=rank, ranks=ranks)
    check_shared_memory(batch_bytes=batch * dataset.sample_bytes, batches=len(shard), config=config)
    keys = [[None if index is None else (0, index) for index in ids] for ids in shard]
    return BatchLoader(dataset, keys=keys, config=config, pin_memory=pin_memory)
