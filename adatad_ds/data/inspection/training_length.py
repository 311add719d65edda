"""Length of training for a number of videos: batch, repeats, epochs, warm-up, averaging and evaluations.

The more videos, the less often the published trainings see each: 60 times each of THUMOS14's 200 training videos,
35 times EPIC-Kitchens' 495, 20 times Charades' 7,985, 15 times ActivityNet's 10,024. A fit through these is
views ~ videos ** -0.36; a recipe is scaled along it from its own number of videos to the user's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from adatad_ds.config.schema import DataConfig, TrainConfig

VIEWS_EXPONENT = -0.36
EPOCH_STEPS, LEAST_EPOCHS = 50, 10  # minimum steps per epoch, unless fewer than the minimum of epochs would be left
MOST_EVALUATIONS = 11
EVALUATION_SHARE = 0.25  # of the training time, for evaluations
BACKWARD_COST = 3.0  # a training window's cost, in forward passes


@dataclass(frozen=True, kw_only=True)
class TrainingLength:
    """Settings of `train`, by their names there, and derived values."""

    global_batch: int
    repeats: int
    stop_epoch: int
    schedule_epochs: int
    warmup_epochs: float
    ema_decay: float
    eval_from_epoch: int
    eval_every: int
    epoch_steps: int
    evaluations: int
    reasons: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.stop_epoch * self.epoch_steps

    def assignments(self) -> list[str]:
        """Assignments for `--set`."""
        names = ("global_batch", "repeats", "stop_epoch", "schedule_epochs", "warmup_epochs", "ema_decay")
        return [f"train.{name}={getattr(self, name)}" for name in (*names, "eval_from_epoch", "eval_every")]


def suggest_length(
    train: TrainConfig,
    *,
    recipe_videos: int | None,
    videos: int,
    test_windows: int,
    most_batch: int | None = None,
    effort: float = 1.0,
) -> TrainingLength:
    """Suggest the length of a training.

    Args:
        train: the recipe's settings.
        recipe_videos: training videos that the recipe was made for; None: unknown, assumed to be `videos`.
        videos: training videos with actions, at least one.
        test_windows: windows of all test videos.
        most_batch: maximum windows per batch; None: the recipe's.
        effort: share of the views to train for.
    """
    recipe_videos = recipe_videos or videos
    recipe_views = train.stop_epoch * train.repeats
    recipe_steps = recipe_views * recipe_videos / train.global_batch
    views = effort * recipe_views * (videos / recipe_videos) ** VIEWS_EXPONENT
    batch = min(most_batch or train.global_batch, 2 ** int(math.log2(videos)))
    wanted_steps = min(EPOCH_STEPS, views * videos / batch / LEAST_EPOCHS)
    repeats = max(1, math.ceil(wanted_steps * batch / videos))
    epochs = max(1, round(views / repeats))
    epoch_steps = videos * repeats // batch
    steps, stretch = epochs * epoch_steps, epochs / train.stop_epoch

    # the running average covers the same share of all steps
    average_steps = 1 / (1 - train.ema_decay) / recipe_steps * steps
    decay = round(min(train.ema_decay, max(0.0, 1 - 1 / average_steps)), 5)

    first = min(epochs, max(1, round(train.eval_from_epoch * stretch)))
    affordable = EVALUATION_SHARE * BACKWARD_COST * steps * batch / max(1, test_windows)
    every = math.ceil((epochs - first + 1) / max(1, min(MOST_EVALUATIONS, int(affordable))))
    first += (epochs - first) % every  # the last epoch is one of them
    length = TrainingLength(
        global_batch=batch,
        repeats=repeats,
        stop_epoch=epochs,
        schedule_epochs=max(epochs, round(train.schedule_epochs * stretch)),
        warmup_epochs=round(train.warmup_epochs * stretch, 2),
        ema_decay=decay,
        eval_from_epoch=first,
        eval_every=every,
        epoch_steps=epoch_steps,
        evaluations=1 + (epochs - first) // every,
        reasons=(),
    )
    views_of_recipe = f"{recipe_views} times in the recipe, made for {recipe_videos}"
    return replace(length, reasons=_reasons(length, views_of_recipe, videos=videos, test_windows=test_windows))


def count_windows(videos_frames: Iterable[float], data: DataConfig) -> int:
    """Number of test windows for videos of these numbers of file frames, as cut by `windows.windows_for_testing`."""
    if data.sampling == "resize":
        return sum(1 for _ in videos_frames)
    assert data.feature_stride_frames is not None
    hop = max(1, int(data.window_size * (1 - data.test_window_overlap)))
    last = [max(0.0, frames / data.feature_stride_frames - data.window_size) for frames in videos_frames]
    return sum(1 + math.ceil(steps / hop) for steps in last)


def _reasons(length: TrainingLength, views_of_recipe: str, *, videos: int, test_windows: int) -> tuple[str, ...]:
    """One line per setting."""
    views, decay = length.repeats * length.stop_epoch, length.ema_decay
    average = f"averages about the last {1 / (1 - decay):.0f} of {length.steps} steps" if decay else "off"
    return (
        f"train.global_batch={length.global_batch}: as in the recipe, if there are enough training videos",
        f"train.repeats={length.repeats}, train.stop_epoch={length.stop_epoch}: each of the {videos} training videos "
        f"is seen {views} times ({views_of_recipe}; fewer videos are seen more often)",
        f"train.schedule_epochs={length.schedule_epochs}, train.warmup_epochs={length.warmup_epochs}: the recipe's "
        "fractions of the epochs",
        f"train.ema_decay={decay}: {average}",
        f"train.eval_from_epoch={length.eval_from_epoch}, train.eval_every={length.eval_every}: evaluations: "
        f"{length.evaluations}, of {test_windows} test windows each, in a quarter of the training time if possible",
    )
