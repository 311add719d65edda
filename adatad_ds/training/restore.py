"""Start the engine from a checkpoint of the run, or from a published model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatad_ds.config.schema import Config
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.adapted_video import frozen_blocks, recomputing
from adatad_ds.runs.checkpoint import CheckpointStore, open_checkpoint
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.resume import incomparable
from adatad_ds.tasks.base import Task
from adatad_ds.training.initial_model import InitialModel
from adatad_ds.training.optim import average_warms_up, parameter_groups
from adatad_ds.training.trainer import Progress
from adatad_ds.weights.files import Tensors
from adatad_ds.weights.loading import check_fingerprint
from adatad_ds.weights.trainable_state import AVERAGE


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A checkpoint to resume from.

    Attributes:
        checkpoint: its folder.
        trainable: tensors by kind and parameter name.
        state: everything else that was saved.
    """

    checkpoint: Path
    trainable: Mapping[str, Tensors]
    state: Mapping[str, Any]


def find_saved(
    run: RunFolder, store: CheckpointStore, *, config: Config, resume: bool, world: World
) -> SavedRun | None:
    """The newest complete checkpoint, the same on all ranks; None for a new run. A collective.

    Raises:
        ConfigError: the folder holds another run, or the same one and `resume` is off.
        CheckpointError: none of its checkpoints is complete, or a rank sees another one than rank 0.
    """
    chosen = world.on_main(lambda: run.start(store, config=config, resume=resume))
    if chosen is None:
        return None
    checkpoint = world.attempt(lambda: store.confirm(chosen, thoroughly=world.starts_node and not world.is_main))
    trainable, state = world.attempt(lambda: open_checkpoint(checkpoint))
    return SavedRun(checkpoint=checkpoint, trainable=trainable, state=state)


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
    """The engine, its trainable state restored from a checkpoint or a published model. A collective.

    Raises:
        CheckpointError: the checkpoint was trained with other frozen weights, or does not fit the model.
    """
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
        called_whole=frozen_blocks(model),
        recomputing=recomputing(model),
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


def describe_resume(run: RunFolder, store: CheckpointStore, *, config: Config, saved: SavedRun) -> list[str]:
    """Lines about the checkpoint that a run resumes from, and what has changed; call before `run.describe`."""
    steps_done = saved.state["progress"]["step"]
    lines = [f"skipped incomplete checkpoint {path}" for path in store.newer_than(saved.checkpoint)]
    lines.append(f"resumed from {saved.checkpoint}, {steps_done} steps done")
    _, settings = run.setting_changes(config)
    if settings:
        lines.append(f"resumed with other settings than before: {', '.join(settings)}")
    if (epochs := run.evaluations()) and (changes := incomparable(settings)):
        lines.append(
            f"warning: epochs {', '.join(map(str, epochs))} were evaluated with other settings ({', '.join(changes)}): "
            "their scores do not compare with later ones, among all of which the best epoch is chosen"
        )
    if versions := run.version_changes():
        lines.append(f"resumed under other versions than before, so losses may differ in the last digits: {versions}")
    return lines
