"""ZeRO-3's search for weights to release is left out where it finds nothing."""

from __future__ import annotations

from typing import Any

from torch import nn

from adatad_ds.distributed.releases import SEARCH, skip_needless_searches


def test_deepspeed_has_the_search():
    """A version without it needs another look: it may have another cost, or none."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    assert SEARCH in vars(PartitionedParameterCoordinator)


def test_persistent_weights_alone_are_not_searched_for():
    class Coordinator:
        searched: list[nn.Module] = []  # noqa: RUF012

        def search(self, module: nn.Module, step: int) -> set[int]:
            self.searched.append(module)
            return {step}

    setattr(Coordinator, SEARCH, Coordinator.search)
    skip_needless_searches(Coordinator, is_leaf=lambda module: isinstance(module, nn.Sequential))
    large, small = nn.Linear(4, 4), nn.Linear(2, 2)
    for layer in (large, small):
        for weight in layer.parameters():
            weight.ds_persist = layer is small  # pyright: ignore
    leaf, norm = nn.Sequential(large, small), nn.LayerNorm(2, elementwise_affine=False)
    coordinator: Any = Coordinator()
    released = [getattr(coordinator, SEARCH)(module, 7) for module in (small, norm, large, leaf)]
    assert released == [set(), set(), {7}, {7}]
    assert Coordinator.searched == [large, leaf]


def test_a_version_without_it_stays_as_it_is():
    class Coordinator:
        pass

    skip_needless_searches(Coordinator, is_leaf=lambda module: False)
    assert SEARCH not in vars(Coordinator)
