"""One training from start to end, in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad_ds.config.schema import Config
from adatad_ds.distributed.world import World
from adatad_ds.recipes.class_order import ClassOrder
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.training.build import CacheFeatures, Session, build_trainer
from adatad_ds.training.preemption import StopRequest


def train(
    config: Config,
    ds_config: Mapping[str, Any],
    *,
    folder: Path,
    class_order: ClassOrder | None,
    resume: bool,
    profile: str | None,
    mirrors: Sequence[str],
    world: World,
    stop: StopRequest,
    cache_features: CacheFeatures,
) -> None:
    """Build the trainer and run it; nothing stays alive when this returns. A collective.

    Args:
        config: the run's config, as the user wants it.
        ds_config: the engine's policy, as in its file.
        folder: the run's folder.
        class_order: classes of a published detector's logits; None: unknown.
        resume: continue from the newest complete checkpoint, if any.
        profile: START:STOP, the steps to trace.
        mirrors: names of libraries that get the scalars, too.
        world: the ranks.
        stop: whether this rank has been asked to stop.
        cache_features: see `build_trainer`.
    """
    run = RunFolder(folder)
    lock = RunLock(run.path)  # rank 0 holds it
    try:
        stale = world.on_main(lock.take)
        trainer = build_trainer(
            config,
            ds_config,
            class_order=class_order,
            resume=resume,
            cache_features=cache_features,
            session=Session(run=run, lock=lock, world=world, stop=stop, profile=profile, mirrors=mirrors),
        )
        if stale:
            trainer.monitor.say(f"the lock of {run.path} was taken over from {stale}")
        trainer.run()
        trainer.report_evaluations()
        trainer.report_memory()
        trainer.close()
    finally:
        lock.release()
