"""A run's folder: its settings, checkpoints and results."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.evaluation.metrics_files import HEADLINES, METRICS_FILE, epoch_folder, metrics_of_epochs
from adatad_ds.runs.checkpoint import CheckpointStore, Chosen
from adatad_ds.runs.resume import setting_changes
from adatad_ds.system.clone import CLONE
from adatad_ds.system.json_text import write_json
from adatad_ds.system.launch import gpu_count
from adatad_ds.tasks.base import Evaluation

CONFIG_FILE = "config.json"
DS_CONFIG_FILE = "ds_config.json"
CLASSES_FILE = "classes.json"
VERSIONS_FILE = "versions.json"
REVISION_FILE = "revision.json"  # in a snapshot of the code, which has no git history
INTERRUPTED_FILE = "interrupted"  # present while a stopped run waits to be resumed
_ENVIRONMENT = ("SLURM_", "CUDA_", "NCCL_", "OMP_", "DS_", "MASTER_", "RANK", "WORLD_SIZE", "PYTORCH_")
_PACKAGES = (
    "torch", "torchvision", "deepspeed", "transformers", "accelerate", "timm", "numpy", "safetensors", "decord", "av"
)  # fmt: skip


class RunFolder:
    """Layout of a run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoints(self, *, keep: int) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(folder=self.path / "checkpoints", keep=keep)

    def start(self, store: CheckpointStore, *, config: Config, resume: bool) -> Chosen | None:
        """The checkpoint to resume from, or None for a new run. Call on one rank; the others `confirm` it.

        Raises:
            ConfigError: the folder holds another run, or the same one and `resume` is off.
            CheckpointError: none of its checkpoints is complete.
        """
        saved = store.all()
        if saved and not resume:
            raise ConfigError(
                f"{self.path} already holds a run (up to {saved[-1].name}); continue with --resume auto, or choose "
                "another folder with --run-dir"
            )
        refused, _ = self.setting_changes(config)
        if refused:
            raise ConfigError(
                f"{self.path} holds a run with other settings than these (its {CONFIG_FILE} -> now): "
                f"{', '.join(refused)}. Use the old values to continue it, or choose another folder with --run-dir"
                + ("" if saved else " (this one has saved no checkpoint, so only its log would be lost)")
            )
        chosen = store.choose()
        if saved and chosen is None:
            raise CheckpointError(
                f"none of the {len(saved)} checkpoints in {store.folder} is complete: files are missing or damaged. "
                "Restore one to resume, or start a new run with --run-dir"
            )
        return chosen

    def describe(self, *, config: Config, ds_config: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Save the run's settings, classes and versions."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, config.to_dict())
        write_json(self.path / DS_CONFIG_FILE, ds_config)
        write_json(self.path / CLASSES_FILE, list(classes))
        write_json(self.path / VERSIONS_FILE, versions())
        (self.path / INTERRUPTED_FILE).unlink(missing_ok=True)

    def setting_changes(self, config: Config) -> tuple[list[str], list[str]]:
        """How a config differs from the saved one, see `resume.setting_changes`; no changes if none is saved.

        Call it before `describe`, which replaces the saved one.
        """
        path = self.path / CONFIG_FILE
        return setting_changes(loading.load(path), config) if path.exists() else ([], [])

    def version_changes(self) -> str:
        """How Python and packages differ from those saved with the run; "": no difference.

        Call it before `describe`, which replaces the saved ones.
        """
        try:
            before = json.loads((self.path / VERSIONS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return version_changes(before, versions())

    def gpu(self) -> dict[str, Any] | None:
        """Name and memory_gb of rank 0's GPU; None: unknown, or a CPU."""
        try:
            return json.loads((self.path / VERSIONS_FILE).read_text(encoding="utf-8")).get("gpu")
        except (OSError, ValueError):
            return None

    def mark_interrupted(self) -> None:
        """Create the file that asks for this run to be restarted."""
        (self.path / INTERRUPTED_FILE).touch()

    def read(self) -> tuple[Config, tuple[str, ...]]:
        """The run's config and class names.

        Raises:
            CheckpointError: this is not a run's folder.
            ConfigError: its config cannot be read, or is not valid.
        """
        try:
            classes = tuple(json.loads((self.path / CLASSES_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} is not a run's folder: {error}") from error
        return loading.load(self.path / CONFIG_FILE), classes

    def add_evaluation(self, epoch: int, evaluation: Evaluation) -> None:
        """Save the results and metrics of an epoch."""
        folder = epoch_folder(self.path, epoch)
        folder.mkdir(parents=True, exist_ok=True)
        evaluation.save(folder)
        write_json(folder / METRICS_FILE, evaluation.metrics)

    def set_aside_evaluations(self, *, after: int) -> list[str]:
        """Rename what evaluations of epochs that are still to come have left: they are of weights that are gone.

        Args:
            after: epochs done.

        Returns:
            A line for the user, if there were any.
        """
        stale = [epoch for epoch in self.evaluations() if epoch > after]
        for epoch in stale:
            folder = epoch_folder(self.path, epoch)
            shutil.rmtree(folder.with_name(f"old_{folder.name}"), ignore_errors=True)
            folder.rename(folder.with_name(f"old_{folder.name}"))
        which = ", ".join(map(str, stale))
        return [f"evaluations of epochs {which}, trained before and now again, are set aside as old_*"] if stale else []

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Metrics of every evaluated epoch."""
        files = metrics_of_epochs(self.path)
        return {epoch: json.loads(file.read_text(encoding="utf-8")) for epoch, file in files.items()}

    def scores(self) -> tuple[str, dict[int, float]]:
        """Name of the metric that epochs are compared by, and its value for each evaluated epoch."""
        evaluations = self.evaluations()
        name = next((n for n in HEADLINES if all(n in metrics for metrics in evaluations.values())), "")
        return name, {epoch: metrics[name] for epoch, metrics in evaluations.items()}

    def best_epoch(self) -> int | None:
        """The evaluated epoch with the highest score; the first on ties."""
        _, scores = self.scores()
        return max(scores, key=lambda epoch: (scores[epoch], -epoch), default=None)

    def metrics_of(self, checkpoint: Path) -> dict[str, float] | None:
        """Metrics of a checkpoint as evaluated in training, if it is the one marked best; None: it is not."""
        best = self.best_epoch()
        if best is None or checkpoint.name != getattr(self.checkpoints(keep=1).best(), "name", None):
            return None
        return self.evaluations()[best]

    def summary(self) -> str | None:
        """Scores of the last and of the best evaluated epoch, as text; None without evaluations."""
        (name, scores), best = self.scores(), self.best_epoch()
        last = max(scores, default=None)
        if last is None or best is None:
            return None
        if last == best:
            return f"{HEADLINES[name]}: {100 * scores[last]:.2f} % at epoch {last}, the last evaluated and the best"
        return (
            f"{HEADLINES[name]}: {100 * scores[last]:.2f} % at the last evaluated epoch {last}; "
            f"{100 * scores[best]:.2f} % at the best epoch {best}"
        )


def versions() -> dict[str, Any]:
    """Command, code revision and package versions of this process."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        **revision(),
        "packages": packages,
        "cuda": torch.version.cuda,
        "host": platform.node(),
        "gpu": gpu(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)},
    }


def gpu() -> dict[str, Any] | None:
    """Name and memory of this process's GPU, as reported by the driver; None without one."""
    if not gpu_count():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"name": found.name, "memory_gb": found.total_memory / 1e9}


def version_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`torch 2.13.0 -> 2.14.1, ...` for entries that differ between two results of `versions`."""

    def flat(versions: Mapping[str, Any]) -> dict[str, str | None]:
        return {name: versions[name] for name in ("python", "cuda") if name in versions} | versions.get("packages", {})

    old, new = flat(before), flat(now)
    return ", ".join(f"{name} {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name])


def revision() -> dict[str, str | None]:
    """Commit of this code and uncommitted changes, from a snapshot's record or from git."""
    noted = CLONE / REVISION_FILE
    if noted.exists():
        return json.loads(noted.read_text(encoding="utf-8"))
    return {"git": _git("rev-parse", "HEAD"), "git_changes": _git("status", "--porcelain")}


def _git(*arguments: str) -> str | None:
    """Output of a git command in this package's clone; None without one."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
