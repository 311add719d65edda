"""What the trainer and its parts do with a run's settings, without an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.errors import TrainingError
from adatad_ds.evaluation.operating_point import OperatingPoint
from adatad_ds.models.factory import Runtime
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.checkpoint import read_operating_point
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.tasks.base import Evaluation
from adatad_ds.training.build import open_data
from adatad_ds.training.initial_model import build_initial_model
from adatad_ds.training.monitor import Monitor
from adatad_ds.training.trainer import Progress, Trainer

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def trainer_of(**parts: Any) -> Trainer:
    """A trainer of some parts alone."""
    trainer = object.__new__(Trainer)
    for name, part in {"world": WORLD, "writing": None, **parts}.items():
        setattr(trainer, name, part)
    return trainer


def config_of(data: Path, *, seed: int) -> Config:
    places = [f"data.annotations={data}/annotations.json", f"data.videos={data}/videos"]
    small = ["data.workers=0", "train.global_batch=4", "backbone.weights=null", "data.resolution=32"]
    return override(find_recipe("quickstart").config, [*places, *small, f"train.seed={seed}"])


@pytest.mark.parametrize(("decay", "kind"), [(0.9, "average"), (0.0, "master")])
def test_an_evaluations_score_is_stored_with_the_weights_that_were_evaluated(tmp_path: Path, decay: float, kind: str):
    run, point = RunFolder(tmp_path), OperatingPoint(score=0.4, f1=0.5, precision=0.5, recall=0.5, tiou=0.5)
    store = run.checkpoints(keep=1)
    (store.folder / "step_00000002").mkdir(parents=True)
    trainer = trainer_of(
        config=override(Config(), [f"train.ema_decay={decay}"]),
        run_folder=run,
        store=store,
        progress=Progress(step=2),
        monitor=Monitor(folder=tmp_path, active=False, start_step=0, total_steps=2),
    )
    metrics = {"average_mAP": 0.25}
    evaluation = Evaluation(
        metrics=metrics, table="", per_class="", save=lambda folder: None, pictures={}, operating_point=point
    )
    trainer.record_evaluation(1, evaluation)
    checkpoint = store.best()
    assert checkpoint is not None
    assert read_operating_point(checkpoint, kind=kind) == point
    assert read_operating_point(checkpoint, kind={"average": "master", "master": "average"}[kind]) is None


def test_nothing_is_saved_into_a_folder_that_another_has_taken_over(tmp_path: Path):
    lock = RunLock(tmp_path)
    lock.take()
    next(tmp_path.glob("lock*")).unlink()
    with pytest.raises(TrainingError):  # before any other part is asked
        trainer_of(lock=lock).save()


@pytest.mark.slow
def test_another_seed_is_another_run(few_videos: Path, monkeypatch: pytest.MonkeyPatch):
    """Other initial weights, another order of samples, other windows; the same seed is the same run."""
    compared = []
    monkeypatch.setattr(World, "same", lambda self, value, *, what: compared.append((what, value)))

    def started(seed: int) -> tuple[torch.Tensor, list[Any], torch.Tensor]:
        config = config_of(few_videos, seed=seed)
        mesh = Mesh(world=WORLD, config=config)
        task, batches = open_data(config, {"train_micro_batch_size_per_gpu": 4}, mesh=mesh, saved=None)
        (what, (classes, *lengths)) = compared.pop()
        assert (what, classes) == ("data", task.classes)  # that all ranks have the same is checked
        assert lengths == [(len(data), data.videos) for data in (task.train_data, task.test_data)]
        named: Any = SimpleNamespace(classes=task.classes)
        model = build_initial_model(config, {}, task=named, runtime=Runtime(), world=WORLD, cached=None).model
        weights = torch.cat([parameter.detach().flatten().float() for parameter in model.parameters()])
        return weights, list(batches.batches(0, 0)), task.train_data[0, 0].frames

    (weights, order, frames), again, other = started(1), started(1), started(2)
    assert torch.equal(weights, again[0])
    assert order == again[1]
    assert torch.equal(frames, again[2])
    assert not torch.equal(weights, other[0])
    assert order != other[1]
    assert not torch.equal(frames, other[2])
