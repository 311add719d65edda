"""Train a detector: build everything, then the loop of trainer.py.

    deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero3_offload.json --recipe NAME [--set SECTION.KEY=V]

also under torchrun, srun and plain python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from adatad_ds import config as configuration
from adatad_ds.aim_weights import AIMWeights
from adatad_ds.checkpoint import open_checkpoint
from adatad_ds.compact import MASTER
from adatad_ds.config import BackboneConfig, Config, ConfigError
from adatad_ds.data.loader import TrainBatches
from adatad_ds.detection_task import DetectionTask
from adatad_ds.ds_config import activation_policy, read_ds_config, resolve_ds_config
from adatad_ds.engine import Engine, weights_host
from adatad_ds.health import FailedVideos
from adatad_ds.launch import has_launcher, launched_rank, launched_ranks
from adatad_ds.models.build import adapted_blocks
from adatad_ds.models.recogniser import build_model
from adatad_ds.models.stored import Storage
from adatad_ds.monitor import Monitor
from adatad_ds.optim import parameter_table
from adatad_ds.parallel import World
from adatad_ds.plan import make_plan
from adatad_ds.preemption import StopRequest
from adatad_ds.pretrained import (
    WHERE_FROM,
    check_fingerprint,
    fill_backbone,
    find_weights,
    fingerprint,
    published_state,
)
from adatad_ds.process import report_error, run_process
from adatad_ds.profiling import Profiler, parse_profile
from adatad_ds.recipes import config_diff, find_recipe, recipe_table
from adatad_ds.recognition_task import RecognitionTask
from adatad_ds.runs import RunFolder
from adatad_ds.temporal import Mesh
from adatad_ds.trainer import Progress, Trainer
from adatad_ds.updates import Updates
from adatad_ds.weight_layouts import Weights, some


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    stop = StopRequest(launched=has_launcher(), rank=launched_rank())
    try:
        if arguments.list_recipes or arguments.print_config or arguments.diff or arguments.dry_run:
            return _show(inform(arguments))
        world = World.join()
        config, ds_config = world.attempt(lambda: read_settings(arguments))
        world.same((config, ds_config), what="settings (recipe, --set, DeepSpeed config)")
        world.allow(hang_timeout_sec=config.train.hang_timeout_sec)
        with stop.listening(timeout_sec=config.train.stop_timeout_sec):
            train(config, ds_config, arguments=arguments, world=world, stop=stop)
        world.leave()
    except Exception as error:
        return report_error(error, world)
    return 0


def inform(arguments: argparse.Namespace) -> str:
    """What was asked for instead of a training."""
    if arguments.list_recipes:
        return recipe_table()
    config = configuration.override(find_recipe(arguments.recipe).config, arguments.set)
    if arguments.print_config:
        return json.dumps(config.to_dict(), indent=1)
    if arguments.diff:
        return config_diff(config, find_recipe(arguments.diff).config)
    return dry_run(config, arguments.deepspeed_config)


def read_settings(arguments: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The config, and the ds_config as its file has it."""
    if arguments.profile:
        parse_profile(arguments.profile)  # faults show up now
    config = configuration.override(find_recipe(arguments.recipe).config, arguments.set)
    return config, read_ds_config(arguments.deepspeed_config)


def train(
    config: Config, ds_config: Mapping[str, Any], *, arguments: argparse.Namespace, world: World, stop: StopRequest
) -> None:
    """Build and run; nothing of it is left when this returns."""
    trainer = build_trainer(config, ds_config, arguments=arguments, world=world, stop=stop)
    trainer.run()
    trainer.report_evaluations()
    trainer.report_memory()
    trainer.close()


def build_trainer(
    config: Config, policy: Mapping[str, Any], *, arguments: argparse.Namespace, world: World, stop: StopRequest
) -> Trainer:
    """Put a run together: task, model, weights or checkpoint, engine.

    Raises:
        ConfigError: settings that contradict each other, weights that do not fit.
        DataError: no usable videos or annotations.
        RankError: either of them, on some rank.
    """
    on_gpu = world.device.type == "cuda"
    settings = config.train
    mesh = Mesh(world=world, config=config)
    ds_config = resolve_ds_config(policy, config=config, ranks=world.size, cuda=on_gpu)
    storage_policy, stopwatch = activation_policy(
        ds_config, config=config, stored_tensors=len(adapted_blocks(config.backbone)), cuda=on_gpu
    )
    run = RunFolder(arguments.run_dir or Path("runs") / arguments.recipe)
    world.on_main(lambda: make_run_folder(run.path))
    store = run.checkpoints(keep=settings.keep_checkpoints)
    checkpoint = run.start(store, resume=arguments.resume == "auto")
    kind = DetectionTask if config.recognition is None else RecognitionTask
    task = world.attempt(lambda: kind(config=config, mesh=mesh, accumulation=ds_config["gradient_accumulation_steps"]))
    world.same((task.classes, *((len(data), data.videos) for data in (task.train_data, task.test_data))), what="data")
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
    progress, learnt = Progress(), {}
    weights = world.attempt(lambda: find_weights(config.backbone, vit))
    world.same(weights_reports(weights, config.backbone), what="pretrained weights")
    if weights is None:
        frozen = fingerprint(vit)
    else:
        learnt = world.attempt(lambda: published_state(weights, model, config=config))
        if isinstance(task, DetectionTask) and isinstance(weights, Weights):
            task.normalizer.value = weights.loss_normalizer or task.normalizer.value
        host = weights_host(ds_config)
        frozen = fill_backbone(vit, weights.vit, dtype=config.train.dtype, read=world.is_main, host=host)
    if checkpoint is not None:
        learnt, state = world.attempt(lambda: open_checkpoint(checkpoint))
        world.on_main(
            lambda: check_fingerprint(
                frozen, state["frozen_fingerprint"], trained=checkpoint, weights=config.backbone.weights
            )
        )
        task.load_state_dict(state)
        progress = Progress(**state["progress"])
    engine = Engine(model=model, config=config, ds_config=ds_config, world=world)
    if learnt:
        engine.load_learnt_state(learnt, steps=progress.step)

    changes = run.version_changes() if checkpoint is not None and world.is_main else ""
    world.on_main(lambda: run.describe(config=config, ds_config=ds_config, classes=task.classes))
    monitor = world.attempt(
        lambda: Monitor(
            folder=run.path,
            active=world.is_main,
            start_step=progress.step,
            total_steps=settings.stop_epoch * batches.steps_per_epoch,
        )
    )
    monitor.text("config", json.dumps(config.to_dict(), indent=1))
    for line in (*task.reports, *weights_reports(weights, config.backbone)):
        monitor.say(line)
    if learnt and checkpoint is None:
        anew = [name for name in engine.learnt_names if name not in learnt[MASTER]]
        monitor.say("weights: what had learnt too" + (f"; anew: {some(anew)}" if anew else ""))
    for path in store.broken():
        monitor.say(f"passed over {path}: it is not whole")
    if checkpoint is not None:
        monitor.say(f"resumed from {checkpoint}, {progress.step} steps done")
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


def make_run_folder(path: Path) -> None:
    """Make a run's folder, and try to write there.

    Raises:
        ConfigError: it is none, or may not be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"--run-dir {path} cannot be a run's folder: {error.strerror} ({error.filename}); name one that can be "
            "made and written"
        ) from error


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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a temporal action detector.", allow_abbrev=False)
    parser.add_argument("--recipe", help="name of an experiment; see --list-recipes")
    parser.add_argument("--deepspeed_config", type=Path, help="engine policy, e.g. ds_configs/zero3_offload.json")
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
        help="print parameters and, with a ds_config, memory; exit",
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
    if launched_rank() == 0:
        print(text)
    return 0


if __name__ == "__main__":
    run_process(main)
