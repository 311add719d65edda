"""Schedules of the learning rate and the running average, by their formulas and against the published settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adatad_ds.config.schema import TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.lean_start import AdamW, exclusions_left_out
from adatad_ds.recipes.catalog import all_recipes
from adatad_ds.training.optim import INITIAL_SHARE, average_warms_up, schedule

# Training videos as data/sources/facts.py has them; fewer of ActivityNet's 10 024, as some are gone from YouTube, and
# a low guess for Ego4D-MQ (2488 clips with the test's in version 1).
VIDEOS = {"thumos14": 200, "multithumos": 200, "activitynet": 9000, "charades": 7985, "epic": 495, "ego4d": 1200}


def test_warm_up_and_cosine_of_every_step():
    """ActionFormer's: linear from 0, then a cosine from where the warm-up ends."""

    def factor(step: int) -> float:
        return schedule(step, warmup_steps=10, total_steps=110)

    assert [factor(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert factor(60) == pytest.approx(0.5)
    assert factor(85) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert [factor(step) for step in (110, 200)] == pytest.approx([0.0, 0.0])
    assert schedule(5, warmup_steps=10, total_steps=110, warmup_start=0.2) == pytest.approx(0.6)


def test_a_cosine_that_ends_above_zero():
    """TriDet's `eta_min`, as a share of the rate: reached at the end, half way to it in the middle."""
    factors = [schedule(step, warmup_steps=10, total_steps=110, cosine_end=0.2) for step in (5, 10, 60, 110, 200)]
    assert factors == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2])


def test_warm_up_and_cosine_of_every_epoch():
    """mmcv's, by hand: 4 steps an epoch, 30 epochs, warm-up of 2.5 epochs from a tenth."""

    def factor(step: int) -> float:
        return schedule(step, warmup_steps=10, total_steps=120, warmup_start=0.1, epoch_steps=4)

    def cosine(epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * epoch / 30))

    assert factor(0) == pytest.approx(0.1)
    assert factor(3) == pytest.approx(0.37)
    assert factor(4) == pytest.approx(0.46 * cosine(1))
    assert factor(9) == pytest.approx(0.91 * cosine(2))
    assert [factor(step) for step in (10, 11)] == pytest.approx([cosine(2)] * 2)
    assert [factor(step) for step in range(60, 64)] == pytest.approx([0.5] * 4)
    assert factor(119) == pytest.approx(cosine(29))
    assert factor(119) > 0.002


def test_the_rates_of_the_published_schedule():
    """OpenTAD's LinearWarmupCosineAnnealingLR with warmup_epoch=500, max_epoch=10000, run step by step: its first step
    has rate 0, too. Its warm-up is one step shorter, so that during it rates differ by less than 1/500."""
    published = {0: 0.0, 1: 0.002004, 250: 0.501002, 499: 1.0, 500: 1.0, 5000: 0.5412897, 9999: 3.7e-8}
    for step, factor in published.items():
        assert schedule(step, warmup_steps=500, total_steps=10000) == pytest.approx(factor, abs=1 / 499)
    assert schedule(5000, warmup_steps=500, total_steps=10000) == pytest.approx(published[5000], abs=1e-6)


def test_the_average_follows_more_closely_at_first():
    assert [AverageDecay(0.999, warmup=True).after(n) for n in (1, 8, 90)] == [2 / 11, 9 / 18, 91 / 100]
    assert AverageDecay(0.999, warmup=True).after(10**5) == 0.999
    assert AverageDecay(0.999).after(1) == 0.999


def initial_share(steps: int, *, warmup: bool) -> float:
    share = 1.0
    for update in range(1, steps + 1):
        share *= AverageDecay(0.999, warmup=warmup).after(update)
    return share


def test_a_short_run_is_not_mostly_initialisation():
    assert average_warms_up(TrainConfig(), steps=140)
    assert not average_warms_up(TrainConfig(ema_warmup=False), steps=140)
    assert not average_warms_up(TrainConfig(ema_decay=0.0), steps=140)
    assert not average_warms_up(TrainConfig(), steps=140, trained=True)
    assert average_warms_up(TrainConfig(ema_warmup=True), steps=6000)
    assert initial_share(140, warmup=False) == pytest.approx(0.87, abs=0.01)
    assert initial_share(140, warmup=True) < 1e-6


def test_published_recipes_average_as_their_authors_do():
    """At the length that they were published with, the average has no warm-up: OpenTAD's ModelEma has none."""
    checked = 0
    for name, recipe in all_recipes().items():
        family = next((family for family in VIDEOS if recipe.dataset.startswith(family)), None)
        if recipe.published_id is None or family is None or recipe.config.train.ema_decay == 0:
            continue
        train = recipe.config.train
        steps = train.stop_epoch * (VIDEOS[family] * train.repeats // train.global_batch)
        assert not average_warms_up(train, steps=steps), (name, train.ema_decay**steps)
        checked += 1
    assert checked == 51
    assert INITIAL_SHARE == 0.05


def test_adamw_is_pytorchs():
    """The same bits: what is left out is for torch.compile alone."""
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, 7)), nn.Parameter(torch.ones(3))] for _ in range(2))
    groups = [
        [{"params": parameters[:1], "lr": 0.1, "weight_decay": 0.3}, {"params": parameters[1:], "lr": 0.01}]
        for parameters in (ours, theirs)
    ]
    optimizers = AdamW(groups[0]), torch.optim.AdamW(groups[1])
    for step in range(3):
        for parameter in (*ours, *theirs):
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + step)
        for optimizer in optimizers:
            optimizer.step()
    for parameter, other in zip(ours, theirs, strict=True):
        assert torch.equal(parameter, other)
        for key, value in optimizers[1].state[other].items():
            assert torch.equal(optimizers[0].state[parameter][key], value)
    loss = optimizers[0].step(lambda: ours[0].square().sum())
    assert loss.requires_grad, "a closure has gradients"


def test_exclusions_from_compilation_come_back():
    before = torch._disable_dynamo, torch.compiler.disable
    with exclusions_left_out():
        assert torch._disable_dynamo(abs) is torch.compiler.disable(recursive=False)(abs) is abs
    assert (torch._disable_dynamo, torch.compiler.disable) == before
