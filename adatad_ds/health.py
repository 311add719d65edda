"""What ends a run early, on all ranks alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from adatad_ds.config import ConfigError
from adatad_ds.data.annotations import DataError
from adatad_ds.data.damage import Damage
from adatad_ds.parallel import World


class FailedVideos:
    """Videos that could not be read.

    Args:
        fate: what becomes of their samples, in words.
        known: error lines from before a resume.
        most: videos that may fail before the run gives up.
        world: the ranks.
        report: told about each newly failed video.
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
        """Take in what this rank met in a step. A collective.

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
                f"the last: {self.errors[-1]}. Mend the files, or leave them out with --set data.exclude=[...]"
            )


class DamagedVideos:
    """Videos of which a part cannot be read; what can be is trained on.

    Args:
        world: all ranks.
        report: told once about each.
    """

    def __init__(self, *, world: World, report: Callable[[str], None]) -> None:
        self._told: set[str] = set()
        self._world, self._report = world, report

    def untold(self, found: Iterable[Damage | None]) -> list[Damage]:
        """Those of some files' states that are damaged and not told yet."""
        return [damage for damage in found if damage and damage.path not in self._told]

    def add(self, untold: Sequence[Damage]) -> None:
        """Take in what this rank met in a step. A collective."""
        for damage in sorted((damage for part in self._world.gather(list(untold)) for damage in part), key=str):
            if damage.path not in self._told:
                self._told.add(damage.path)
                self._report(f"a training video is damaged, here or also elsewhere: {damage}")


def check_finite(*, step: int, losses: Mapping[str, float]) -> None:
    """Stop when training has diverged; the losses are the same on all ranks.

    Raises:
        ConfigError: a loss is NaN or infinite.
    """
    if not math.isfinite(sum(losses.values())):
        parts = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise ConfigError(
            f"the loss of step {step} is not finite ({parts}); lower train.lr_head and train.lr_adapter, or use "
            "--set train.precision=bf16 or fp32"
        )
