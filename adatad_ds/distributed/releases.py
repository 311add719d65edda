"""ZeRO-3's release of weights, without a search for what modules that keep theirs could release.

When a module has run, DeepSpeed walks, once for each place in the order of modules, through all that will run soon, so
as to keep what is wanted again. It does so for persistent weights too, which are never released, and most modules here
have no others (norms, adapters). A window in chunks runs each of them many times, and the walks of all grow with the
square: the first steps of a VideoMAE-S in 6 chunks took 29 CPU s more than under ZeRO-1, and again after evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

SEARCH = "_PartitionedParameterCoordinator__params_to_release"


def skip_needless_searches(coordinator: type, *, is_leaf: Callable[[nn.Module], bool]) -> None:
    """Modules whose weights are all persistent release none, as the search would find in the end.

    Args:
        coordinator: DeepSpeed's PartitionedParameterCoordinator; a version that has no such search stays as it is.
        is_leaf: whether a module's weights are gathered with those of all modules inside.
    """
    search = vars(coordinator).get(SEARCH)
    if search is None:
        return

    def params_to_release(self: Any, module: nn.Module, step: int) -> set[int]:
        weights = module.parameters(recurse=is_leaf(module))
        return set() if all(weight.ds_persist for weight in weights) else search(self, module, step)  # pyright: ignore

    setattr(coordinator, SEARCH, params_to_release)
