"""What a run's folder tells of the run: settings, logged numbers, metrics, versions; without PyTorch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from adatad_ds.errors import DataError
from adatad_ds.evaluation.metrics_files import EVALUATED, HEADLINES, METRICS_FILE, metrics_of_epochs

LOG_FILE = "log.jsonl"
MEMORY = ("memory/peak_gb", "memory/peak_resident_gb")  # of a GPU's allocator; of a process on a CPU
Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its folder has it.

    Attributes:
        folder: the folder.
        settings: by `section.key`.
        log: logged numbers, a mapping for each line.
        evaluations: metrics of each evaluated epoch of the training.
        evaluated: metrics of `adatad-ds evaluate`; None: not evaluated.
        versions: how it was started, and with what.
    """

    folder: Path
    settings: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    evaluations: Mapping[int, Mapping[str, float]]
    evaluated: Mapping[str, float] | None
    versions: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    def curve(self, key: str) -> Points:
        """Step and value of a logged number."""
        return [(line["step"], line[key]) for line in self.log if isinstance(line.get(key), int | float)]

    def metric_curve(self, key: str) -> Points:
        """Epoch and value of a metric of the evaluations in training."""
        return [(epoch, metrics[key]) for epoch, metrics in self.evaluations.items() if key in metrics]

    def headline(self) -> str:
        """Name of the metric that this run is judged by; "": it was never evaluated."""
        known = [*self.evaluations.values(), *([self.evaluated] if self.evaluated else [])]
        return next((name for name in HEADLINES if known and all(name in metrics for metrics in known)), "")

    def best_epoch(self) -> int | None:
        """The evaluated epoch with the highest headline metric; the first on ties."""
        curve = self.metric_curve(self.headline())
        return None if not curve else int(max(curve, key=lambda point: (point[1], -point[0]))[0])

    def costs(self) -> dict[str, float]:
        """Steps, epochs, steps_per_epoch, sec_per_step, sec_per_epoch, frames_per_sec, waiting (a share), memory_gb,
        checkpoint_sec: those that are logged."""
        steps = [line for line in self.log if "time/step_sec" in line]
        if not steps:
            return {}
        steady = steps[1:] or steps  # the first one compiles and allocates
        last = steps[-1]
        found = {"steps": last["step"] + 1.0, "sec_per_step": median(line["time/step_sec"] for line in steady)}
        if last.get("train/epoch"):
            found["epochs"] = float(last["train/epoch"])
            found["steps_per_epoch"] = found["steps"] / found["epochs"]
            found["sec_per_epoch"] = found["steps_per_epoch"] * found["sec_per_step"]
        for name, key in (("frames_per_sec", "time/frames_per_sec"), ("checkpoint_sec", "time/checkpoint_sec")):
            if values := [line[key] for line in (steady if name == "frames_per_sec" else self.log) if key in line]:
                found[name] = median(values)
        if waits := [line["time/data_wait_sec"] / line["time/step_sec"] for line in steady if line["time/step_sec"]]:
            found["waiting"] = median(waits)
        if memory := [line[key] for line in steps for key in MEMORY if key in line]:
            found["memory_gb"] = max(memory)
        return found

    def changed_settings(self) -> list[tuple[str, str]]:
        """Keys and values of the `--set` options that it was started with, in their order."""
        words = self._words()
        pairs = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--set"]
        pairs += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
        return [(key, value) for key, _, value in (pair.partition("=") for pair in pairs)]

    def recipe(self) -> str:
        """Name of the recipe that it was started with; "": the folder does not say."""
        words = self._words()
        named = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--recipe"]
        named += [word.removeprefix("--recipe=") for word in words if word.startswith("--recipe=")]
        return named[-1] if named else ""

    def command(self) -> str:
        """The command line that starts the same run, for a shell; "": the folder does not say."""
        words = [word for word in self._words() if not word.startswith("--local_rank")]
        if not words:
            return ""
        ranks = str((self.versions.get("environment") or {}).get("WORLD_SIZE", "1"))
        head = ["deepspeed", "--num_gpus", ranks, "adatad_ds/train.py"] if ranks != "1" else ["adatad-ds", "train"]
        options = words[2:] if words[1:2] == ["train"] else words[1:]  # of `adatad-ds train`
        return " ".join(head + [shlex.quote(word) for word in options]).replace(" --set ", " \\\n    --set ")

    def _words(self) -> list[str]:
        return [str(word) for word in self.versions.get("command") or []]


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: it holds no run.
    """
    config = _json(folder / "config.json")
    if config is None:
        raise DataError(f"{folder} is not a run's folder: it has no config.json; give one that adatad-ds train wrote")
    return Run(
        folder=folder,
        settings={f"{section}.{key}": value for section, part in config.items() for key, value in _items(part)},
        log=read_log(folder / LOG_FILE),
        evaluations={epoch: _json(file) or {} for epoch, file in metrics_of_epochs(folder).items()},
        evaluated=_json(folder / EVALUATED / METRICS_FILE),
        versions=_json(folder / "versions.json") or {},
    )


def _items(part: Any) -> list[tuple[str, Any]]:
    return list(part.items()) if isinstance(part, Mapping) else []


def _json(path: Path) -> dict[str, Any] | None:
    """An object; None if the file is missing.

    Raises:
        DataError: it is there, but holds none.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} must hold an object at its top level")
    return tree


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without one that is being written, or that a crash has cut; none if it is not there."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "step" in line:
                lines.append(line)
    return lines
