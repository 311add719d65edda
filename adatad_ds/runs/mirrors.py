"""Copies of a run's scalars and settings in Weights & Biases or MLflow, by their own libraries; offline by default.

A library is needed only where its mirror is asked for. A mirror that fails in mid-run is left out from then on, and the
training goes on: TensorBoard and log.jsonl have everything.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError, in_words

PROJECT = "adatad_ds"  # W&B's project and MLflow's experiment, unless the environment names another
MIRRORS = {"wandb": "wandb", "mlflow": "mlflow"}  # and the package to install
ID_FILE = "mirror_{}.txt"  # in the run's folder: a resumed run goes on in the same record


class Mirror(Protocol):
    """A library's record of this run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of a step."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


def check_mirrors(names: Sequence[str]) -> None:
    """Raise a `ConfigError` if the library of a mirror is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"--mirror {name}: the library is not installed; pip install {MIRRORS[name]}, or leave it out: "
                "TensorBoard and log.jsonl have the same values"
            )


def open_mirrors(
    names: Sequence[str], *, folder: Path, config: Config, resumed: bool, report: Callable[[str], object]
) -> Mirrors:
    """Open the mirrors of a run.

    Args:
        names: of `MIRRORS`.
        folder: the run's, where what is offline is written, too.
        config: the run's.
        resumed: go on in the records that the folder names.
        report: told about a mirror that fails.

    Raises:
        ConfigError: a mirror cannot begin, as where its server is not reached.
    """
    opened: dict[str, Mirror] = {}
    for name in names:
        try:
            opened[name] = {"wandb": _WandB, "mlflow": _MLflow}[name](folder, config, resumed=resumed)
        except Exception as error:
            raise ConfigError(f"--mirror {name} cannot start: {in_words(error)}") from error
    return Mirrors(opened, report=report)


class Mirrors:
    """All mirrors of a run, of which some may fail.

    Args:
        mirrors: by name.
        report: told about one that fails.
    """

    def __init__(self, mirrors: Mapping[str, Mirror], *, report: Callable[[str], object]) -> None:
        self._mirrors, self._report = dict(mirrors), report

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the scalars of a step to all."""
        self._each(lambda mirror: mirror.scalars(step, values))

    def close(self) -> None:
        """Flush and close all."""
        self._each(lambda mirror: mirror.close())

    def _each(self, act: Callable[[Mirror], None]) -> None:
        for name, mirror in list(self._mirrors.items()):
            try:
                act(mirror)
            except Exception as error:  # whatever a library raises is no reason to end a training
                del self._mirrors[name]
                self._report(f"warning: --mirror {name} failed, and is not used from now on: {in_words(error)}")


class _WandB:
    def __init__(self, folder: Path, config: Config, *, resumed: bool) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_run_id("wandb", folder, resumed=resumed, make=lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(folder),
            config=config.to_dict(),
            mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, folder: Path, config: Config, *, resumed: bool) -> None:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        own = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", own))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run = _run_id(
            "mlflow",
            folder,
            resumed=resumed,
            make=lambda: self._client.create_run(experiment, run_name=folder.name).info.run_id,
        )
        if not resumed:  # a setting is recorded once
            for section, settings in config.to_dict().items():
                for key, value in settings.items():
                    self._client.log_param(self._run, f"{section}.{key}", str(value)[:500])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now_ms = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), float(value), now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _allowed(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(char if char.isalnum() or char in "_-./ " else "_" for char in name)


def _run_id(mirror: str, folder: Path, *, resumed: bool, make: Callable[[], Any]) -> str:
    """The record's id: the folder's, if the run goes on, else a new one."""
    path = folder / ID_FILE.format(mirror)
    if resumed and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    new = str(make())
    path.write_text(new + "\n", encoding="utf-8")
    return new
