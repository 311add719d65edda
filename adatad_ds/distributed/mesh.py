"""One window over several ranks: a data x temporal mesh, and the exchanges that a shared window needs.

Ranks of a temporal group hold consecutive clips of the same windows. Little crosses their borders: the halo of the
temporal convolution, and the pooled features for the head, which every rank of the group computes redundantly. Each
exchange has its exact adjoint in the backward pass, so that averaging gradients over ALL ranks, as DeepSpeed does, is
correct.

B windows, T tubelets on this rank, S positions, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.distributed.world import RankGroup, World
from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.window_share import Share, TimeShard, WholeWindow


class Mesh:
    """The world as data x temporal ranks; neighbours in time are neighbours in rank.

    Args:
        world: all ranks.
        config: config of the run.

    Raises:
        ConfigError: `parallel.temporal` does not divide the ranks, or a rank's share would be smaller than the halo.
    """

    def __init__(self, *, world: World, config: Config) -> None:
        self.world = world
        self.temporal = config.parallel.temporal
        self._clip_frames = config.clip_frames
        self._clips = config.sample_frames // self._clip_frames
        self._clip_steps = self._clip_frames // config.backbone.frames_per_token
        if world.size % self.temporal:
            raise ConfigError(
                f"parallel.temporal={self.temporal} does not divide the {world.size} ranks of this run; use a divisor"
            )
        self.data_ranks = world.size // self.temporal
        self.data_rank, self.temporal_rank = divmod(world.rank, self.temporal)
        reach = max(config.backbone.adapter_reach, 1)
        least = self._clip_steps * (self._clips // self.temporal)
        if self.temporal > 1 and least < reach:
            raise ConfigError(
                f"parallel.temporal={self.temporal} leaves a rank {least} of a window's "
                f"{self._clip_steps * self._clips} steps, fewer than the {reach} that it needs (those that its "
                "neighbours' adapters reach for); use fewer temporal ranks, or longer windows"
            )
        self._group = world.groups(self.temporal) if self.temporal > 1 else None

    @property
    def frames(self) -> slice:
        """The frames of a window that this rank decodes."""
        start, stop = _share(self._clips, self.temporal, self.temporal_rank)
        return slice(start * self._clip_frames, stop * self._clip_frames)

    def window(self) -> TimeShard:
        """This rank's share of a window, for the model."""
        if self._group is None:
            return WholeWindow()
        return SharedWindow(group=self._group, clips=self._clips, clip_steps=self._clip_steps)

    def sum_over_windows(self, *values: float | Tensor) -> list[float]:
        """Sums over all data ranks of values that are equal within each temporal group. A collective."""
        return [value / self.temporal for value in self.world.sum(*values)]

    def errors_over_time(self, errors: Sequence[str | None]) -> list[Sequence[str | None]]:
        """The errors of the ranks that share this rank's windows, in the order of time; its own if none has any.

        A collective.
        """
        if self._group is None:
            return [errors]
        failed = torch.tensor(float(any(errors)), device=self.world.device)
        return self._group.gather(errors) if self._group.sum(failed) else [errors]


class SharedWindow:
    """A rank's consecutive clips of windows that its temporal group shares.

    Args:
        group: the ranks that share windows, in temporal order.
        clips: clips per window.
        clip_steps: features per clip of the backbone.
    """

    def __init__(self, *, group: RankGroup, clips: int, clip_steps: int) -> None:
        self._group = group
        self._clip_steps = clip_steps
        self._shares = [_share(clips, group.size, rank) for rank in range(group.size)]

    def share(self, own: int) -> Share:
        """This rank's share, which has `own` clips."""
        start, stop = self._shares[self._group.rank]
        if own != stop - start:
            raise ValueError(f"rank {self._group.rank} of a temporal group holds {stop - start} clips, was given {own}")
        return Share(start, self._shares[-1][1], max(stop - start for start, stop in self._shares))

    def neighbours(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange the first and last r tubelets, (B, r, S, C), with the neighbours; empty at the window's ends."""
        before, after = self._group.exchange(first, last)
        return before[:, : self._existing(before, -1)], after[:, : self._existing(after, 1)]

    def neighbours_adjoint(self, before: Tensor, after: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Send the gradients of `neighbours`' outputs back; returns those of this rank's first and last."""
        shape = (before.shape[0], reach, *before.shape[2:])
        sent = (part if part.shape[1] else part.new_zeros(shape) for part in (before, after))
        first, last = self._group.exchange(*sent)
        return first[:, : self._existing(first, -1)], last[:, : self._existing(last, 1)]

    def _existing(self, tubelets: Tensor, side: int) -> int:
        """Number of tubelets from a neighbour; 0 without a neighbour on that side."""
        return tubelets.shape[1] if 0 <= self._group.rank + side < self._group.size else 0

    def gather_time(self, features: Tensor) -> Tensor:
        """(B, C, T) to the whole window's (B, C, all T)."""
        edges = [(start * self._clip_steps, stop * self._clip_steps) for start, stop in self._shares]
        return _GatherTime.apply(features, edges, self._group)  # pyright: ignore[reportReturnType]


class _GatherTime(torch.autograd.Function):
    """Concatenate over the group; backward sums over the group and keeps this rank's part."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, edges: list[tuple[int, int]], group: RankGroup) -> Tensor:
        ctx.edges, ctx.group = edges, group
        start, stop = edges[group.rank]
        whole = features.new_zeros(*features.shape[:-1], edges[-1][1])
        whole[..., start:stop] = features
        return group.sum(whole)  # exact: each part is nonzero on one rank only

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        start, stop = ctx.edges[ctx.group.rank]
        return ctx.group.sum(gradient.contiguous())[..., start:stop], None, None


def _share(clips: int, ranks: int, rank: int) -> tuple[int, int]:
    """A rank's first clip, and one past its last; counts differ by at most one."""
    return clips * rank // ranks, clips * (rank + 1) // ranks
