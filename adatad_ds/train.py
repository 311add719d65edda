"""Train a detector: build everything, then a visible loop.

    deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero3_offload.json --recipe NAME [--set SECTION.KEY=V]

also under torchrun, srun and plain python.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from adatad_ds import config as configuration
from adatad_ds.checkpoint import CheckpointStore, frozen_fingerprint, load_checkpoint
from adatad_ds.config import Config, ConfigError
from adatad_ds.data.annotations import DataError
from adatad_ds.data.dataset import Batch, WindowDataset
from adatad_ds.data.loader import TrainBatches, make_test_loader, make_train_loader
from adatad_ds.detection.losses import LossNormalizer
from adatad_ds.engine import Engine, read_ds_config, resolve_ds_config
from adatad_ds.health import FailedVideos, check_finite
from adatad_ds.inference import detect, measure
from adatad_ds.models.detector import build_detector
from adatad_ds.monitor import Monitor, peak_memory_bytes
from adatad_ds.objective import Objective
from adatad_ds.optim import parameter_table, schedule
from adatad_ds.parallel import World, speaks
from adatad_ds.pretrained import load_backbone_weights
from adatad_ds.recipes import find_recipe, recipe_table
from adatad_ds.runs import RunFolder


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint."""

    step: int = 0  # optimizer steps done
    failed_videos: list[str] = field(default_factory=list)  # those that could not be read, and why


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    try:
        if arguments.list_recipes:
            return _show(recipe_table())
        config = configuration.override(find_recipe(arguments.recipe).config, arguments.set)
        if arguments.print_config:
            return _show(json.dumps(config.to_dict(), indent=1))
        if arguments.dry_run:
            with torch.device("meta"):
                return _show(parameter_table(build_detector(config, num_classes=len(config.data.classes) or 1)))
        world = World.join()
        trainer = build_trainer(config, arguments=arguments, world=world)
        trainer.run()
        trainer.close()
    except (ConfigError, DataError) as error:
        if speaks():
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        if world is not None:
            world.leave()
    return 0


def build_trainer(config: Config, *, arguments: argparse.Namespace, world: World) -> Trainer:
    """Put a run together: data, detector, weights or checkpoint, engine.

    Raises:
        ConfigError: settings that contradict each other, weights that do not fit.
        DataError: no usable videos or annotations.
    """
    on_gpu = world.device.type == "cuda"
    settings = config.train
    ds_config = resolve_ds_config(
        read_ds_config(arguments.deepspeed_config), config=config, data_ranks=world.size, cuda=on_gpu
    )
    run = RunFolder(arguments.run_dir or Path("runs") / arguments.recipe)
    store = run.checkpoints(keep=settings.keep_checkpoints)
    checkpoint = run.start(store, resume=arguments.resume == "auto")
    train_data = WindowDataset.for_training(config.data, seed=settings.seed, repeats=settings.repeats)
    test_data = WindowDataset.for_testing(config.data)
    batches = TrainBatches(
        num_samples=len(train_data),
        global_batch=settings.global_batch,
        data_rank=world.rank,
        data_ranks=world.size,
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        seed=settings.seed,
    )

    torch.manual_seed(settings.seed)  # initialisation only; later randomness belongs to samples
    detector = build_detector(config, num_classes=len(train_data.classes))
    if config.backbone.weights is not None:
        load_backbone_weights(detector.backbone.vit, config.backbone.weights)
    fingerprint = frozen_fingerprint(detector)
    normalizer = LossNormalizer(initial=config.head.loss_normalizer, momentum=config.head.loss_normalizer_momentum)
    progress, learnt = Progress(), None
    if checkpoint is not None:
        learnt, state = load_checkpoint(checkpoint)
        if state["frozen_fingerprint"] != fingerprint:
            raise ConfigError(
                f"{checkpoint} was trained on other frozen weights than those of backbone.weights="
                f"{config.backbone.weights}; resume with the weights that the run began with"
            )
        detector.load_state_dict(learnt["master"], strict=False)
        normalizer.load_state_dict(state["loss_normalizer"])
        progress = Progress(**state["progress"])
    engine = Engine(model=detector, config=config, ds_config=ds_config, world=world)
    if learnt is not None:
        engine.load_learnt_state(learnt, steps=progress.step)

    if world.is_main:
        run.describe(config=config, ds_config=ds_config, classes=train_data.classes)
    monitor = Monitor(
        folder=run.path,
        active=world.is_main,
        start_step=progress.step,
        total_steps=settings.stop_epoch * batches.steps_per_epoch,
    )
    monitor.text("config", json.dumps(config.to_dict(), indent=1))
    for line in (*train_data.reports, *test_data.reports):
        monitor.say(f"data: {line}")
    if checkpoint is not None:
        monitor.say(f"resumed from {checkpoint}, {progress.step} steps done")
    return Trainer(
        config=config,
        world=world,
        engine=engine,
        objective=Objective(
            config=config,
            num_classes=len(train_data.classes),
            normalizer=normalizer,
            accumulation=engine.accumulation,
            world=world,
        ),
        train_data=train_data,
        test_data=test_data,
        batches=batches,
        run_folder=run,
        store=store,
        monitor=monitor,
        progress=progress,
        failed_videos=FailedVideos(
            known=progress.failed_videos, most=config.data.max_failed_videos, world=world, report=monitor.say
        ),
        fingerprint=fingerprint,
    )


@dataclass(kw_only=True)
class Trainer:
    """A run put together; `run` is the training loop."""

    config: Config
    world: World
    engine: Engine
    objective: Objective
    train_data: WindowDataset
    test_data: WindowDataset
    batches: TrainBatches
    run_folder: RunFolder
    store: CheckpointStore
    monitor: Monitor
    progress: Progress
    failed_videos: FailedVideos
    fingerprint: str

    def run(self) -> None:
        """From the step reached to the last epoch's evaluation."""
        epoch_steps, settings = self.batches.steps_per_epoch, self.config.train
        total_steps = settings.stop_epoch * epoch_steps
        if self.progress.step and self.progress.step % epoch_steps == 0:
            self.evaluate_if_due(self.progress.step // epoch_steps)  # a crash may have come between save and evaluation
        loader = make_train_loader(
            self.train_data,
            batches=self.batches.between(self.progress.step, total_steps),
            config=self.config.data,
            pin_memory=self.world.device.type == "cuda",
        )
        micro_batches = iter(loader)
        self.engine.train()
        for step in range(self.progress.step, total_steps):
            began = time.perf_counter()
            accumulated = list(islice(micro_batches, self.engine.accumulation))
            fetched = time.perf_counter()
            warmup_steps, cosine_end = settings.warmup_epochs * epoch_steps, settings.schedule_epochs * epoch_steps
            self.engine.set_learning_rate(schedule(step, warmup_steps=warmup_steps, total_steps=cosine_end))
            classification, regression = self.step(accumulated)
            self.progress.step = step + 1
            self.monitor.advance(step, f"loss {classification + regression:.4f}")
            if step % settings.log_every_steps == 0 or step + 1 == total_steps:
                self.log(step, classification, regression, data_sec=fetched - began, began=began)
            epoch, inside_epoch = divmod(step + 1, epoch_steps)
            if inside_epoch == 0 or (
                settings.checkpoint_every_steps and (step + 1) % settings.checkpoint_every_steps == 0
            ):
                self.save()
            if inside_epoch == 0:
                self.evaluate_if_due(epoch)
                self.engine.train()

    def step(self, micro_batches: Sequence[Batch]) -> tuple[float, float]:
        """One optimizer step on a global batch; its classification and regression loss, the same on all ranks.

        Raises:
            DataError: too many videos could not be read.
            ConfigError: the loss is not finite.
        """
        device = self.world.device
        sums = torch.zeros(2, device=device)
        for batch, targets in zip(micro_batches, self.objective.begin_step(micro_batches), strict=True):
            frames = batch.frames.to(device, non_blocking=True)
            predictions = self.engine(frames, batch.valid.to(device), batch.seeds)
            classification, regression = self.objective.losses(predictions, targets)
            self.engine.backward(self.objective.to_backward(classification + regression))
            self.engine.step()
            sums += torch.stack([classification.detach(), regression.detach()])
        errors = [error for batch in micro_batches for error in batch.errors if error is not None]
        classification, regression, failed = self.world.sum(sums[0], sums[1], len(errors))
        if failed:
            self.failed_videos.add(errors)
        check_finite(step=self.progress.step, classification=classification, regression=regression)
        return classification, regression

    def log(self, step: int, classification: float, regression: float, *, data_sec: float, began: float) -> None:
        """Record a step's numbers. A collective."""
        peak_bytes = self.world.max(peak_memory_bytes(self.world.device))[0]
        elapsed = time.perf_counter() - began
        frames = self.config.train.global_batch * self.config.data.window_frames
        self.monitor.scalars(
            step,
            {
                "loss/total": classification + regression,
                "loss/classification": classification,
                "loss/regression": regression,
                "loss/normalizer": self.objective.normalizer.value,
                "train/gradient_norm": self.engine.gradient_norm(),
                "train/epoch": (step + 1) / self.batches.steps_per_epoch,
                **{f"lr/{name}": rate for name, rate in self.engine.learning_rates().items()},
                "time/step_sec": elapsed,
                "time/data_wait_sec": data_sec,
                "time/compute_sec": elapsed - data_sec,
                "time/frames_per_sec": frames / elapsed,
                "memory/peak_gb": peak_bytes / 1e9,
            },
        )

    def save(self) -> None:
        """Write a checkpoint. A collective."""
        self.progress.failed_videos = self.failed_videos.errors
        learnt = self.engine.learnt_state()
        if self.world.is_main:
            state = {
                "progress": asdict(self.progress),
                "loss_normalizer": self.objective.normalizer.state_dict(),
                "frozen_fingerprint": self.fingerprint,
            }
            self.store.save(step=self.progress.step, learnt=learnt, state=state)

    def evaluate_if_due(self, epoch: int) -> None:
        """Evaluate the averaged weights after `epoch` epochs, where the recipe says so, once. A collective."""
        settings = self.config.train
        last = epoch == settings.stop_epoch
        regular = epoch >= settings.eval_from_epoch and (epoch - settings.eval_from_epoch) % settings.eval_every == 0
        done = any(self.world.gather(epoch in self.run_folder.evaluations()))
        if done or not (last or regular):
            return
        videos = self.test_data.videos
        loader = make_test_loader(
            self.test_data,
            config=self.config.data,
            batch=self.config.test.batch,
            rank=self.world.rank,
            ranks=self.world.size,
            pin_memory=self.world.device.type == "cuda",
        )
        self.engine.train(False)
        with self.engine.averaged_weights():
            results = detect(
                forward=self.engine,
                batches=loader,
                videos=[video.name for video in videos],
                classes=self.train_data.classes,
                config=self.config,
                world=self.world,
                report=self.monitor.say,
            )
        if not self.world.is_main:
            return
        metrics = measure(results, videos=videos, config=self.config)
        self.run_folder.add_evaluation(epoch, results=results, metrics=metrics)
        step = self.progress.step - 1
        self.monitor.scalars(step, {f"evaluation/{name}": value for name, value in metrics.to_dict().items()})
        best = self.run_folder.best_epoch()
        if best == epoch:
            self.store.mark_best(step=self.progress.step)
        self.monitor.say(f"epoch {epoch} (last so far; best is epoch {best}):\n{metrics.table()}")

    def close(self) -> None:
        """Flush the logs and let go of the engine."""
        self.monitor.close()
        self.engine.close()


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
    parser.add_argument("--list-recipes", action="store_true", help="print all recipes and exit")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--dry-run", action="store_true", help="print the parameters by group and exit")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    arguments = parser.parse_args(argv)
    if not arguments.list_recipes and arguments.recipe is None:
        parser.error("--recipe NAME is missing; --list-recipes shows all")
    informs = arguments.list_recipes or arguments.print_config or arguments.dry_run
    if not informs and arguments.deepspeed_config is None:
        parser.error("--deepspeed_config FILE is missing, e.g. ds_configs/zero3_offload.json")
    return arguments


def _show(text: str) -> int:
    if speaks():
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
