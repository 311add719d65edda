"""Segments of an adapted transformer, how they run on a rank, and what they read and write.

B windows, T tubelets on this rank, t of a span, S positions, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adatad_ds.models.execution.activation_store import DeviceTensor, Span, Storage, Stored
from adatad_ds.models.execution.graphs import Run, SpanGraph, build_graph
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.window_share import TimeShard


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The segment between two stored tensors: an adapter, if there is one, and the blocks after it.

    Attributes:
        name: for reports.
        adapter: called on a span with context (see `adapters.py`); None: blocks alone.
        reach: tubelets of context that the adapter needs.
        trainable: the adapter's parameters, and those of the blocks.
        run: runs the blocks that follow on the span at tubelet `start`: (B, t, S, C), start to (B, t, S, C).
    """

    name: str
    adapter: nn.Module | None
    reach: int
    trainable: tuple[nn.Parameter, ...]
    run: Callable[[Tensor, int], Tensor]

    def __call__(self, tokens: Tensor, context: Span, start: int) -> Tensor:
        """(B, before + t + after, S, C) to (B, t, S, C)."""
        before, after = context
        own = tokens[:, before : tokens.shape[1] - after]
        return self.run(own if self.adapter is None else own + self.adapter(tokens, before, after), start)

    def added(self, tokens: Tensor, context: Span, start: int) -> Tensor:
        """A `Run` of the adapter's output alone: (B, before + t + after, S, C) to (B, t, S, C)."""
        assert self.adapter is not None
        return self.adapter(tokens, *context)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How segments run on this rank.

    Attributes:
        spans: spans of time, in order, from 0 to T; the same number on all ranks, as ZeRO-3 gathers weights for each.
        window: this rank's share of a window.
        storage: holds the stored tensors.
        retention: what is kept from the forward to the backward pass.
        stopwatch: times the segments.
        shape: shape of this rank's tokens, (B, T, S, C).
        whole: whether this rank holds the whole window.
        pooled: those of the S positions whose mean is a tubelet's feature.
        like: a tensor with the tokens' type and device.
    """

    spans: Sequence[Span]
    window: TimeShard
    storage: Storage
    retention: Retention
    stopwatch: Stopwatch
    shape: tuple[int, ...]
    whole: bool
    pooled: slice
    like: Tensor

    def reserve(self, count: int) -> list[SegmentInput]:
        """Allocate the inputs of `count` segments, read in reverse order."""
        return [SegmentInput(stored) for stored in self.storage.reserve(count, self.shape, like=self.like)]

    def transient(self) -> SegmentInput:
        """Allocate an input that is read soon."""
        return SegmentInput(DeviceTensor(self.like.new_empty(self.shape)))

    def graphs_of(self, segments: Sequence[object]) -> list[int]:
        """Graphs to keep of each segment."""
        return self.retention.graphs_of(len(segments), len(self.spans))

    def timed(self, segment: Segment, name: str) -> AbstractContextManager[None]:
        """Time one pass through a segment."""
        return self.stopwatch.around(f"{segment.name}/{name}", self.like.device)


class SegmentInput:
    """A segment's stored input, its neighbours' nearest tubelets, and the graphs of its spans that are kept."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._kept: deque[SpanGraph] = deque()  # of the first spans, in order
        self._before: Tensor | None = None
        self._after: Tensor | None = None

    @property
    def steps(self) -> int:
        """T."""
        return self.stored.steps

    def meet_neighbours(self, reach: int, window: TimeShard) -> None:
        """Exchange the ends with the neighbours. A collective."""
        if reach:
            first, last = self.stored.read([(0, reach), (self.steps - reach, self.steps)])
            self._before, self._after = window.neighbours(first, last)

    def ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros for the gradients of the neighbours' tubelets."""
        if self._before is None or self._after is None:
            return like[:, :0], like[:, :0]
        return torch.zeros_like(self._before), torch.zeros_like(self._after)

    def run(self, run: Run, reach: int, execution: Execution, *, graphs: int) -> Iterator[tuple[Span, Tensor]]:
        """Run each span without a graph, but keep that of the first ones: spans and outputs. A collective."""
        self.meet_neighbours(reach, execution.window)
        for number, (span, tokens, context) in enumerate(self.read(execution.spans, reach)):
            if number < graphs:
                graph, out = build_graph(run, span, tokens, context)
                self._kept.append(graph)
                yield span, out
            else:
                yield span, run(tokens, context, span[0])

    def graphs(self, run: Run, reach: int, execution: Execution) -> Iterator[SpanGraph]:
        """The graph of each span in turn, kept or recomputed."""
        missing = execution.spans[len(self._kept) :]
        while self._kept:
            yield self._kept.popleft()
        for span, tokens, context in self.read(missing, reach):
            yield build_graph(run, span, tokens, context)[0]

    def read(self, spans: Sequence[Span], reach: int) -> Iterator[tuple[Span, Tensor, Span]]:
        """Each span, its tokens with context, (B, before + t + after, S, C), and (before, after)."""
        inside = [(max(0, start - reach), min(self.steps, stop + reach)) for start, stop in spans]
        for (start, stop), (left, right), tokens in zip(spans, inside, self.stored.read(inside), strict=True):
            before, after = start - left, right - stop
            if self._before is not None and (missing := min(reach - before, self._before.shape[1])):
                tokens, before = torch.cat([self._before[:, -missing:], tokens], dim=1), before + missing
            if self._after is not None and (missing := min(reach - after, self._after.shape[1])):
                tokens, after = torch.cat([tokens, self._after[:, :missing]], dim=1), after + missing
            yield (start, stop), tokens, (before, after)


class Pooled:
    """Mean over positions, (B, T, C) float32, of tokens that arrive span by span."""

    def __init__(self, execution: Execution) -> None:
        windows, steps, _, width = execution.shape
        self._positions = execution.pooled
        self.values = torch.zeros(windows, steps, width, device=execution.like.device)

    def write(self, start: int, tokens: Tensor) -> None:
        """Set the span of tokens (B, t, S, C) at tubelet `start`."""
        self.values[:, start : start + tokens.shape[1]] = pool(tokens, self._positions)

    def add(self, start: int, tokens: Tensor) -> None:
        """Add the mean of tokens (B, t, S, C) to the span at tubelet `start`."""
        self.values[:, start : start + tokens.shape[1]] += pool(tokens, self._positions)


def pool(tokens: Tensor, positions: slice) -> Tensor:
    """Mean over some positions: (B, t, S, C) to (B, t, C) float32."""
    return tokens[:, :, positions].mean(dim=2, dtype=torch.float32)
