"""Run state on disk: only what learns, written atomically, the newest whole one found again after a crash.

A checkpoint is a folder `step_00000240/` of one safetensors file for each of master weights, Adam moments and running
average, and a `state.json` that names those files and their sizes. It is written under a temporary name, flushed to
the disk, and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from adatad_ds.compact import MASTER, decode
from adatad_ds.config import ConfigError
from adatad_ds.evaluation.operating_point import OperatingPoint
from adatad_ds.weight_files import StoredTensor, Tensors, first_line, open_tensors

STATE_FILE = "state.json"
OPERATING_POINTS_FILE = "operating_points.json"  # of the evaluated kinds of weights
_PREFIX = "step_"
_TEMPORARY = ".writing_"

LearntState = dict[str, Tensors]  # "master", each Adam moment, "average" -> parameter name -> full tensor


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when first needed.
        keep: how many of the newest stay; the one marked best stays besides.
    """

    def __init__(self, *, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, *, step: int, learnt: Mapping[str, dict[str, Tensor]], compact: bool, state: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint of optimizer step `step`, then remove what is no longer kept. Call on one rank.

        Args:
            step: optimizer steps done.
            learnt: tensors by kind and parameter name.
            compact: they are in the form of `compact.encode`.
            state: what else a run goes on from, JSON-ready.

        Raises:
            ConfigError: it cannot be written; what was there before is untouched.
        """
        final = self.folder / _name(step)
        temporary = self.folder / f"{_TEMPORARY}{step:08d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for kind, tensors in learnt.items():
                save_file(tensors, temporary / f"{kind}.safetensors")
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            content = {"step": step, "compact": compact, "files": sizes, **state}
            (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
            for path in [*temporary.iterdir(), temporary]:
                _flush(path)
            if final.exists():  # the same step, saved before a resume
                shutil.rmtree(final)
            temporary.rename(final)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            newest = self.latest()
            held = f"the newest whole one is {newest.name}" if newest else "there is none before it"
            raise ConfigError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {first_line(error)}; {held}. "
                "Make room, then go on with --resume auto"
            ) from error
        self._prune()
        return final

    def mark_best(self, *, step: int) -> None:
        """Remember the checkpoint of a step as the best, which keeps it."""
        temporary = self.folder / f"{_TEMPORARY}best"
        temporary.write_text(_name(step) + "\n", encoding="utf-8")
        _flush(temporary)
        temporary.rename(self.folder / "best")

    def set_operating_point(self, *, step: int, kind: str, point: OperatingPoint) -> None:
        """Keep the score of the best F1 with the checkpoint of a step; see `write_operating_point`."""
        write_operating_point(self.folder / _name(step), kind=kind, point=point)

    def best(self) -> Path | None:
        """The checkpoint marked best, if it is there."""
        try:
            path = self.folder / (self.folder / "best").read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return path if is_whole(path) else None

    def latest(self) -> Path | None:
        """The newest whole checkpoint, if there is one."""
        return next((path for path in reversed(self._all()) if is_whole(path)), None)

    def broken(self) -> list[Path]:
        """Checkpoints newer than the newest whole one: cut short by a crash or a full disk."""
        newest = self.latest()
        return [path for path in self._all() if newest is None or path > newest]

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*")) if self.folder.is_dir() else []

    def _prune(self) -> None:
        best = self.best()
        for path in self._all()[: -self.keep]:
            if path != best:
                shutil.rmtree(path)
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder from itself or from its run's folder (the best, else the newest).

    Raises:
        ConfigError: none is there, or it is not whole.
    """
    if (path / STATE_FILE).is_file():
        if not is_whole(path):
            raise ConfigError(f"the checkpoint {path} is not whole: a file is missing or of the wrong size")
        return path
    store = CheckpointStore(folder=path / "checkpoints", keep=1)
    found = store.best() or store.latest()
    if found is None:
        raise ConfigError(f"there is no whole checkpoint in {path}")
    return found


def open_checkpoint(path: Path) -> tuple[LearntState, dict[str, Any]]:
    """A checkpoint's full fp32 tensors by kind and name, not yet read, and the run's state."""
    state = read_state(path)
    learnt = {Path(name).stem: open_tensors(path / name) for name in state["files"]}
    return (_decoded(learnt) if state["compact"] else learnt), state


def _decoded(learnt: LearntState) -> LearntState:
    """The fp32 tensors behind compact ones."""

    def reader(kind: str, name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            stored = learnt[MASTER][name].read()
            master = decode(MASTER, stored, stored)
            return master if kind == MASTER else decode(kind, learnt[kind][name].read(), master)

        return read

    return {
        kind: {name: StoredTensor(learnt[MASTER][name].shape[:-1], reader(kind, name)) for name in tensors}
        for kind, tensors in learnt.items()
    }


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`."""
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))


def read_operating_point(path: Path, *, kind: str) -> OperatingPoint | None:
    """The score of the best F1 that an evaluation of a checkpoint's weights found; None: none did.

    Args:
        path: the checkpoint.
        kind: which of its weights, "master" or "average".
    """
    try:
        return OperatingPoint.from_dict(_operating_points(path).get(kind))
    except (ValueError, TypeError, AttributeError):  # damaged; the next evaluation writes it anew
        return None


def write_operating_point(path: Path, *, kind: str, point: OperatingPoint) -> None:
    """Keep it with the checkpoint, in the place of an earlier evaluation's."""
    temporary = path / f".{OPERATING_POINTS_FILE}"
    content = _operating_points(path) | {kind: point.to_dict()}
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path / OPERATING_POINTS_FILE)


def _operating_points(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / OPERATING_POINTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_whole(path: Path) -> bool:
    """Whether every file that a checkpoint names is there in full."""
    try:
        sizes = read_state(path)["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
