"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.profiler import record_function

from adatad_ds.config.schema import Config
from adatad_ds.data.loader import TrainBatches, make_train_loader
from adatad_ds.data.video_dataset import LoadingSeconds
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.world import World
from adatad_ds.errors import in_words
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.runs.checkpoint import CheckpointStore
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.tasks.base import Evaluation, Task
from adatad_ds.training.guards import DamagedVideos, DataWait, FailedVideos, SkippedSteps, check_finite
from adatad_ds.training.monitor import Monitor, peak_memory_bytes, peak_memory_name
from adatad_ds.training.optim import schedule
from adatad_ds.training.preemption import StopAsked, StopRequest
from adatad_ds.training.profiling import Profiler
from adatad_ds.training.update_stats import Updates
from adatad_ds.weights.trainable_state import AVERAGE, MASTER

LINES_OF_RANKS = 8  # about each rank by itself, at most


@dataclass
class Progress:
    """Progress of a run, saved with every checkpoint."""

    step: int = 0  # optimizer steps done
    failed_videos: list[str] = field(default_factory=list)  # those that could not be read, and why
    skipped_steps: int = 0  # whose gradients had no finite norm
    skipped_in_a_row: int = 0  # the last ones


@dataclass(kw_only=True)
class Trainer:
    """A run put together; `run` is the training loop."""

    config: Config
    world: World
    engine: Engine
    task: Task
    batches: TrainBatches
    run_folder: RunFolder
    store: CheckpointStore
    monitor: Monitor
    stopwatch: Stopwatch
    progress: Progress
    failed_videos: FailedVideos
    damaged_videos: DamagedVideos
    data_wait: DataWait
    skipped_steps: SkippedSteps
    lock: RunLock
    frozen_fingerprint: dict[str, str]  # of rank 0, which saves it
    stop: StopRequest
    profiler: Profiler
    updates: Updates
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    writing: Future[list[str]] | None = None  # the last checkpoint, on rank 0

    def run(self) -> None:
        """Train from the current step to the last epoch's evaluation, or to the end of a step when asked to stop."""
        try:
            self.train()
        finally:  # whatever has happened, what was saved is written
            self.writer.shutdown()
            if self.writing is not None and (error := self.writing.exception()) is not None:
                self.monitor.say(f"warning: {in_words(error)}")

    def train(self) -> None:
        """The loop of `run`."""
        epoch_steps, settings = self.batches.steps_per_epoch, self.config.train
        total_steps = settings.stop_epoch * epoch_steps
        epochs, inside_epoch = divmod(self.progress.step, epoch_steps)
        if epochs and inside_epoch == 0 and not self.evaluate_if_due(epochs):  # a crash may have come after saving
            self.leave_early()
            return
        loader = self.world.attempt(
            lambda: make_train_loader(
                self.task.train_data,
                batches=self.batches.between(self.progress.step, total_steps),
                config=self.config.data,
                pin_memory=self.world.device.type == "cuda",
            )
        )
        micro_batches = iter(loader)
        self.engine.train()
        for step in range(self.progress.step, total_steps):
            with self.profiler.step(step):
                began = time.perf_counter()
                with record_function("data"):
                    accumulated = self.world.attempt(lambda: self.next_batches(micro_batches))
                fetched = time.perf_counter()
                self.engine.set_learning_rate(self.learning_rate(step))
                losses, stops = self.step(accumulated)
                self.progress.step = step + 1
                self.monitor.advance(step, loss=sum(losses.values()))
                if step % settings.log_every_steps == 0 or step + 1 == total_steps:
                    loading = LoadingSeconds.total(batch.seconds for batch in accumulated)
                    self.log(step, losses, data_sec=fetched - began, began=began, loading=loading)
                self.data_wait.add(wait_sec=fetched - began, step_sec=time.perf_counter() - began)
            epoch, inside_epoch = divmod(step + 1, epoch_steps)
            regular = settings.checkpoint_every_steps and (step + 1) % settings.checkpoint_every_steps == 0
            if inside_epoch == 0 or regular or stops:
                self.save()
            if stops:
                self.leave_early()
                return
            if inside_epoch == 0:
                self.log_updates()
                if not self.evaluate_if_due(epoch):
                    self.leave_early()
                    return
                self.engine.train()

    def next_batches(self, micro_batches: Iterator[Any]) -> list[Any]:
        """This rank's micro-batches of the next step.

        Raises:
            WriteError: the last checkpoint could not be written: told here, where the ranks compare errors anyway.
        """
        if self.writing is not None and self.writing.done() and self.writing.exception():
            failed, self.writing = self.writing, None
            failed.result()
        return list(islice(micro_batches, self.engine.accumulation))

    def learning_rate(self, step: int) -> float:
        """The schedule's factor at a step."""
        settings, epoch_steps = self.config.train, self.batches.steps_per_epoch
        return schedule(
            step,
            warmup_steps=settings.warmup_epochs * epoch_steps,
            total_steps=settings.schedule_epochs * epoch_steps,
            warmup_start=settings.warmup_start,
            cosine_end=settings.cosine_end,
            epoch_steps=epoch_steps if settings.cosine == "epoch" else None,
        )

    def step(self, micro_batches: Sequence[Any]) -> tuple[dict[str, float], bool]:
        """One optimizer step on a global batch.

        Returns:
            Its losses, and whether any rank has been asked to stop: the same on all.

        Raises:
            DataError: too many videos could not be read.
            TrainingError: the loss is not finite, or too many steps in a row had gradients that were not.
        """
        task = self.task
        micro_batches, shares = task.step(self.engine, micro_batches)
        errors = [error for batch in micro_batches for error in batch.errors if error is not None]
        damage = self.damaged_videos.untold(found for batch in micro_batches for found in batch.damage)
        *totals, failed, damaged, stops = task.sum_over_samples(*shares, len(errors), len(damage), self.stop.asked)
        if failed:
            self.failed_videos.add(errors)
        if damaged:
            self.damaged_videos.add(damage)
        losses = dict(zip(task.loss_names, totals, strict=True))
        check_finite(step=self.progress.step, losses=losses)
        self.skipped_steps.add(self.progress.step, taken=self.engine.step_taken)
        if stops:
            self.stop.heard()
        return losses, stops > 0

    def stopped(self) -> bool:
        """Whether any rank has been asked to stop: the same on all. A collective."""
        stops = self.world.max(self.stop.asked)[0] > 0
        if stops:
            self.stop.heard()
        return stops

    def leave_early(self) -> None:
        """Mark the run as interrupted: in a message to the user, and in a file for whoever started it. A collective."""
        self.finish_saving()
        self.world.on_main(self.run_folder.mark_interrupted)
        self.monitor.say(f"asked to stop: saved after {self.progress.step} steps; --resume auto continues from there")

    def log(
        self, step: int, losses: Mapping[str, float], *, data_sec: float, began: float, loading: LoadingSeconds
    ) -> None:
        """Record a step's numbers. A collective."""
        peak_bytes = self.world.max(peak_memory_bytes(self.world.device))[0]
        elapsed = time.perf_counter() - began
        frames = self.config.train.global_batch * self.config.sample_frames
        self.monitor.scalars(
            step,
            {
                "loss/total": sum(losses.values()),
                **{f"loss/{name}": value for name, value in losses.items()},
                **self.task.scalars(),
                "train/gradient_norm": self.engine.gradient_norm(),
                "train/skipped_steps": self.skipped_steps.total,
                "train/epoch": (step + 1) / self.batches.steps_per_epoch,
                **{f"lr/{name}": rate for name, rate in self.engine.learning_rates().items()},
                "time/step_sec": elapsed,
                "time/data_wait_sec": data_sec,
                "time/compute_sec": elapsed - data_sec,
                **{f"time/{stage}_sec": seconds for stage, seconds in asdict(loading).items()},
                "time/frames_per_sec": frames / elapsed,
                f"memory/{peak_memory_name(self.world.device)}_gb": peak_bytes / 1e9,
                **{f"segment_sec/{name}": seconds for name, seconds in self.stopwatch.take().items()},
            },
        )

    def log_updates(self) -> None:
        """Record the relative updates of the trainable tensors in an epoch. A collective."""
        step, movement = self.progress.step - 1, self.updates.take()
        self.monitor.scalars(step, movement.scalars())
        for name, values in movement.histograms().items():
            self.monitor.histogram(name, values, step)

    def save(self) -> None:
        """Take a checkpoint, which is written while training goes on, once the one before is. A collective.

        What goes wrong is told at the first step, save or end after that.

        Raises:
            WriteError: the one before could not be written.
            TrainingError: another training has taken over the run's folder.
        """
        began = time.perf_counter()
        self.finish_saving()
        self.world.on_main(self.lock.check)
        self.progress.failed_videos = self.failed_videos.errors
        self.progress.skipped_steps = self.skipped_steps.total
        self.progress.skipped_in_a_row = self.skipped_steps.in_a_row
        compact = self.config.train.compact_checkpoints
        trainable: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensors in self.engine.trainable_state():
            if self.world.is_main:
                for kind, value in tensors.items():
                    trainable.setdefault(kind, {})[name] = value.cpu()
        if compact:
            self.engine.round_trainable_state()
        state = {
            "progress": asdict(self.progress),
            "optimizer": self.engine.optimizer_state(),
            **self.task.state_dict(),
            "training_data": self.task.data_fingerprint,
            "frozen_fingerprint": self.frozen_fingerprint,
        }
        if self.world.is_main:
            write = partial(self.store.save, step=self.progress.step, trainable=trainable, compact=compact, state=state)
            self.writing = self.writer.submit(write)
        self.monitor.scalars(self.progress.step - 1, {"time/checkpoint_sec": time.perf_counter() - began})

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is written. A collective.

        Raises:
            WriteError: it cannot be written.
        """
        writing, self.writing = self.writing, None
        for line in self.world.on_main(lambda: writing.result() if writing else []):
            self.monitor.say(f"warning: {line}")

    def evaluate_if_due(self, epoch: int) -> bool:
        """Evaluate the averaged weights after `epoch` epochs, once, if the recipe asks for it. A collective.

        Returns:
            False if a stop request interrupted it; the resumed run, saved at this step, evaluates then.
        """
        settings = self.config.train
        last = epoch == settings.stop_epoch
        regular = epoch >= settings.eval_from_epoch and (epoch - settings.eval_from_epoch) % settings.eval_every == 0
        done = self.world.on_main(lambda: epoch in self.run_folder.evaluations())
        if done:
            self.finish_saving()
            self.world.on_main(lambda: self.mark_if_best(epoch))  # before which a crash may have come, too
        if done or not (last or regular):
            return True

        def forward(*inputs: Any) -> Any:
            if self.stopped():
                raise StopAsked
            return self.engine(*inputs)

        self.engine.train(False)
        try:
            with self.engine.averaged_weights():
                evaluation = self.task.evaluate(forward, report=self.monitor.say)
        except StopAsked:
            return False
        self.finish_saving()  # of what is marked
        self.world.on_main(lambda: None if evaluation is None else self.record_evaluation(epoch, evaluation))
        return True

    def record_evaluation(self, epoch: int, evaluation: Evaluation) -> None:
        """Save and show an evaluation's results, and mark the best epoch's checkpoint; on rank 0."""
        self.run_folder.add_evaluation(epoch, evaluation)
        self.mark_if_best(epoch)
        if evaluation.operating_point is not None:
            kind = AVERAGE if self.config.train.ema_decay else MASTER
            self.store.set_operating_point(step=self.progress.step, kind=kind, point=evaluation.operating_point)
        (name, scores), best = self.run_folder.scores(), self.run_folder.best_epoch()
        assert best is not None
        values = {f"evaluation/{name}": value for name, value in evaluation.metrics.items()}
        values |= {"evaluation/epoch": epoch, "evaluation/best_epoch": best, f"evaluation/best_{name}": scores[best]}
        step = self.progress.step - 1
        self.monitor.scalars(step, values)
        self.monitor.text("evaluation/table", f"{evaluation.table}\n\n{evaluation.per_class}", step)
        self.monitor.say(f"epoch {epoch} (last so far; best is epoch {best}):\n{evaluation.table}")
        pictures = evaluation.pictures if self.config.train.eval_pictures else {}
        for picture, draw in pictures.items():
            self.monitor.figure(f"pictures/{picture}", partial(draw, f"Epoch {epoch}"), step)

    def mark_if_best(self, epoch: int) -> None:
        """Mark the checkpoint just saved as best if its epoch is the best evaluated one; on rank 0."""
        if self.run_folder.best_epoch() == epoch:
            self.store.mark_best(step=self.progress.step)

    def report_evaluations(self) -> None:
        """Print the scores of the last and the best evaluated epoch."""
        if self.world.is_main and (summary := self.run_folder.summary()):
            self.monitor.say(summary)

    def report_memory(self) -> None:
        """Print the memory that each rank holds, and its peak; of many ranks, the least and the most. A collective."""
        world, kinds = self.world, self.engine.bytes_by_kind()
        own = [peak_memory_bytes(world.device), *kinds.values()]
        if world.size <= LINES_OF_RANKS:
            lines = {f"rank {rank}": sizes for rank, sizes in enumerate(world.gather(own))}
        else:
            least = [-size for size in world.max(*(-size for size in own))]
            lines = {f"{world.size} ranks, the least": least, f"{world.size} ranks, the most": world.max(*own)}
        what = peak_memory_name(world.device).replace("_", " ")
        for whose, (peak, *sizes) in lines.items():
            parts = ", ".join(f"{k.replace('_', ' ')} {size / 1e9:.3f}" for k, size in zip(kinds, sizes, strict=True))
            self.monitor.say(f"memory of {whose}: {what} {peak / 1e9:.2f} GB; held, in GB: {parts}")

    def close(self) -> None:
        """Flush the logs and release the engine."""
        self.profiler.close()
        self.monitor.close()
        self.engine.close()
