from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adatad_ds.models.tuning.adapters import TIA
from adatad_ds.training.update_stats import Updates


class Small(nn.Module):
    """Named as the detector is: two adapters and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        adapters = {str(block): TIA(width=8, ratio=0.5, kernel=3, dilation=1) for block in (3, 7)}
        self.backbone.adapters = nn.ModuleDict(adapters)
        self.head = nn.Linear(8, 2)

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters()


def own(*numbers: float) -> list[float]:
    """The sum over one rank."""
    return list(numbers)


def test_relative_updates_by_hand():
    model = Small()
    with torch.no_grad():
        model.head.weight.fill_(2.0)
        model.head.bias.zero_()
    updates = Updates(parts=model.parts, total=own)
    with torch.no_grad():
        model.head.weight[0, 0] += 0.8  # |before| = 2 * sqrt(16) = 8
        model.backbone.adapters["3"].up_proj.weight += 0.5  # was all zeros
        model.backbone.adapters["7"].gamma -= 0.25
    movement = updates.take()
    assert movement.updates.keys() == dict(model.named_parameters()).keys()
    moved = {name: update for name, update in movement.updates.items() if update}
    assert moved == pytest.approx(
        {"head.weight": 0.1, "backbone.adapters.3.up_proj.weight": 1.0, "backbone.adapters.7.gamma": 0.25}
    )
    assert movement.updates["head.bias"] == 0  # zero before and after
    assert movement.gammas == {"backbone.adapters.3.gamma": 1.0, "backbone.adapters.7.gamma": 0.75}
    assert not any(updates.take().updates.values())  # since the last look


def test_what_is_shown():
    model = Small()
    updates = Updates(parts=model.parts, total=own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
        model.backbone.adapters["3"].gamma.fill_(0.5)
    movement = updates.take()
    scalars, histograms = movement.scalars(), movement.histograms()
    assert set(scalars) == {"updates/adapter_median", "updates/head_median", "updates/gamma_mean"}
    assert scalars["updates/gamma_mean"] == pytest.approx((0.5 + 1.001) / 2)
    assert scalars["updates/head_median"] == pytest.approx(1e-3, rel=1e-3)
    assert histograms["updates/head_log10"] == pytest.approx([-3, -3], abs=1e-3)
    assert histograms["updates/gamma"] == pytest.approx([0.5, 1.001])
    adapters = histograms["updates/adapter_log10"]
    assert len(adapters) == len(list(model.backbone.adapters.parameters()))
    assert np.isfinite(adapters).all()  # up_proj, all zeros, did not move: the least that is shown
    assert adapters.min() == -12
    assert adapters.max() == pytest.approx(math.log10(0.5))


def test_parts_of_two_ranks_add_up():
    """Each rank's three numbers a tensor are summed, as an all-reduce does; a part may be empty."""
    model, sent = Small(), {}

    def parts(rank: int) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in model.named_parameters():
            middle = (parameter.numel() + 1) // 2
            flat = parameter.detach().flatten()
            yield name, flat[:middle] if rank == 0 else flat[middle:]

    def keep(rank: int, *numbers: float) -> list[float]:
        sent[rank] = numbers
        return [0.0] * len(numbers) if rank == 0 else [sum(pair) for pair in zip(sent[0], numbers, strict=True)]

    ranks = [
        Updates(parts=lambda rank=rank: parts(rank), total=lambda *numbers, rank=rank: keep(rank, *numbers))
        for rank in (0, 1)
    ]
    whole = Updates(parts=model.parts, total=own)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = whole.take()
    ranks[0].take()
    together = ranks[1].take()
    assert together.updates == pytest.approx(expected.updates)
    assert together.gammas == pytest.approx(expected.gammas)


def test_without_adapters():
    """Nothing is said of gammas that are not there, nor of adapters."""
    model = nn.Module()
    model.head = nn.Linear(4, 4)
    movement = Updates(parts=lambda: model.named_parameters(), total=own).take()
    assert set(movement.scalars()) == {"updates/head_median"}
    assert set(movement.histograms()) == {"updates/head_log10"}
