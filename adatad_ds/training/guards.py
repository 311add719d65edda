"""Stop conditions shared by all ranks: unreadable videos, non-finite losses and gradients; and waiting for data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from adatad_ds.data.decoding.damage import Damage
from adatad_ds.distributed.world import World
from adatad_ds.errors import DataError, TrainingError, summarize_list

WAIT_STARTING_STEPS, WAIT_STEPS = 2, 50
WAIT_SHARE = 0.1  # of the time, from which waiting is worth a message


class FailedVideos:
    """Training videos that could not be read.

    Args:
        fate: what happens to their samples, for the report.
        known: error messages from before a resume.
        most: number of videos that may fail before the run stops.
        world: the ranks.
        report: called with a message for each newly failed video.
    """

    def __init__(
        self, *, fate: str, known: Sequence[str], most: int, world: World, report: Callable[[str], None]
    ) -> None:
        self.errors = list(known)
        self._fate = fate
        self._most = most
        self._world = world
        self._report = report

    def add(self, errors: Sequence[str]) -> None:
        """Add this rank's errors of a step. A collective.

        Raises:
            DataError: too many videos have failed.
        """
        for error in sorted({error for part in self._world.gather(list(errors)) for error in part}):
            if error not in self.errors:
                self.errors.append(error)
                self._report(f"{self._fate}: {error}")
        if len(self.errors) > self._most:
            raise DataError(
                f"{len(self.errors)} training videos could not be read, more than data.max_failed_videos={self._most}; "
                f"the last: {self.errors[-1]}. Repair the files, or leave them out with --set data.exclude=[...]"
            )


class DataWait:
    """How much of its time a rank waits for data, said once if it is much.

    Args:
        workers: data.workers.
        spare_cores: whether workers would not take the cores on which ranks compute: without, a rank that reads by
            itself wastes nothing, and nothing is said.
        report: called with that message.
    """

    def __init__(self, *, workers: int, spare_cores: bool, report: Callable[[str], None]) -> None:
        self._workers = workers
        self._useful = workers > 0 or spare_cores
        self._report = report
        self._steps = 0
        self._wait_sec = self._total_sec = 0.0

    def add(self, *, wait_sec: float, step_sec: float) -> None:
        """Add a step: seconds of waiting, and in all. The first ones, when workers start, do not count."""
        self._steps += 1
        if self._steps > WAIT_STARTING_STEPS:
            self._wait_sec += wait_sec
            self._total_sec += step_sec
        if self._useful and self._steps == WAIT_STEPS and self._wait_sec >= WAIT_SHARE * self._total_sec:
            busy_sec = max(self._total_sec - self._wait_sec, 1e-3 * self._total_sec)
            # without workers, the rank itself reads while it waits, and one that reads meanwhile takes as long
            read_sec = self._workers * self._total_sec if self._workers else self._wait_sec
            self._report(
                f"waiting for data {self._wait_sec / self._total_sec:.0%} of the time: data.workers="
                f"{math.ceil(read_sec / busy_sec)} a rank (now {self._workers}) on as many cores, or prepared videos, "
                "would do"
            )


class DamagedVideos:
    """Training videos that can be read only in part; the rest is trained on.

    Args:
        world: all ranks.
        report: called once with a message for each.
    """

    def __init__(self, *, world: World, report: Callable[[str], None]) -> None:
        self._told: set[str] = set()
        self._world, self._report = world, report

    def untold(self, found: Iterable[Damage | None]) -> list[Damage]:
        """The damaged files among `found` that have not been reported yet."""
        return [damage for damage in found if damage and damage.path not in self._told]

    def add(self, untold: Sequence[Damage]) -> None:
        """Add this rank's damaged files of a step. A collective."""
        for damage in sorted((damage for part in self._world.gather(list(untold)) for damage in part), key=str):
            if damage.path not in self._told:
                self._told.add(damage.path)
                self._report(f"a training video is damaged, possibly in more places: {damage}")


def check_finite(*, step: int, losses: Mapping[str, float]) -> None:
    """Stop if training has diverged; the losses are the same on all ranks.

    Raises:
        TrainingError: a loss is NaN or infinite.
    """
    if not math.isfinite(sum(losses.values())):
        parts = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise TrainingError(
            f"the loss of step {step} is not finite ({parts}); lower train.lr_head and train.lr_adapter, or use "
            "--set train.precision=bf16 or fp32"
        )


class SkippedSteps:
    """Steps that the optimizer skipped because the gradients had no finite norm.

    With fp16 some are normal: this is how the loss scale is found. After the first one, gradients are watched, to name
    the tensors of the next; that costs a norm per gradient, so it is not done before.

    Args:
        parameters: trainable parameters by name.
        total: steps skipped before a resume.
        in_a_row: steps skipped in a row just before it.
        most: skipped steps in a row before the run stops.
        world: the ranks.
        report: called with a message for each skipped step.
    """

    def __init__(
        self,
        *,
        parameters: Mapping[str, nn.Parameter],
        total: int,
        in_a_row: int,
        most: int,
        world: World,
        report: Callable[[str], None],
    ) -> None:
        self.total, self.in_a_row = total, in_a_row
        self._parameters = parameters
        self._most = most
        self._world = world
        self._report = report
        self._squares: dict[str, Tensor] | None = None  # this step's squared norms by name; None: not watched
        if in_a_row:
            self._watch()

    def add(self, step: int, *, taken: bool) -> None:
        """Record whether a step was taken, the same on all ranks. A collective if it was not.

        Raises:
            TrainingError: too many steps were skipped in a row.
        """
        if taken:
            self.in_a_row = 0
            if self._squares is not None:
                self._squares.clear()
            return
        self.total += 1
        self.in_a_row += 1
        names = self._not_finite()
        examples = summarize_list(names, limit=4, separator=", ")
        where = f" ({len(names)} of {len(self._parameters)} tensors: {examples})" if names else ""
        if self.in_a_row >= self._most:
            raise TrainingError(
                f"{self.in_a_row} steps in a row were skipped, up to step {step}: gradients have no finite norm"
                f"{where}, though the loss is finite. Lower train.lr_head and train.lr_adapter, or use --set "
                f"train.precision=bf16 or fp32; train.max_skipped_steps={self._most} sets how many are too many"
            )
        self._report(f"step {step} skipped: gradients have no finite norm{where}; {self.in_a_row} in a row")
        if self._squares is None:
            self._watch()

    def _not_finite(self) -> list[str]:
        """Names of the parameters whose gradient had no finite norm on some rank. A collective."""
        own = [name for name, square in (self._squares or {}).items() if not math.isfinite(float(square))]
        if self._squares is not None:
            self._squares.clear()
        found = {name for names in self._world.gather(own) for name in names}
        return [name for name in self._parameters if name in found]

    def _watch(self) -> None:
        self._squares = {}
        for name, parameter in self._parameters.items():
            parameter.register_hook(lambda gradient, name=name: self._look(name, gradient))

    def _look(self, name: str, gradient: Tensor) -> None:
        """Add a micro batch's squared norm; it is read only if a step is skipped."""
        assert self._squares is not None
        square = gradient.detach().float().square().sum()
        self._squares[name] = self._squares[name] + square if name in self._squares else square
