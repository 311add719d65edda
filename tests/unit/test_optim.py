"""Which tensors decay, and the learning rate's schedules."""

from __future__ import annotations

import math

import pytest

from adatad_ds.optim import schedule


def test_warm_up_and_cosine_of_every_step():
    """ActionFormer's: linear from 0, then a cosine from where the warm-up ends."""

    def factor(step: int) -> float:
        return schedule(step, warmup_steps=10, total_steps=110)

    assert [factor(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert factor(60) == pytest.approx(0.5)
    assert factor(85) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert [factor(step) for step in (110, 200)] == pytest.approx([0.0, 0.0])
    assert schedule(5, warmup_steps=10, total_steps=110, warmup_start=0.2) == pytest.approx(0.6)


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
