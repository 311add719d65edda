"""What ends a run early, on one rank: videos that cannot be read, and steps without finite gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adatad_ds.distributed.world import World
from adatad_ds.errors import DataError, TrainingError
from adatad_ds.training.guards import FailedVideos, SkippedSteps

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def test_each_failed_video_is_told_once_and_one_too_many_ends_the_run():
    said: list[str] = []
    failed = FailedVideos(fate="replaced", known=["a.mp4: cut"], most=2, world=WORLD, report=said.append)
    failed.add([])
    for _ in range(2):
        failed.add(["b.mp4: cut", "a.mp4: cut", "b.mp4: cut"])
    assert failed.errors == ["a.mp4: cut", "b.mp4: cut"]
    assert said == ["replaced: b.mp4: cut"]
    with pytest.raises(DataError, match=r"3 training videos could not be read, more than data\.max_failed_videos=2"):
        failed.add(["c.mp4: cut"])


def test_skipped_steps_name_the_tensors_of_their_own_step():
    """Any of its micro batches; watched from the first skipped step on, or from a resume after one."""
    weights = {name: nn.Parameter(torch.ones(3)) for name in ("first", "second")}
    said: list[str] = []

    def guard(in_a_row: int) -> SkippedSteps:
        return SkippedSteps(
            parameters=weights, total=in_a_row, in_a_row=in_a_row, most=4, world=WORLD, report=said.append
        )

    def backward(**factors: float) -> None:
        sum(weights[name].sum() * factor for name, factor in factors.items()).backward()  # pyright: ignore

    steps = guard(in_a_row=1)
    backward(first=float("inf"), second=1.0)
    backward(first=1.0, second=1.0)
    steps.add(5, taken=False)
    backward(first=1.0, second=float("nan"))
    steps.add(6, taken=False)
    assert [line.partition("norm ")[2] for line in said] == [
        "(1 of 2 tensors: first); 2 in a row",
        "(1 of 2 tensors: second); 3 in a row",
    ]
    with pytest.raises(TrainingError, match=r"^4 steps in a row were skipped, up to step 7"):
        steps.add(7, taken=False)
    steps.add(8, taken=True)
    assert (steps.total, steps.in_a_row) == (4, 0)
