"""Relative update size per trainable tensor, and the adapters' gammas.

ZeRO partitions trainable tensors, so each rank reads its own part of each. Only three numbers per tensor are summed
over the ranks; nothing is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adatad_ds.training.optim import parameter_kind

GAMMA = ".gamma"  # suffix of the names of the adapters' scales, one number each
LEAST_UPDATE = 1e-12  # logged for tensors that did not change


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Changes of the trainable tensors between two measurements.

    Attributes:
        updates: by parameter name |w_now - w_before| / |w_before|; 1 if it was all zeros and no longer is.
        gammas: each adapter's scale, by parameter name.
    """

    updates: Mapping[str, float]
    gammas: Mapping[str, float]

    def scalars(self) -> dict[str, float]:
        """`updates/KIND_median` of adapters, head and backbone, where trainable; `updates/gamma_mean`."""
        values = {f"updates/{kind}_median": float(np.median(updates)) for kind, updates in self._by_kind().items()}
        if self.gammas:
            values["updates/gamma_mean"] = float(np.mean(list(self.gammas.values())))
        return values

    def histograms(self) -> dict[str, NDArray[np.float64]]:
        """`updates/KIND_log10`, as updates span orders of magnitude, one value per tensor; `updates/gamma`."""
        values = {
            f"updates/{kind}_log10": np.log10(np.maximum(updates, LEAST_UPDATE))
            for kind, updates in self._by_kind().items()
        }
        if self.gammas:
            values["updates/gamma"] = np.array(list(self.gammas.values()))
        return values

    def _by_kind(self) -> dict[str, list[float]]:
        kinds: dict[str, list[float]] = {}
        for name, update in self.updates.items():
            kinds.setdefault(parameter_kind(name), []).append(update)
        return kinds


class Updates:
    """Measures updates of the trainable tensors since the last measurement.

    Keeps an fp32 copy of this rank's part in host memory.

    Args:
        parts: name and this rank's part of each trainable tensor, always the same ones (`Engine.trainable_parts`).
        total: the sum of each number over the ranks (`World.sum`).
    """

    def __init__(self, *, parts: Callable[[], Iterable[tuple[str, Tensor]]], total: Callable[..., list[float]]) -> None:
        self._parts = parts
        self._total = total
        self._before = {name: _copy(part) for name, part in parts()}

    def take(self) -> Movement:
        """Changes since the last call, or since construction. A collective."""
        numbers: list[float] = []  # of each tensor: |now - before|^2, |before|^2, sum of now
        for name, part in self._parts():
            now, before = _copy(part), self._before[name]
            moved, was = (now - before).double(), before.double()
            numbers += [float(moved.square().sum()), float(was.square().sum()), float(now.double().sum())]
            self._before[name] = now
        sums = self._total(*numbers)
        updates = {name: _ratio(*sums[3 * index : 3 * index + 2]) for index, name in enumerate(self._before)}
        gammas = {name: sums[3 * index + 2] for index, name in enumerate(self._before) if name.endswith(GAMMA)}
        return Movement(updates=updates, gammas=gammas)


def _ratio(moved: float, was: float) -> float:
    """Ratio of two norms, given squared."""
    return math.sqrt(moved / was) if was else float(moved > 0)


def _copy(part: Tensor) -> Tensor:
    return part.detach().float().cpu().clone()
