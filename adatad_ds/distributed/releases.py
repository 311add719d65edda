"""ZeRO-3's release of weights: without a walk through all that will run, and during recomputation, too.

When a module has run, DeepSpeed walks, once for each place in the order of modules, through all that will run soon, so
as to keep what is wanted again. A window in chunks runs each module many times, and the walks grow with the square of
the places: the first steps of a VideoMAE-S in 6 chunks took 29 CPU s more than under ZeRO-1, and again after
evaluations. An index of the order, made once, answers the same; and weights that are never released need no answer.

Frozen weights with which a backward pass recomputes stay gathered until the module in whose backward pass they ran has
ended its own: torch.utils.checkpoint needs them till then. A backbone that recomputes span by span, in graphs of its
own, would so end with all of its weights gathered, 4 GB of 1 B parameters in fp32. Its graphs gather what they need.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from torch import nn

SEARCH, ORDER, FETCHED, REUSE = (
    f"_PartitionedParameterCoordinator__{name}"
    for name in (
        "params_to_release",
        "submodule_order",
        "most_recent_step_id_param_fetched_for",
        "max_reuse_dist_in_numel",
    )
)
KEEP = "update_recompute_parameters"
WeightsOf = Callable[[nn.Module, bool], Iterable[Any]]


class Uses:
    """Where each weight is used in an order of modules.

    Args:
        order: the modules that run in a step, each as often as it runs.
        weights_of: of a module; with those of all modules inside if True.
        whole: whether modules use the weights of those inside.
    """

    def __init__(self, order: Sequence[nn.Module], *, weights_of: WeightsOf, whole: bool) -> None:
        self._places: dict[int, list[int]] = defaultdict(list)
        self._numbers = [0]  # of the weights used before each place
        for place, module in enumerate(order):
            weights = list(weights_of(module, whole))
            for weight in weights:
                self._places[weight.ds_id].append(place)
            self._numbers.append(self._numbers[-1] + sum(weight.ds_numel for weight in weights))

    def within(self, weight: int, *, begin: int, numbers: int) -> bool:
        """Whether a weight is used at a place or after it, before weights of so many numbers are."""
        places = self._places.get(weight, [])
        following = bisect_left(places, begin)
        return following < len(places) and self._numbers[places[following]] - self._numbers[begin] < numbers


def search_by_index(coordinator: type, *, weights_of: WeightsOf, is_leaf: Callable[[nn.Module], bool]) -> None:
    """Let DeepSpeed find what a module releases without its walk.

    Args:
        coordinator: DeepSpeed's PartitionedParameterCoordinator; a version that has no such search stays as it is.
        weights_of: of a module; with those of all modules inside if True.
        is_leaf: whether a module's weights are gathered with those of all modules inside.
    """
    walk = vars(coordinator).get(SEARCH)
    if walk is None:
        return

    @functools.wraps(walk)
    def params_to_release(self: Any, module: nn.Module, step: int) -> set[int]:
        whole = is_leaf(module)
        released = [weight for weight in weights_of(module, whole) if not weight.ds_persist]
        if not released:
            return set()
        order, fetched, reuse = (getattr(self, name) for name in (ORDER, FETCHED, REUSE))
        if getattr(self, "_indexed", None) is not order:
            self._indexed, self._uses = order, {}
        if whole not in self._uses:
            self._uses[whole] = Uses(order, weights_of=weights_of, whole=whole)
        return {
            weight.ds_id
            for weight in released
            if fetched[weight] <= step and not self._uses[whole].within(weight.ds_id, begin=step, numbers=reuse)
        }

    setattr(coordinator, SEARCH, params_to_release)


def release_recomputed(coordination: Any) -> Callable[[Iterable[nn.Module]], None]:
    """Let DeepSpeed release weights that run again in some modules' backward passes as it releases all others.

    Args:
        coordination: the module deepspeed.runtime.zero.partitioned_param_coordinator; a version that keeps no such
            weights stays as it is.

    Returns:
        Adds modules: those that recompute in graphs of their own, with all that is inside.
    """
    modules: WeakSet[nn.Module] = WeakSet()
    keep = getattr(coordination, KEEP, None)
    if keep is not None:

        @functools.wraps(keep)
        def keep_for_others(module: nn.Module, weight: nn.Parameter) -> None:
            if module not in modules:
                keep(module, weight)

        setattr(coordination, KEEP, keep_for_others)
    return modules.update
