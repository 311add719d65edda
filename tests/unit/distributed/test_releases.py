"""ZeRO-3 releases, found by an index, what DeepSpeed's walk finds."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator, iter_params
from deepspeed.utils import z3_leaf_module
from torch import nn

from adatad_ds.distributed.releases import FETCHED, ORDER, REUSE, SEARCH, search_by_index

SEARCHING: Any = vars(PartitionedParameterCoordinator).get(SEARCH)
WALK = getattr(SEARCHING, "__wrapped__", SEARCHING)  # DeepSpeed's own, whether or not the engine has replaced it
PLACES = 40


class Layer(nn.Linear):
    """A layer with what ZeRO-3 adds to it."""

    def __init__(self, size: int, *, number: int, persistent: bool) -> None:
        super().__init__(size, size)
        for index, weight in enumerate(self.parameters()):
            noted: Any = weight
            noted.ds_id, noted.ds_numel, noted.ds_persist = 2 * number + index, weight.numel(), persistent

    def ds_external_parameters(self) -> Iterable[Any]:
        return ()


class Leaf(nn.Sequential):
    """Layers whose weights are gathered together."""

    _z3_leaf = True  # as set_z3_leaf_module notes it

    def ds_external_parameters(self) -> Iterable[Any]:
        return ()


class Coordinator:
    """What the search asks of DeepSpeed's: an order, weights fetched ahead, a distance."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        layers = [Layer(draw.randint(2, 9), number=number, persistent=draw.random() < 0.3) for number in range(8)]
        leaf = Leaf(*layers[6:])
        assert z3_leaf_module(leaf)
        self.order = tuple(draw.choices([*layers[:6], leaf], k=PLACES))
        weights = [weight for layer in layers for weight in layer.parameters()]
        ahead = {weight: draw.randint(0, PLACES) for weight in weights if draw.random() < 0.3}
        setattr(self, ORDER, self.order)
        setattr(self, FETCHED, defaultdict(lambda: int(-1e10), ahead))
        setattr(self, REUSE, (0, 50, 200, 10**9)[seed % 4])

    def is_complete_trace(self) -> bool:
        return True


def released(coordinator: Coordinator, search: Any) -> list[set[int]]:
    """After each place."""
    return [search(coordinator, module, place + 1) for place, module in enumerate(coordinator.order)]


def test_deepspeed_has_the_search():
    """A version without it needs another look: it may have another cost, or none."""
    assert WALK is not None


@pytest.mark.parametrize("seed", range(8))
def test_the_same_as_deepspeeds_walk(seed):
    """Over orders with repetitions, leaves, persistent weights and weights fetched ahead."""

    class Indexed:
        pass

    setattr(Indexed, SEARCH, WALK)
    search_by_index(Indexed, weights_of=iter_params, is_leaf=z3_leaf_module)
    search = vars(Indexed)[SEARCH]
    coordinator, other = Coordinator(seed), Coordinator(seed + 4)
    assert any(released(coordinator, search))
    assert released(coordinator, search) == released(coordinator, WALK)
    vars(coordinator).update(vars(other))  # another trace
    assert released(coordinator, search) == released(other, WALK)


def test_a_version_without_it_stays_as_it_is():
    class Without:
        pass

    search_by_index(Without, weights_of=iter_params, is_leaf=z3_leaf_module)
    assert SEARCH not in vars(Without)
