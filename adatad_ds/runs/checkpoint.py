"""Checkpoints: only trainable state, written atomically; after a crash, the newest complete one is found.

A checkpoint is a folder `step_00000240/` with a safetensors file for each of master weights, Adam moments and running
average, and a `state.json` with the names, sizes and checksums of these files and its own checksum. It is written under
a temporary name, flushed to disk, and renamed when complete. It counts as complete while all checksums match, which is
verified before use.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from adatad_ds.errors import CheckpointError, WriteError
from adatad_ds.evaluation.operating_point import OperatingPoint
from adatad_ds.system.atomic import TEMPORARY, flush, write_text
from adatad_ds.system.json_text import write_json
from adatad_ds.weights.files import StoredTensor, Tensors, first_line, open_tensors
from adatad_ds.weights.trainable_state import MASTER, decode, encode

STATE_FILE = "state.json"
OPERATING_POINTS_FILE = "operating_points.json"  # by evaluated kind of weights
_PREFIX = "step_"
_REMOVED = ".removing_"
_CHECKSUM = "crc32"  # detects any flipped bit; 1.4 s per GB, where blake2b takes 5.5 s
_READ_AT_ONCE = 2**22  # bytes

TrainableState = dict[str, Tensors]  # "master", each Adam moment, "average" -> parameter name -> full tensor


@dataclass(frozen=True)
class Chosen:
    """A checkpoint that rank 0 has verified: its name, and the checksum of its `state.json`, which covers it all."""

    name: str
    checksum: int


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: folder of the checkpoints; created when first needed.
        keep: number of newest checkpoints to keep, in addition to the one marked best.
    """

    def __init__(self, *, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, *, step: int, trainable: dict[str, dict[str, Tensor]], compact: bool, state: Mapping[str, Any]
    ) -> list[str]:
        """Write the checkpoint of optimizer step `step`, then remove old ones. Call on one rank.

        Args:
            step: optimizer steps done.
            trainable: fp32 tensors by kind and parameter name; emptied kind by kind, as they are written.
            compact: whether to encode them by `trainable_state.encode`.
            state: the rest of the run's state, JSON-ready.

        Returns:
            One line for each checkpoint that could not be removed; the next save tries again.

        Raises:
            WriteError: it cannot be written; earlier checkpoints are untouched.
        """
        final = self.folder / _name(step)
        temporary = self.folder / f"{TEMPORARY}{step:08d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for kind in sorted(trainable, key=lambda kind: kind == MASTER):  # the average is encoded by the masters
                tensors = trainable[kind]
                if compact:
                    tensors = {name: encode(kind, value, trainable[MASTER][name]) for name, value in tensors.items()}
                save_file(tensors, temporary / f"{kind}.safetensors")
                del trainable[kind], tensors
            files = {
                path.name: {"bytes": path.stat().st_size, _CHECKSUM: _checksum(path)}
                for path in sorted(temporary.iterdir())
            }
            content = json.loads(json.dumps({"step": step, "compact": compact, "files": files, **state}))
            content[_CHECKSUM] = _checksum_of(content)
            (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
            for path in [*temporary.iterdir(), temporary]:
                flush(path)
            if final.exists():  # the same step, saved before a resume
                self._set_aside(final)
            temporary.rename(final)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            newest = self.latest()
            held = f"the newest complete one is {newest.name}" if newest else "there is no earlier one"
            raise WriteError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {first_line(error)}; {held}. "
                "Free some space, then continue with --resume auto"
            ) from error
        return self._prune(final)

    def mark_best(self, *, step: int) -> None:
        """Mark the checkpoint of a step as the best, so that it is kept."""
        write_text(self.folder / "best", _name(step) + "\n")

    def set_operating_point(self, *, step: int, kind: str, point: OperatingPoint) -> None:
        """Store the score of the best F1 with the checkpoint of a step; see `write_operating_point`."""
        write_operating_point(self.folder / _name(step), kind=kind, point=point)

    def best(self) -> Path | None:
        """The checkpoint marked best, if it exists; not verified."""
        try:
            path = self.folder / (self.folder / "best").read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return path if path.is_dir() else None

    def latest(self) -> Path | None:
        """The newest complete checkpoint, if any."""
        seen = None
        while (paths := self.all()) != seen:  # a running training may remove those seen and add newer ones
            for path in reversed(paths):
                if is_complete(path):
                    return path
            seen = paths
        return None

    def choose(self) -> Chosen | None:
        """The newest complete checkpoint, for the other ranks to `confirm`. Call on one rank."""
        newest = self.latest()
        return None if newest is None else Chosen(newest.name, _checksum(newest / STATE_FILE))

    def confirm(self, chosen: Chosen, *, thoroughly: bool) -> Path:
        """This rank's path of the checkpoint that rank 0 has chosen.

        `state.json` must be the one that rank 0 has read, and the other files of the sizes that it says.

        Args:
            chosen: rank 0's choice.
            thoroughly: whether to read the files and compare their checksums, as rank 0 has: one rank of each node
                does, since nodes may see copies.

        Raises:
            CheckpointError: it is missing, incomplete, or a different one.
        """
        path = self.folder / chosen.name
        whole = is_complete(path) if thoroughly else _has_all_bytes(path)
        if not whole or _checksum(path / STATE_FILE) != chosen.checksum:
            found = "is a different one" if whole else "is missing or incomplete"
            raise CheckpointError(
                f"the checkpoint {path} that rank 0 resumes from {found} on {os.uname().nodename}; all nodes must see "
                "the same folder (--run-dir)"
            )
        return path

    def newer_than(self, chosen: Path | None) -> list[Path]:
        """Incomplete checkpoints newer than `chosen`, which were skipped: damaged, or truncated by a crash."""
        return [path for path in self.all() if chosen is None or path > chosen]

    def all(self) -> list[Path]:
        """All checkpoints by step, complete or not."""
        return sorted(self.folder.glob(f"{_PREFIX}*")) if self.folder.is_dir() else []

    def _set_aside(self, path: Path) -> None:
        """Rename a checkpoint before its files are removed, so that no half of it is ever found."""
        path.rename(self.folder / f"{_REMOVED}{path.name}_{uuid.uuid4().hex[:8]}")

    def _prune(self, saved: Path) -> list[str]:
        older = [path for path in self.all() if path <= saved]
        kept = {*[path for path in older if _has_all_bytes(path)][-self.keep :], self.best()}
        failed = []
        for path in older:
            if path not in kept:
                try:
                    self._set_aside(path)
                except OSError as error:
                    failed.append(f"{path} cannot be removed: {first_line(error)}")
        for leftover in (*self.folder.glob(f"{TEMPORARY}*"), *self.folder.glob(f"{_REMOVED}*")):
            try:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            except OSError as error:  # on NFS, while another process has a file open
                failed.append(f"{leftover} cannot be removed: {first_line(error)}")
        return failed


def find_checkpoint(path: Path) -> Path:
    """Find a complete checkpoint: `path` itself, or in a run's folder the best, else the newest.

    Raises:
        CheckpointError: there is none, or it is incomplete.
    """
    store = CheckpointStore(folder=path / "checkpoints", keep=1)
    found = path if (path / STATE_FILE).is_file() else store.best()
    if found is not None and not is_complete(found):
        raise CheckpointError(
            f"the checkpoint {found} is incomplete: a file is missing or damaged. Give the folder of another one"
        )
    if (found := found or store.latest()) is None:
        raise CheckpointError(f"there is no complete checkpoint in {path}")
    return found


def open_checkpoint(path: Path) -> tuple[TrainableState, dict[str, Any]]:
    """Open a complete checkpoint: its full fp32 tensors by kind and name, read lazily, and the run's state.

    Raises:
        CheckpointError: it has been removed.
    """
    try:
        state = read_state(path)
        trainable = {Path(name).stem: open_tensors(path / name) for name in state["files"]}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is gone: a running training removes old checkpoints; try again") from error
    return (_decoded(trainable) if state["compact"] else trainable), state


def _decoded(trainable: TrainableState) -> TrainableState:
    """Decode compact tensors to fp32."""

    def decoded(kind: str, name: str) -> StoredTensor:
        masters, tensors = trainable[MASTER][name], trainable[kind][name]

        def read(rows: tuple[int, int] | None = None) -> Tensor:
            def of(held: StoredTensor) -> Tensor:
                return held.read() if rows is None else held.rows(*rows)

            master = of(masters)
            master = decode(MASTER, master, master)
            return master if kind == MASTER else decode(kind, of(tensors), master)

        return StoredTensor(masters.shape[:-1], read, lambda start, stop: read((start, stop)))

    return {kind: {name: decoded(kind, name) for name in tensors} for kind, tensors in trainable.items()}


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`.

    Raises:
        ValueError: it is damaged.
    """
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if _has_checksums(state) and state.pop(_CHECKSUM, None) != _checksum_of(state):
        raise ValueError(f"{path / STATE_FILE} is damaged: its checksum is wrong")
    return state


def read_operating_point(path: Path, *, kind: str) -> OperatingPoint | None:
    """The score of the best F1 of a checkpoint's weights; None: not evaluated.

    Args:
        path: the checkpoint.
        kind: which of its weights, "master" or "average".
    """
    try:
        return OperatingPoint.from_dict(_operating_points(path).get(kind))
    except (ValueError, TypeError, AttributeError):  # damaged; the next evaluation rewrites it
        return None


def write_operating_point(path: Path, *, kind: str, point: OperatingPoint) -> None:
    """Store the score of the best F1 with the checkpoint, replacing an earlier evaluation's."""
    content = _operating_points(path) | {kind: point.to_dict()}
    write_json(path / OPERATING_POINTS_FILE, content)


def _operating_points(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / OPERATING_POINTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_complete(path: Path) -> bool:
    """Whether all checksums of a checkpoint match; reads every file."""
    try:
        return _has_all_bytes(path) and all(
            _checksum(path / name) == written[_CHECKSUM]
            for name, written in read_state(path)["files"].items()
            if isinstance(written, dict)
        )
    except (OSError, ValueError, LookupError):
        return False


def _has_all_bytes(path: Path) -> bool:
    """Whether every file of a checkpoint has its full size; reads only `state.json`."""
    try:
        return all(
            (path / name).stat().st_size == (written["bytes"] if isinstance(written, dict) else written)
            for name, written in read_state(path)["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _has_checksums(state: Mapping[str, Any]) -> bool:
    """False for checkpoints written before checksums were introduced, which have only sizes."""
    return not all(isinstance(written, int) for written in state["files"].values())


def _checksum(path: Path) -> int:
    value, buffer = 0, bytearray(_READ_AT_ONCE)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            value = zlib.crc32(view[:count], value)
    return value


def _checksum_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"
