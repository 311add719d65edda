"""A run put together: data, model, weights or checkpoint, engine, and what watches over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from adatad_ds.config.schema import BackboneConfig, Config
from adatad_ds.data.loader import TrainBatches
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import activation_policy, resolve_ds_config
from adatad_ds.distributed.engine import Engine, partitioner
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.errors import summarize_list
from adatad_ds.models.execution.activation_store import Storage
from adatad_ds.models.factory import adapted_blocks
from adatad_ds.recipes.class_order import ClassOrder, describe_logits
from adatad_ds.runs.checkpoint import open_checkpoint
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.runs.resume import check_same_data
from adatad_ds.tasks.detection import DetectionTask
from adatad_ds.tasks.recognition import RecognitionTask
from adatad_ds.training.guards import DamagedVideos, FailedVideos, SkippedSteps
from adatad_ds.training.monitor import Monitor
from adatad_ds.training.optim import average_warms_up, parameter_groups
from adatad_ds.training.preemption import StopRequest
from adatad_ds.training.profiling import Profiler, parse_profile
from adatad_ds.training.trainer import Progress, Trainer
from adatad_ds.training.update_stats import Updates
from adatad_ds.weights.image_layouts import AIMWeights
from adatad_ds.weights.loading import (
    WHERE_FROM,
    check_fingerprint,
    fill_backbone,
    find_weights,
    fingerprint,
    in_published_order,
    published_state,
)
from adatad_ds.weights.trainable_state import AVERAGE, MASTER
from adatad_ds.weights.video_layouts import Weights

CLASS_LOGITS = "head.cls_head.weight"  # of a detector


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
    """Put a run together: task, model, weights or checkpoint, engine. A collective.

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
        ConfigError: settings that contradict each other or the run that is to go on, weights that do not fit.
        DataError: no usable videos or annotations.
        RankError: either of them, on some rank.
    """
    config = world.attempt(lambda: in_published_order(config, order=class_order))
    on_gpu = world.device.type == "cuda"
    settings = config.train
    mesh = Mesh(world=world, config=config)
    ds_config = resolve_ds_config(policy, config=config, ranks=world.size, cuda=on_gpu)
    storage_policy, stopwatch = activation_policy(
        ds_config, config=config, stored_tensors=len(adapted_blocks(config.backbone)), cuda=on_gpu
    )
    store = run.checkpoints(keep=settings.keep_checkpoints)
    chosen = world.on_main(lambda: run.start(store, config=config, resume=resume))
    checkpoint = world.attempt(lambda: store.confirm(chosen)) if chosen else None
    saved, state = world.attempt(lambda: open_checkpoint(checkpoint)) if checkpoint else ({}, {})
    kind = DetectionTask if config.recognition is None else RecognitionTask
    task = world.attempt(lambda: kind(config=config, mesh=mesh, accumulation=ds_config["gradient_accumulation_steps"]))
    world.same((task.classes, *((len(data), data.videos) for data in (task.train_data, task.test_data))), what="data")
    if (began_with := state.get("training_data")) is not None:  # versions before saved none
        world.attempt(lambda: check_same_data(task.data_fingerprint, began_with))
    batches = TrainBatches(
        num_samples=len(task.train_data),
        global_batch=settings.global_batch,
        data_rank=mesh.data_rank,
        data_ranks=mesh.data_ranks,
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        seed=settings.seed,
    )

    torch.manual_seed(settings.seed)  # initialisation only; later randomness belongs to samples
    model = world.attempt(lambda: task.build_model(storage=Storage(storage_policy), stopwatch=stopwatch))
    vit = model.backbone.vit
    progress, trainable = Progress(), {}
    weights = world.attempt(lambda: find_weights(config.backbone, vit))
    world.same(weights_reports(weights, config.backbone), what="pretrained weights")
    if weights is None:
        frozen = fingerprint(vit)
    else:
        trainable = world.attempt(lambda: published_state(weights, model, config=config))
        if isinstance(task, DetectionTask) and isinstance(weights, Weights):
            task.normalizer.value = weights.loss_normalizer or task.normalizer.value
        host = partitioner(ds_config)
        frozen = fill_backbone(vit, weights.vit, dtype=config.train.dtype, read=world.is_main, host=host)
    if checkpoint is not None:
        trainable = saved
        world.on_main(
            lambda: check_fingerprint(
                frozen, state["frozen_fingerprint"], trained=checkpoint, weights=config.backbone.weights
            )
        )
        task.load_state_dict(state)
        progress = Progress(**state["progress"])
    steps = settings.stop_epoch * batches.steps_per_epoch
    warmup = average_warms_up(settings, steps=steps, trained=AVERAGE in trainable)
    engine = Engine(
        model=model,
        groups=parameter_groups(model, settings),
        average=AverageDecay(settings.ema_decay, warmup=warmup),
        train=settings,
        ds_config=ds_config,
        world=world,
    )
    if trainable:
        source = str(checkpoint or config.backbone.weights)
        engine.load_trainable_state(trainable, source=source, partial=checkpoint is None)
    if checkpoint is not None:
        until_now = {"steps": progress.step, "loss_scale": {}, "ema_warmup": False}  # of versions that saved none
        engine.load_optimizer_state(state.get("optimizer", until_now))

    changes, (_, new_settings) = "", ([], [])
    if checkpoint is not None and world.is_main:
        changes, (_, new_settings) = run.version_changes(), run.setting_changes(config)
    world.on_main(lambda: run.describe(config=config, ds_config=ds_config, classes=task.classes))
    monitor = world.attempt(
        lambda: Monitor(
            folder=run.path,
            active=world.is_main,
            start_step=progress.step,
            total_steps=steps,
        )
    )
    monitor.text("config", json.dumps(config.to_dict(), indent=1))
    for line in (*task.reports, *weights_reports(weights, config.backbone)):
        monitor.say(line)
    if trainable and checkpoint is None:
        new = [name for name in engine.trainable_parameters if name not in trainable[MASTER]]
        names = summarize_list(new, limit=5, separator=", ")
        monitor.say("weights: also loaded adapters and head" + (f"; newly initialised: {names}" if new else ""))
        if CLASS_LOGITS in trainable[MASTER] and len(task.classes) > 1:
            monitor.say(describe_logits(task.classes))
    if engine.average.warmup:
        monitor.say("the running average follows more closely at first (train.ema_warmup)")
    if checkpoint is not None:
        for path in store.newer_than(checkpoint):
            monitor.say(f"skipped {path}: it is not whole")
        monitor.say(f"resumed from {checkpoint}, {progress.step} steps done")
    if new_settings:
        monitor.say(f"resumed with other settings than before: {', '.join(new_settings)}")
    if changes:
        monitor.say(f"resumed under other versions than before, so losses may differ in the last digits: {changes}")
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
        failed_videos=FailedVideos(
            fate="replaced by other samples" if mesh.temporal == 1 else "left blank",
            known=progress.failed_videos,
            most=config.data.max_failed_videos,
            world=world,
            report=monitor.say,
        ),
        damaged_videos=DamagedVideos(world=world, report=monitor.say),
        skipped_steps=SkippedSteps(
            parameters=engine.trainable_parameters,
            total=progress.skipped_steps,
            in_a_row=progress.skipped_in_a_row,
            most=settings.max_skipped_steps,
            world=world,
            report=monitor.say,
        ),
        lock=lock,
        frozen_fingerprint=frozen,
        stop=stop,
        profiler=Profiler(
            steps=parse_profile(profile) if profile else None,
            folder=run.path / "profile",
            rank=world.rank,
            device=world.device,
            active=world.is_main,
            report=monitor.say,
        ),
        updates=Updates(parts=engine.trainable_parts, total=world.sum),
    )


def weights_reports(weights: Weights | AIMWeights | None, backbone: BackboneConfig) -> list[str]:
    """What is said of pretrained weights: what they are, and where they come from."""
    if weights is None:
        return []
    terms = WHERE_FROM.get(backbone.name)
    source = [f"weights: those of {backbone.name} come from {terms}"] if terms else []
    return [f"weights: {weights.report()}", *source]
