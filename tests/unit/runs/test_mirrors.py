"""Mirrors of a run's scalars: those of the log, in the libraries' own records; their faults end no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.run_report.facts import LOG_FILE
from adatad_ds.runs.mirrors import MIRRORS, Mirrors, check_mirrors, open_mirrors
from adatad_ds.training.monitor import Monitor


class Kept:
    """Keeps what it is given; fails from a step on."""

    def __init__(self, fails_from: float = float("inf")) -> None:
        self.rows: list[dict] = []
        self.fails_from, self.closed = fails_from, False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.fails_from:
            raise ConnectionError("no route to the server")
        self.rows.append({"step": step, **values})

    def close(self) -> None:
        self.closed = True


def test_a_mirror_has_what_the_log_has_and_its_faults_end_nothing(tmp_path: Path):
    said: list[str] = []
    good, bad = Kept(), Kept(fails_from=2)
    mirrors = Mirrors({"wandb": good, "mlflow": bad}, report=said.append)
    monitor = Monitor(folder=tmp_path, active=True, start_step=0, total_steps=4, mirrors=mirrors)
    for step in range(4):
        monitor.scalars(step, {"loss/total": 1 / (step + 1)})
    monitor.close()
    assert good.rows == [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert len(good.rows) == 4
    assert good.closed
    assert [row["step"] for row in bad.rows] == [0, 1]
    assert said == [
        "warning: --mirror mlflow failed, and is not used from now on: ConnectionError: no route to the server"
    ]


def test_a_missing_library_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", [])
    for name, package in MIRRORS.items():
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        with pytest.raises(ConfigError, match=f"--mirror {name}: the library is not installed; pip install {package}"):
            check_mirrors([name])
    check_mirrors([])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def log_steps(name: str, folder: Path, steps: range, *, resumed: bool) -> str:
    said: list[str] = []
    mirrors = open_mirrors([name], folder=folder, config=Config(), resumed=resumed, report=said.append)
    for step in steps:
        mirrors.scalars(step, {"loss/total": float(step), "metrics/mAP@0.5": 0.5})
    mirrors.close()
    assert said == []
    return (folder / f"mirror_{name}.txt").read_text().strip()


def test_mlflow_itself(tmp_path: Path, offline: None):
    """The library's own database, read back; a resumed run goes on in it."""
    tracking = pytest.importorskip("mlflow.tracking")
    pytest.importorskip("sqlalchemy")
    run = log_steps("mlflow", tmp_path, range(3), resumed=False)
    assert log_steps("mlflow", tmp_path, range(3, 5), resumed=True) == run
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = client.get_metric_history(run, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(5)]
    assert client.get_run(run).data.params["train.seed"] == "0"
    assert "metrics/mAP_0.5" in client.get_run(run).data.metrics


def test_wandb_itself(tmp_path: Path, offline: None):
    """Nothing is sent; a resumed run has the same id."""
    pytest.importorskip("wandb")
    run = log_steps("wandb", tmp_path, range(3), resumed=False)
    assert log_steps("wandb", tmp_path, range(3, 5), resumed=True) == run
    records = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run}/run-{run}.wandb"))
    assert len(records) == 2
    assert b"metrics/mAP@0.5" in records[0].read_bytes()
