"""Build a trainer: data, model, restored state, stop conditions and logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from adatad_ds.config.backbone import FEATURES
from adatad_ds.config.schema import Config
from adatad_ds.data.features.plan import describe_cache
from adatad_ds.data.loader import TrainBatches
from adatad_ds.distributed.ds_config import activation_policy, resolve_ds_config
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.models.execution.activation_store import Storage, StoragePolicy
from adatad_ds.models.execution.compiling import compile_regions
from adatad_ds.models.factory import Runtime, stored_outputs_of
from adatad_ds.planning.activations import Activations
from adatad_ds.planning.memory import make_plan
from adatad_ds.recipes.class_order import ClassOrder
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.runs.mirrors import open_mirrors
from adatad_ds.runs.resume import check_same_data
from adatad_ds.system.launch import cores, local_ranks
from adatad_ds.tasks.base import Task
from adatad_ds.tasks.factory import open_task
from adatad_ds.training.guards import DamagedVideos, DataWait, FailedVideos, SkippedSteps
from adatad_ds.training.initial_model import InitialModel, build_initial_model
from adatad_ds.training.monitor import Monitor
from adatad_ds.training.preemption import StopRequest
from adatad_ds.training.profiling import Profiler, parse_profile
from adatad_ds.training.restore import SavedRun, describe_resume, find_saved, start_engine
from adatad_ds.training.trainer import Progress, Trainer
from adatad_ds.training.update_stats import Updates
from adatad_ds.weights.loading import in_published_order


class CacheFeatures(Protocol):
    """Fills a folder with the features of a config's videos; see `inference.feature_cache`, which is not imported."""

    def __call__(self, config: Config, *, folder: Path, world: World) -> tuple[Config, dict[str, str]]:
        """The config that reads the features, and the fingerprint of the frozen backbone. A collective."""
        ...


@dataclass(frozen=True, kw_only=True)
class Session:
    """This process's part in a run.

    Attributes:
        run: the run's folder.
        lock: of that folder, held by rank 0.
        world: the ranks.
        stop: whether this rank has been asked to stop.
        profile: START:STOP, the steps to trace; None: no step.
        mirrors: names of libraries that get the scalars, too.
    """

    run: RunFolder
    lock: RunLock
    world: World
    stop: StopRequest
    profile: str | None = None
    mirrors: Sequence[str] = ()


def build_trainer(
    config: Config,
    policy: Mapping[str, Any],
    *,
    class_order: ClassOrder | None,
    resume: bool,
    cache_features: CacheFeatures,
    session: Session,
) -> Trainer:
    """Build a run's trainer. A collective.

    Args:
        config: of the run, as the user wants it.
        policy: the ds_config as its file has it.
        class_order: classes of a published detector's logits; None: unknown.
        resume: continue from the newest complete checkpoint, if any.
        cache_features: called with `backbone.cache_features`.
        session: this process's part in the run.

    Raises:
        ConfigError: settings that contradict each other, or the run that is to go on.
        DataError: no usable videos or annotations.
        CheckpointError: weights or a checkpoint that cannot be read or do not fit.
        RankError: any of these, on some rank.
    """
    run, world = session.run, session.world
    config = world.attempt(lambda: in_published_order(config, order=class_order))
    mesh = Mesh(world=world, config=config)
    ds_config = resolve_ds_config(policy, config=config, ranks=world.size, cuda=world.device.type == "cuda")
    activations = place_activations(config, policy, world=world)
    runtime = make_runtime(config, ds_config, activations=activations, mesh=mesh)

    store = run.checkpoints(keep=config.train.keep_checkpoints)
    saved = find_saved(run, store, config=config, resume=resume, world=world)
    reads, frozen = config, None
    if config.backbone.cache_features:
        reads, frozen = cache_features(config, folder=run.path / FEATURES, world=world)
    task, batches = open_data(reads, ds_config, mesh=mesh, saved=saved)
    initial = build_initial_model(config, ds_config, task=task, runtime=runtime, world=world, cached=frozen)
    if config.train.compile:
        world.attempt(lambda: compile_regions(initial.model, device=world.device))
    total_steps = config.train.stop_epoch * batches.steps_per_epoch
    engine, progress = start_engine(
        config, ds_config, task=task, initial=initial, saved=saved, total_steps=total_steps, world=world
    )

    lines = [*task.reports, *initial.reports]
    if config.backbone.cache_features:
        lines.append(describe_cache(config.data, clip_frames=config.clip_frames))
    if activations is not None:
        lines.append(str(activations))
    if saved is None:
        lines += initial.describe_published(task)
    if engine.average.warmup:
        lines.append("the running average follows more closely at first (train.ema_warmup)")
    if saved is not None and world.is_main:
        lines += describe_resume(run, store, config=config, saved=saved)
    epochs_done = progress.step // batches.steps_per_epoch
    lines += world.on_main(lambda: run.set_aside_evaluations(after=epochs_done))
    world.on_main(lambda: run.describe(config=config, ds_config=ds_config, classes=task.classes))
    monitor = world.attempt(lambda: open_monitor(config, session, start_step=progress.step, total_steps=total_steps))
    monitor.text("config", json.dumps(config.to_dict(), indent=1))
    for line in lines:
        monitor.say(line)
    return assemble(
        config, session, task=task, batches=batches, initial=initial, engine=engine, progress=progress, monitor=monitor
    )


def open_monitor(config: Config, session: Session, *, start_step: int, total_steps: int) -> Monitor:
    """The run's log, with its mirrors; of rank 0, silent on the others."""
    folder, active = session.run.path, session.world.is_main
    mirrors = None
    if session.mirrors and active:
        mirrors = open_mirrors(
            session.mirrors, folder=folder, config=config, resumed=start_step > 0, report=partial(print, flush=True)
        )
    return Monitor(folder=folder, active=active, start_step=start_step, total_steps=total_steps, mirrors=mirrors)


def place_activations(config: Config, policy: Mapping[str, Any], *, world: World) -> Activations | None:
    """Where activations wait within `backbone.activation_memory_gb`; None: it is not set. A collective.

    Raises:
        ConfigError: too little memory, or a device whose memory is not known.
        RankError: either of these, on some rank.
    """
    if config.backbone.activation_memory_gb is None:
        return None
    cuda = world.device.type == "cuda"
    memory = torch.cuda.get_device_properties(world.device).total_memory / 1e9 if cuda else None
    if memory is not None:
        memory = -world.max(-memory)[0]  # the smallest: all ranks keep alike, as ZeRO-3 gathers weights for all
    return world.attempt(
        lambda: (
            make_plan(
                config,
                ds_config=policy,
                ranks=world.size,
                num_classes=len(config.data.classes) or 1,
                memory_gb=memory,
                cuda=cuda,
            ).activations
        )
    )


def make_runtime(
    config: Config, ds_config: Mapping[str, Any], *, activations: Activations | None, mesh: Mesh
) -> Runtime:
    """How this rank runs the backbone: its share of windows, and where activations wait.

    Args:
        config: of the run.
        ds_config: the resolved one.
        activations: as planned; None: as config and ds_config have them.
        mesh: the ranks.

    Raises:
        ConfigError: a wrong section `activation_checkpointing`.
    """
    stored, cuda = len(stored_outputs_of(config.backbone)), mesh.world.device.type == "cuda"
    policy, stopwatch = activation_policy(ds_config, config=config, stored_tensors=stored, cuda=cuda)
    if activations is None:
        return Runtime(window=mesh.window(), storage=Storage(policy), stopwatch=stopwatch)
    policy = StoragePolicy(
        offload=activations.on_device < activations.stored,
        device_bytes=activations.on_device * activations.tensor_bytes,
    )
    return Runtime(
        window=mesh.window(),
        storage=Storage(policy),
        retention=activations.retention,
        clips_per_chunk=activations.clips_per_chunk,
        stopwatch=stopwatch,
    )


def open_data(
    config: Config, ds_config: Mapping[str, Any], *, mesh: Mesh, saved: SavedRun | None
) -> tuple[Task, TrainBatches]:
    """The task with its data, checked to be the same on all ranks and in a resumed run. A collective.

    Raises:
        ConfigError: data that are not those that the resumed run began with.
        DataError: no usable videos or annotations.
    """
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


def assemble(
    config: Config,
    session: Session,
    *,
    task: Task,
    batches: TrainBatches,
    initial: InitialModel,
    engine: Engine,
    progress: Progress,
    monitor: Monitor,
) -> Trainer:
    """The trainer, with the stop conditions' counts as restored."""
    world, report = session.world, monitor.say
    failed_videos = FailedVideos(
        fate="replaced by other samples" if config.parallel.temporal == 1 else "left blank",
        known=progress.failed_videos,
        most=config.data.max_failed_videos,
        world=world,
        report=report,
    )
    skipped_steps = SkippedSteps(
        parameters=engine.trainable_parameters,
        total=progress.skipped_steps,
        in_a_row=progress.skipped_in_a_row,
        most=config.train.max_skipped_steps,
        world=world,
        report=report,
    )
    return Trainer(
        config=config,
        world=world,
        engine=engine,
        task=task,
        batches=batches,
        run_folder=session.run,
        store=session.run.checkpoints(keep=config.train.keep_checkpoints),
        monitor=monitor,
        stopwatch=initial.stopwatch,
        progress=progress,
        failed_videos=failed_videos,
        damaged_videos=DamagedVideos(world=world, report=report),
        data_wait=DataWait(
            workers=config.data.workers,
            spare_cores=world.device.type == "cuda" or cores() > local_ranks(),
            report=report,
        ),
        skipped_steps=skipped_steps,
        lock=session.lock,
        frozen_fingerprint=initial.frozen_fingerprint,
        stop=session.stop,
        profiler=open_profiler(session, report=report),
        updates=Updates(parts=engine.trainable_parts, total=world.sum),
    )


def open_profiler(session: Session, *, report: Callable[[str], None]) -> Profiler:
    """The profiler of the session's steps."""
    return Profiler(
        steps=parse_profile(session.profile) if session.profile else None,
        folder=session.run.path / "profile",
        rank=session.world.rank,
        device=session.world.device,
        active=session.world.is_main,
        report=report,
    )
