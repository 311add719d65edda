"""A run put together: data, model, weights or checkpoint, engine, and what watches over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adatad_ds.config.schema import Config
from adatad_ds.data.loader import TrainBatches
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import activation_policy, resolve_ds_config
from adatad_ds.distributed.engine import Engine, partitioner
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.errors import summarize_list
from adatad_ds.models.execution.activation_store import Storage
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.factory import adapted_blocks
from adatad_ds.models.recogniser import Model
from adatad_ds.recipes.class_order import ClassOrder
from adatad_ds.runs.checkpoint import CheckpointStore, open_checkpoint
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.runs.resume import check_same_data
from adatad_ds.tasks.base import Task
from adatad_ds.tasks.factory import open_task
from adatad_ds.training.guards import DamagedVideos, FailedVideos, SkippedSteps
from adatad_ds.training.monitor import Monitor
from adatad_ds.training.optim import average_warms_up, parameter_groups
from adatad_ds.training.preemption import StopRequest
from adatad_ds.training.profiling import Profiler, parse_profile
from adatad_ds.training.trainer import Progress, Trainer
from adatad_ds.training.update_stats import Updates
from adatad_ds.weights.files import Tensors
from adatad_ds.weights.loading import (
    check_fingerprint,
    fill_backbone,
    find_weights,
    fingerprint,
    in_published_order,
    weights_reports,
)
from adatad_ds.weights.trainable_state import AVERAGE, MASTER


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a resumed run goes on from.

    Attributes:
        checkpoint: its folder.
        trainable: tensors by kind and parameter name.
        state: everything else that was saved.
    """

    checkpoint: Path
    trainable: Mapping[str, Tensors]
    state: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """A model before its first step.

    Attributes:
        model: with its frozen weights.
        frozen_fingerprint: of those, on rank 0.
        published: what its weights file holds beside the transformer, by kind and parameter name.
        reports: lines about that file.
    """

    model: Model
    frozen_fingerprint: dict[str, str]
    published: Mapping[str, Tensors]
    reports: list[str]


def build_trainer(
    config: Config,
    policy: Mapping[str, Any],
    *,
    class_order: ClassOrder | None,
    resume: bool,
    profile: str | None,
    run: RunFolder,
    lock: RunLock,
    world: World,
    stop: StopRequest,
) -> Trainer:
    """Put a run together: data, model, weights or checkpoint, engine. A collective.

    Args:
        config: of the run, as the user wants it.
        policy: the ds_config as its file has it.
        class_order: in which a published head's logits stand.
        resume: go on from the newest whole checkpoint, if there is any.
        profile: START:STOP, the steps to trace.
        run: the run's folder.
        lock: of that folder, held by rank 0.
        world: the ranks.
        stop: whether this rank has been asked to stop.

    Raises:
        ConfigError: settings that contradict each other, or the run that is to go on.
        DataError: no usable videos or annotations.
        CheckpointError: weights or a checkpoint that cannot be read or do not fit.
        RankError: any of these, on some rank.
    """
    config = world.attempt(lambda: in_published_order(config, order=class_order))
    cuda = world.device.type == "cuda"
    mesh = Mesh(world=world, config=config)
    ds_config = resolve_ds_config(policy, config=config, ranks=world.size, cuda=cuda)
    storage, stopwatch = activation_policy(
        ds_config, config=config, stored_tensors=len(adapted_blocks(config.backbone)), cuda=cuda
    )
    store = run.checkpoints(keep=config.train.keep_checkpoints)
    saved = find_saved(run, store, config=config, resume=resume, world=world)
    task, batches = open_data(config, ds_config, mesh=mesh, saved=saved)
    initial = build_model(config, ds_config, task=task, storage=Storage(storage), stopwatch=stopwatch, world=world)
    total_steps = config.train.stop_epoch * batches.steps_per_epoch
    engine, progress = start_engine(
        config, ds_config, task=task, initial=initial, saved=saved, total_steps=total_steps, world=world
    )
    resumed = describe_resume(run, store, config=config, saved=saved, progress=progress) if world.is_main else []
    world.on_main(lambda: run.describe(config=config, ds_config=ds_config, classes=task.classes))
    monitor = world.attempt(
        lambda: Monitor(folder=run.path, active=world.is_main, start_step=progress.step, total_steps=total_steps)
    )
    monitor.text("config", json.dumps(config.to_dict(), indent=1))
    for line in (*task.reports, *initial.reports, *describe_start(task, initial, engine, saved=saved), *resumed):
        monitor.say(line)
    failed_videos, skipped_steps = guards(config, mesh=mesh, engine=engine, progress=progress, report=monitor.say)
    return Trainer(
        config=config,
        world=world,
        engine=engine,
        task=task,
        batches=batches,
        run_folder=run,
        store=store,
        monitor=monitor,
        stopwatch=stopwatch,
        progress=progress,
        failed_videos=failed_videos,
        damaged_videos=DamagedVideos(world=world, report=monitor.say),
        skipped_steps=skipped_steps,
        lock=lock,
        frozen_fingerprint=initial.frozen_fingerprint,
        stop=stop,
        profiler=open_profiler(profile, run=run, world=world, report=monitor.say),
        updates=Updates(parts=engine.trainable_parts, total=world.sum),
    )


def find_saved(
    run: RunFolder, store: CheckpointStore, *, config: Config, resume: bool, world: World
) -> SavedRun | None:
    """The checkpoint to go on from, the same on all ranks; None for a new run. A collective."""
    chosen = world.on_main(lambda: run.start(store, config=config, resume=resume))
    if chosen is None:
        return None
    checkpoint = world.attempt(lambda: store.confirm(chosen))
    trainable, state = world.attempt(lambda: open_checkpoint(checkpoint))
    return SavedRun(checkpoint=checkpoint, trainable=trainable, state=state)


def open_data(
    config: Config, ds_config: Mapping[str, Any], *, mesh: Mesh, saved: SavedRun | None
) -> tuple[Task, TrainBatches]:
    """The task with its data, which all ranks see alike and a resumed run began with. A collective."""
    world = mesh.world
    task = world.attempt(lambda: open_task(config, mesh=mesh))
    world.same((task.classes, *((len(data), data.videos) for data in (task.train_data, task.test_data))), what="data")
    began_with = saved and saved.state.get("training_data")  # versions before saved none
    if began_with is not None:
        world.attempt(lambda: check_same_data(task.data_fingerprint, began_with))
    batches = TrainBatches(
        num_samples=len(task.train_data),
        global_batch=config.train.global_batch,
        data_rank=mesh.data_rank,
        data_ranks=mesh.data_ranks,
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        seed=config.train.seed,
    )
    return task, batches


def build_model(
    config: Config, ds_config: dict[str, Any], *, task: Task, storage: Storage, stopwatch: Stopwatch, world: World
) -> InitialModel:
    """The model with its pretrained weights, as the seed and the weights file have it. A collective."""
    torch.manual_seed(config.train.seed)  # of the initialisation alone: samples carry their own seeds
    model = world.attempt(lambda: task.build_model(storage=storage, stopwatch=stopwatch))
    vit = model.backbone.vit
    weights = world.attempt(lambda: find_weights(config.backbone, vit))
    reports = weights_reports(weights, config.backbone)
    world.same(reports, what="pretrained weights")
    if weights is None:
        return InitialModel(model=model, frozen_fingerprint=fingerprint(vit), published={}, reports=reports)
    published = world.attempt(lambda: task.restore_published(weights, model))
    frozen = fill_backbone(vit, weights.vit, dtype=config.train.dtype, read=world.is_main, host=partitioner(ds_config))
    return InitialModel(model=model, frozen_fingerprint=frozen, published=published, reports=reports)


def start_engine(
    config: Config,
    ds_config: dict[str, Any],
    *,
    task: Task,
    initial: InitialModel,
    saved: SavedRun | None,
    total_steps: int,
    world: World,
) -> tuple[Engine, Progress]:
    """The engine, its trainable state restored from a checkpoint or a published model. A collective."""
    settings, model = config.train, initial.model
    trainable, progress, source = initial.published, Progress(), str(config.backbone.weights)
    if saved is not None:
        trainable, progress, source = saved.trainable, Progress(**saved.state["progress"]), str(saved.checkpoint)
        frozen = saved.state["frozen_fingerprint"]
        world.on_main(
            lambda: check_fingerprint(
                initial.frozen_fingerprint, frozen, trained=source, weights=config.backbone.weights
            )
        )
        task.load_state_dict(saved.state)
    warmup = average_warms_up(settings, steps=total_steps, trained=AVERAGE in trainable)
    engine = Engine(
        model=model,
        groups=parameter_groups(model, settings),
        average=AverageDecay(settings.ema_decay, warmup=warmup),
        train=settings,
        ds_config=ds_config,
        world=world,
    )
    if trainable:
        engine.load_trainable_state(trainable, source=source, partial=saved is None)
    if saved is not None:
        until_now = {"steps": progress.step, "loss_scale": {}, "ema_warmup": False}  # of versions that saved none
        engine.load_optimizer_state(saved.state.get("optimizer", until_now))
    return engine, progress


def describe_start(task: Task, initial: InitialModel, engine: Engine, *, saved: SavedRun | None) -> list[str]:
    """Lines about the state that the engine starts from."""
    lines = []
    if initial.published and saved is None:
        restored = initial.published[MASTER]
        new = [name for name in engine.trainable_parameters if name not in restored]
        names = summarize_list(new, limit=5, separator=", ")
        lines.append("weights: also loaded adapters and head" + (f"; newly initialised: {names}" if new else ""))
        lines += task.describe_published(restored)
    if engine.average.warmup:
        lines.append("the running average follows more closely at first (train.ema_warmup)")
    return lines


def describe_resume(
    run: RunFolder, store: CheckpointStore, *, config: Config, saved: SavedRun | None, progress: Progress
) -> list[str]:
    """Lines about what a resumed run goes on from, and what is different now; call before `run.describe`."""
    if saved is None:
        return []
    lines = [f"skipped {path}: it is not whole" for path in store.newer_than(saved.checkpoint)]
    lines.append(f"resumed from {saved.checkpoint}, {progress.step} steps done")
    _, settings = run.setting_changes(config)
    if settings:
        lines.append(f"resumed with other settings than before: {', '.join(settings)}")
    if versions := run.version_changes():
        lines.append(f"resumed under other versions than before, so losses may differ in the last digits: {versions}")
    return lines


def guards(
    config: Config, *, mesh: Mesh, engine: Engine, progress: Progress, report: Callable[[str], None]
) -> tuple[FailedVideos, SkippedSteps]:
    """The stop conditions, as far as they had come."""
    failed_videos = FailedVideos(
        fate="replaced by other samples" if mesh.temporal == 1 else "left blank",
        known=progress.failed_videos,
        most=config.data.max_failed_videos,
        world=mesh.world,
        report=report,
    )
    skipped_steps = SkippedSteps(
        parameters=engine.trainable_parameters,
        total=progress.skipped_steps,
        in_a_row=progress.skipped_in_a_row,
        most=config.train.max_skipped_steps,
        world=mesh.world,
        report=report,
    )
    return failed_videos, skipped_steps


def open_profiler(profile: str | None, *, run: RunFolder, world: World, report: Callable[[str], None]) -> Profiler:
    """The profiler of the steps START:STOP; None: of no step."""
    return Profiler(
        steps=parse_profile(profile) if profile else None,
        folder=run.path / "profile",
        rank=world.rank,
        device=world.device,
        active=world.is_main,
        report=report,
    )
