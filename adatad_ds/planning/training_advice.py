"""How long to train on a data set, and what that takes on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.data.inspection.training_length import TrainingLength, count_windows, suggest_length
from adatad_ds.data.sources.facts import DATASETS
from adatad_ds.data.sources.formats import TRAINING
from adatad_ds.errors import UserError
from adatad_ds.models.factory import adapted_blocks
from adatad_ds.planning.memory import step_flop
from adatad_ds.planning.step_time import fp32_is_faster, step_seconds, time_window
from adatad_ds.recipes.catalog import Recipe
from adatad_ds.system.launch import gpu_count

QUICKSTART_VIDEOS = 160  # that tools/quickstart.sh generates to train on
SMALL_SIDE, SMALL_BATCH, SMALL_EFFORT = 112, 2, 0.5  # pixels, windows, and share of the views of a video
SMALL_FRAMES = 256  # of a window


@dataclass(frozen=True, kw_only=True)
class UserData:
    """What the length and the cost of a training depend on.

    Attributes:
        videos: training videos with actions that can be read.
        test_frames: file frames of each test video.
        classes: K.
    """

    videos: int
    test_frames: Sequence[float]
    classes: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """A suggestion: all that `--set` takes, the config that it makes of the recipe, and how long it trains."""

    assignments: list[str]
    config: Config
    length: TrainingLength


def suggest_training(
    recipe: Recipe, window: Sequence[str], data: UserData, *, more: Sequence[str] = (), effort: float = 1.0
) -> Training:
    """The whole suggestion.

    Args:
        recipe: what is changed.
        window: assignments of the data's place, and of window and pyramid.
        data: of the user.
        more: further assignments.
        effort: share of the views of each video.

    Raises:
        ConfigError: the recipe cannot be run so.
    """
    config = override(recipe.config, [*window, *more])
    published = DATASETS[recipe.dataset].published.get(TRAINING) if recipe.dataset in DATASETS else None
    length = suggest_length(
        recipe.config.train,
        recipe_videos=published.videos if published else QUICKSTART_VIDEOS if not recipe.dataset else None,
        videos=data.videos,
        test_windows=count_windows(data.test_frames, config.data),
        most_batch=config.train.global_batch,
        effort=effort,
    )
    by_key = {assignment.partition("=")[0]: assignment for assignment in (*window, *more, *length.assignments())}
    assignments = list(by_key.values())
    return Training(assignments=assignments, config=override(recipe.config, assignments), length=length)


def small_machine(recipe: Recipe, *, device: torch.device) -> list[str]:
    """Assignments that make a recipe's steps cheap: fewer pixels, windows and adapted blocks."""
    data, backbone, train = recipe.config.data, recipe.config.backbone, recipe.config.train
    found = ["data.workers=1", "train.micro_batch=1", "test.batch=1"]
    if train.global_batch > SMALL_BATCH:
        found.append(f"train.global_batch={SMALL_BATCH}")
    if data.resolution > SMALL_SIDE:
        short_side = round(SMALL_SIDE * data.short_side_before_crop / data.resolution)
        found += [f"data.resolution={SMALL_SIDE}", f"data.short_side_before_crop={short_side}"]
    if blocks := adapted_blocks(backbone):
        upper = ",".join(map(str, blocks[len(blocks) // 2 :]))
        found.append(f"backbone.adapter_blocks=[{upper}]")
    if train.precision != "fp32" and device.type == "cpu" and fp32_is_faster(train.dtype):
        found.append("train.precision=fp32")
    return found


def cost(training: Training, data: UserData, *, device: torch.device, cores: int) -> list[str]:
    """Steps, FLOPs of a step, and about how long all takes on this machine."""
    config, length = training.config, training.length
    windows, tested = length.global_batch, count_windows(data.test_frames, config.data)
    lines = [
        f"  {length.epoch_steps} steps per epoch, {length.steps} in total; evaluations: {length.evaluations}, of "
        f"{tested} windows each",
        f"  a step: {windows} windows of {config.data.window_frames} frames, {config.data.resolution} px, "
        f"{windows * step_flop(config) / 1e12:.3g} TFLOP ({windows * step_flop(config, executed=True) / 1e12:.3g} with "
        "recomputation)",
    ]
    try:
        times = time_window(config, num_classes=data.classes, device=device)
    except UserError as error:
        return [*lines, f"  time on this machine: not estimated: {error}"]
    on_gpu = device.type == "cuda"
    step_sec, _ = step_seconds(times, windows=windows, config=config, cores=cores, on_gpu=on_gpu)
    _, evaluation_sec = step_seconds(times, windows=tested, config=config, cores=cores, on_gpu=on_gpu)
    name = torch.cuda.get_device_name() if on_gpu else f"{cores} cores {platform.machine()}"
    total_sec = length.steps * step_sec + length.evaluations * evaluation_sec
    return [
        *lines,
        f"  time on this machine ({name}), about: {step_sec:.3g} s per step, {_spoken(length.epoch_steps * step_sec)} "
        f"per epoch, {_spoken(evaluation_sec)} per evaluation, {_spoken(total_sec)} in total",
    ]


def this_device() -> torch.device:
    """What a training would run on here; `DS_ACCELERATOR=cpu` keeps it off the GPU, as in training."""
    return torch.device("cuda" if gpu_count() else "cpu")


def _spoken(sec: float) -> str:
    for limit, unit_sec, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if sec < limit:
            return f"{sec / unit_sec:.3g} {unit}"
    return f"{sec / 86_400:.3g} days"
