"""Train a detector: build everything, then the loop of trainer.py.

    deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero3_offload.json --recipe NAME [--set SECTION.KEY=V]

also under torchrun, srun and plain python.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from adatad_ds import config as configuration
from adatad_ds.aim_weights import AIMWeights
from adatad_ds.checkpoint import open_checkpoint
from adatad_ds.class_order import describe_logits
from adatad_ds.compact import AVERAGE, MASTER
from adatad_ds.config import BackboneConfig, Config, ConfigError
from adatad_ds.data.annotations import DataError
from adatad_ds.data.loader import TrainBatches
from adatad_ds.data.video_lists import class_assignments
from adatad_ds.detection_task import DetectionTask
from adatad_ds.ds_config import activation_policy, read_ds_config, resolve_ds_config
from adatad_ds.engine import Engine, weights_host
from adatad_ds.health import DamagedVideos, FailedVideos, SkippedSteps
from adatad_ds.models.build import adapted_blocks
from adatad_ds.models.recogniser import build_model
from adatad_ds.models.stored import Storage
from adatad_ds.monitor import Monitor
from adatad_ds.optim import average_warms_up, parameter_table
from adatad_ds.parallel import World, end_process, launched_ranks, report_error, speaks
from adatad_ds.plan import make_plan
from adatad_ds.preemption import StopRequest
from adatad_ds.pretrained import (
    WHERE_FROM,
    check_fingerprint,
    fill_backbone,
    find_weights,
    fingerprint,
    in_published_order,
    published_state,
)
from adatad_ds.profiling import Profiler, parse_profile
from adatad_ds.recipes import config_diff, find_recipe, recipe_table
from adatad_ds.recognition_task import RecognitionTask
from adatad_ds.resume import check_same_data
from adatad_ds.run_lock import RunLock
from adatad_ds.runs import RunFolder
from adatad_ds.task import Task
from adatad_ds.temporal import Mesh
from adatad_ds.trainer import Progress, Trainer
from adatad_ds.updates import Updates
from adatad_ds.utf8 import use_utf8
from adatad_ds.weight_files import is_to_download
from adatad_ds.weight_layouts import Weights, some

CLASS_LOGITS = "head.cls_head.weight"  # of a detector
DEFAULT_DS_CONFIG = Path(__file__).resolve().parents[1] / "ds_configs" / "zero3_offload.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    try:
        if arguments.deepspeed_config is DEFAULT_DS_CONFIG and speaks():
            print(f"--deepspeed_config without a file: {DEFAULT_DS_CONFIG} is taken", file=sys.stderr)
        if arguments.list_recipes:
            return _show(recipe_table())
        overrides = [*arguments.set, *class_assignments(arguments.classes)]
        config = configuration.override(find_recipe(arguments.recipe).config, overrides)
        if arguments.print_config:
            return _show(json.dumps(config.to_dict(), indent=1))
        if arguments.diff:
            return _show(config_diff(config, find_recipe(arguments.diff).config))
        if arguments.dry_run:
            _show(dry_run(config, arguments.deepspeed_config))
            return _show(weights_that_fit(config))
        if arguments.profile:
            parse_profile(arguments.profile)  # faults show up now
        world = World.join(worker_timeout_sec=config.data.worker_timeout_sec)
        train(config, arguments=arguments, world=world)
    except (ConfigError, DataError) as error:
        report_error(error)
        return 2
    finally:
        if world is not None:
            world.leave()
    return 0


def train(config: Config, *, arguments: argparse.Namespace, world: World) -> None:
    """Build and run; nothing of it is left when this returns."""
    stop = StopRequest()
    run = RunFolder(arguments.run_dir or Path("runs") / arguments.recipe)
    lock = RunLock(run.path)  # rank 0 holds it
    try:
        with stop.listening():
            stale = world.on_main(lock.take)
            trainer = build_trainer(config, arguments=arguments, world=world, stop=stop, run=run, lock=lock)
            if stale:
                trainer.monitor.say(f"the lock of {run.path} was taken over from {stale}")
            trainer.run()
        trainer.report_evaluations()
        trainer.report_memory()
        trainer.close()
    finally:
        lock.release()


def build_trainer(
    config: Config, *, arguments: argparse.Namespace, world: World, stop: StopRequest, run: RunFolder, lock: RunLock
) -> Trainer:
    """Put a run together: task, model, weights or checkpoint, engine.

    Raises:
        ConfigError: settings that contradict each other or the run that is to go on, weights that do not fit.
        DataError: no usable videos or annotations.
    """
    order = find_recipe(arguments.recipe).class_order
    config = world.attempt(lambda: in_published_order(config, order=order))
    on_gpu = world.device.type == "cuda"
    settings = config.train
    mesh = Mesh(world=world, config=config)
    ds_config = resolve_ds_config(
        read_ds_config(arguments.deepspeed_config), config=config, ranks=world.size, cuda=on_gpu
    )
    policy, stopwatch = activation_policy(
        ds_config, config=config, stored_tensors=len(adapted_blocks(config.backbone)), cuda=on_gpu
    )
    store = run.checkpoints(keep=settings.keep_checkpoints)
    chosen = world.on_main(lambda: run.start(store, config=config, resume=arguments.resume == "auto"))
    checkpoint = world.attempt(lambda: store.confirm(chosen)) if chosen else None
    saved, state = world.attempt(lambda: open_checkpoint(checkpoint)) if checkpoint else ({}, {})
    kind = DetectionTask if config.recognition is None else RecognitionTask
    task = kind(config=config, mesh=mesh, accumulation=ds_config["gradient_accumulation_steps"])
    check_data(task, saved=state.get("training_data"), world=world)
    batches = TrainBatches(
        num_samples=len(task.train_data),
        global_batch=settings.global_batch,
        data_rank=mesh.data_rank,
        data_ranks=mesh.data_ranks,
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        seed=settings.seed,
    )

    torch.manual_seed(settings.seed)  # initialisation only; later randomness belongs to samples
    model = task.build_model(storage=Storage(policy), stopwatch=stopwatch)
    vit = model.backbone.vit
    progress, learnt = Progress(), {}
    weights = world.attempt(lambda: find_weights(config.backbone, vit))
    if weights is None:
        frozen = fingerprint(vit)
    else:
        learnt = world.attempt(lambda: published_state(weights, model, config=config))
        if isinstance(task, DetectionTask) and isinstance(weights, Weights):
            task.normalizer.value = weights.loss_normalizer or task.normalizer.value
        host = weights_host(ds_config)
        frozen = fill_backbone(vit, weights.vit, dtype=config.train.dtype, read=world.is_main, host=host)
    if checkpoint is not None:
        learnt = saved
        world.on_main(
            lambda: check_fingerprint(
                frozen, state["frozen_fingerprint"], trained=checkpoint, weights=config.backbone.weights
            )
        )
        task.load_state_dict(state)
        progress = Progress(**state["progress"])
    steps = settings.stop_epoch * batches.steps_per_epoch
    ema_warmup = average_warms_up(settings, steps=steps, trained=AVERAGE in learnt)
    engine = Engine(model=model, config=config, ds_config=ds_config, world=world, ema_warmup=ema_warmup)
    if learnt:
        source = str(checkpoint or config.backbone.weights)
        engine.load_learnt_state(learnt, source=source, partial=checkpoint is None)
    if checkpoint is not None:
        until_now = {"steps": progress.step, "loss_scale": {}, "ema_warmup": False}  # of versions that saved none
        engine.load_optimizer_state(state.get("optimizer", until_now))

    changes, (_, new_settings) = "", ([], [])
    if checkpoint is not None and world.is_main:
        changes, (_, new_settings) = run.version_changes(), run.setting_changes(config)
    if world.is_main:
        run.describe(config=config, ds_config=ds_config, classes=task.classes)
    monitor = Monitor(
        folder=run.path,
        active=world.is_main,
        start_step=progress.step,
        total_steps=steps,
    )
    monitor.text("config", json.dumps(config.to_dict(), indent=1))
    for line in (*task.reports, *weights_reports(weights, config.backbone)):
        monitor.say(line)
    if learnt and checkpoint is None:
        anew = [name for name in engine.learnt_parameters if name not in learnt[MASTER]]
        monitor.say("weights: what had learnt too" + (f"; anew: {some(anew)}" if anew else ""))
        if CLASS_LOGITS in learnt[MASTER] and len(task.classes) > 1:
            monitor.say(describe_logits(task.classes))
    if engine.ema_warmup:
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
            parameters=engine.learnt_parameters,
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
            steps=parse_profile(arguments.profile) if arguments.profile else None,
            folder=run.path / "profile",
            rank=world.rank,
            device=world.device,
            active=world.is_main,
            report=monitor.say,
        ),
        updates=Updates(parts=engine.learnt_parts, total=world.sum),
    )


def check_data(task: Task, *, saved: Mapping[str, Any] | None, world: World) -> None:
    """See that all ranks have the same training data, and a resumed run those that it began with. A collective.

    Args:
        task: of this rank.
        saved: fingerprint of the data that the run began with; None: a new run, or saved by a version without.
        world: the ranks.

    Raises:
        ConfigError: they differ.
    """
    own, first = task.data_fingerprint, world.on_main(lambda: task.data_fingerprint)
    advice = "All nodes must see the same annotations and videos"
    world.attempt(lambda: check_same_data(own, first, whose="that rank 0 sees", advice=advice))
    if saved is not None:
        advice = "Give the old annotations to go on, or start a new run with --run-dir"
        world.attempt(lambda: check_same_data(own, saved, whose="that this run began with", advice=advice))


def weights_reports(weights: Weights | AIMWeights | None, backbone: BackboneConfig) -> list[str]:
    """What is said of pretrained weights: what they are, and where they come from."""
    if weights is None:
        return []
    terms = WHERE_FROM.get(backbone.name)
    source = [f"weights: those of {backbone.name} come from {terms}"] if terms else []
    return [f"weights: {weights.report()}", *source]


def dry_run(config: Config, ds_config: Path | None) -> str:
    """Parameters by group, and with a ds_config the memory that each of the launched ranks will need."""
    classes = len(config.data.classes) or 1
    with torch.device("meta"):
        parameters = parameter_table(build_model(config, num_classes=classes))
    if ds_config is None:
        return parameters
    plan = make_plan(config, ds_config=read_ds_config(ds_config), ranks=launched_ranks(), num_classes=classes)
    return f"{parameters}\n\n{plan.table()}"


def weights_that_fit(config: Config) -> str:
    """What is said of the weights that a config names, by names and shapes alone: what loading them would say.

    Raises:
        ConfigError: as `find_weights` and `published_state`: absent, unreadable, or of another model.
    """
    source, classes, head, clips = config.backbone.weights, config.data.classes, config.head, config.recognition
    if source is not None and is_to_download(source):
        return f"weights: {source} is not in the hub's cache yet; whether it fits is seen when the run has fetched it"
    if not classes:  # then as many as the data have, which are not looked at here: any layer of class logits will do
        head = replace(head, reset_classifier=True)
        clips = None if clips is None else replace(clips, reset_classifier=True)
    config = replace(config, head=head, recognition=clips)
    with torch.device("meta"):
        model = build_model(config, num_classes=len(classes) or 1)
    weights = find_weights(config.backbone, model.backbone.vit)
    if weights is None:
        return "weights: none, the transformer starts at random"
    learnt = published_state(weights, model, config=config)
    what = "transformer and what learns" if learnt else "transformer"
    return "\n".join([*weights_reports(weights, config.backbone), f"weights: they fit the {what}"])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a temporal action detector.", allow_abbrev=False)
    parser.add_argument("--recipe", help="name of an experiment; see --list-recipes")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names by index, one a line; default: the labels, sorted"
    )
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        nargs="?",
        const=DEFAULT_DS_CONFIG,
        metavar="FILE",
        help=f"engine policy; without FILE ds_configs/{DEFAULT_DS_CONFIG.name}",
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--run-dir", type=Path, help="the run's folder; default runs/RECIPE")
    parser.add_argument(
        "--resume", default="never", choices=("never", "auto"), help="auto: go on from the newest checkpoint, if any"
    )
    parser.add_argument("--profile", metavar="START:STOP", help="trace these steps; STOP is not recorded")
    parser.add_argument("--list-recipes", action="store_true", help="print all recipes and exit")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--diff", metavar="RECIPE", help="print what differs from another recipe and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, with a ds_config memory, and whether the weights fit; exit",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    arguments = parser.parse_args(argv)
    if not arguments.list_recipes and arguments.recipe is None:
        parser.error("--recipe NAME is missing; --list-recipes shows all")
    informs = arguments.list_recipes or arguments.print_config or arguments.dry_run or arguments.diff
    if not informs and arguments.deepspeed_config is None:
        parser.error("--deepspeed_config FILE is missing, e.g. ds_configs/zero3_offload.json")
    return arguments


def _show(text: str) -> int:
    if speaks():
        print(text)
    return 0


if __name__ == "__main__":
    use_utf8()
    end_process(main())
