"""How long to train on so many videos: batch, repeats, epochs, warm-up, averaging and evaluations.

The published trainings see a video the less often the more there are: 60 times each of THUMOS14's 200 training videos,
35 times EPIC-Kitchens' 495, 20 times Charades' 7,985, 15 times ActivityNet's 10,024. A line through these is
views ~ videos ** -0.36; a recipe is stretched along it from its own number of videos to the user's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from adatad_ds.config import DataConfig, TrainConfig

VIEWS_EXPONENT = -0.36
EPOCH_STEPS, LEAST_EPOCHS = 50, 10  # what an epoch has at least, unless so few epochs were left
MOST_EVALUATIONS = 11
EVALUATION_SHARE = 0.25  # of training's time that evaluations may take
BACKWARD_COST = 3.0  # a training window's cost, in forward passes


@dataclass(frozen=True, kw_only=True)
class TrainingLength:
    """Settings of `train`, under the names that they have there, and what follows from them."""

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
        """Of the whole training."""
        return self.stop_epoch * self.epoch_steps

    def assignments(self) -> list[str]:
        """What `--set` takes."""
        names = ("global_batch", "repeats", "stop_epoch", "schedule_epochs", "warmup_epochs", "ema_decay")
        return [f"train.{name}={getattr(self, name)}" for name in (*names, "eval_from_epoch", "eval_every")]


def suggest_length(
    train: TrainConfig, *, recipe_videos: int | None, videos: int, test_windows: int, effort: float = 1.0
) -> TrainingLength:
    """The length of a training.

    Args:
        train: the recipe's.
        recipe_videos: training videos that the recipe was made for; None: not known, it is taken to be made for these.
        videos: training videos with actions, at least one.
        test_windows: of all test videos.
        effort: share of the views that the training is given.
    """
    recipe_videos = recipe_videos or videos
    recipe_views = train.stop_epoch * train.repeats
    views = effort * recipe_views * (videos / recipe_videos) ** VIEWS_EXPONENT
    batch = min(train.global_batch, 2 ** int(math.log2(videos)))
    steps = views * videos / batch
    repeats = max(1, math.ceil(min(EPOCH_STEPS, steps / LEAST_EPOCHS) * batch / videos))
    epochs = max(1, round(views / repeats))
    epoch_steps = videos * repeats // batch
    stretch = epochs / train.stop_epoch

    recipe_steps = recipe_views * recipe_videos / train.global_batch
    average_share = 1 / (1 - train.ema_decay) / recipe_steps  # of all steps that the running average reaches back
    average_steps = average_share * epochs * epoch_steps
    decay = round(min(train.ema_decay, max(0.0, 1 - 1 / average_steps)), 5)

    first = min(epochs, max(1, round(train.eval_from_epoch * stretch)))
    affordable = EVALUATION_SHARE * BACKWARD_COST * epochs * epoch_steps * batch / max(1, test_windows)
    most = max(1, min(MOST_EVALUATIONS, int(affordable)))
    every = math.ceil((epochs - first + 1) / most)
    first += (epochs - first) % every  # the last epoch is one of them
    evaluations = 1 + (epochs - first) // every
    return TrainingLength(
        global_batch=batch,
        repeats=repeats,
        stop_epoch=epochs,
        schedule_epochs=max(epochs, round(train.schedule_epochs * stretch)),
        warmup_epochs=round(train.warmup_epochs * stretch, 2),
        ema_decay=decay,
        eval_from_epoch=first,
        eval_every=every,
        epoch_steps=epoch_steps,
        evaluations=evaluations,
        reasons=(
            f"train.global_batch={batch}: the recipe's {train.global_batch}"
            + ("" if batch == train.global_batch else f", but no more than the {videos} training videos"),
            f"train.repeats={repeats}, train.stop_epoch={epochs}: each of the {videos} training videos is seen "
            f"{repeats * epochs} times ({recipe_views} times in the recipe, made for {recipe_videos}; the fewer, the "
            "more often)",
            f"train.schedule_epochs={max(epochs, round(train.schedule_epochs * stretch))}, "
            f"train.warmup_epochs={round(train.warmup_epochs * stretch, 2)}: the recipe's shares of the epochs",
            f"train.ema_decay={decay}: "
            + (f"averages about the last {1 / (1 - decay):.0f} of {epochs * epoch_steps} steps" if decay else "off"),
            f"train.eval_from_epoch={first}, train.eval_every={every}: {evaluations} evaluations of {test_windows} "
            "test windows, where they can in at most a quarter of the training's time",
        ),
    )


def count_windows(videos_frames: Iterable[float], data: DataConfig) -> int:
    """Windows that videos of so many file frames are tested by; see `windows.windows_for_testing`."""
    if data.sampling == "resize":
        return sum(1 for _ in videos_frames)
    assert data.feature_stride_frames is not None
    hop = max(1, int(data.window_size * (1 - data.test_window_overlap)))
    last = [max(0.0, frames / data.feature_stride_frames - data.window_size) for frames in videos_frames]
    return sum(1 + math.ceil(steps / hop) for steps in last)
