"""Adapted transformers with bounded memory: one stored tensor per adapted block.

A segment leads from one adapted block's output y (before its adapter) to the next one's: z = y + adapter(y), then the
blocks up to and including the next adapted one. Only y is stored. Blocks that are tuned inside (LoRA, biases, norms)
are part of segments in the same way; without adapters, y is what enters such a block. Both passes go span by span over
time, a few clips at a time: the adapter needs no more context than its temporal convolution reaches, the blocks none.
Backward recomputes a span, back-propagates it at once, and overwrites the window's gradient in place. Memory thus holds
the stored tensors, one gradient and one span's graph, however long the window is.

`torch.utils.checkpoint` around a segment would hold the graphs of all its spans at once in the backward pass.

B windows, T tubelets on this rank, S positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adatad_ds.models.execution.activation_store import DeviceTensor, Span, Storage, Stored
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.window_share import SlidingContext, TimeShard


@dataclass(frozen=True, kw_only=True)
class BlockSpan:
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

    def added(self, tokens: Tensor, context: Span) -> Tensor:
        """The adapter's output alone: (B, before + t + after, S, C) to (B, t, S, C)."""
        assert self.adapter is not None
        return self.adapter(tokens, *context)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How segments run on this rank.

    Attributes:
        spans: spans of time, in order, from 0 to T; the same number on all ranks, as ZeRO-3 gathers weights for each.
        window: this rank's share of a window.
        storage: holds the stored tensors.
        stopwatch: times the segments.
        shape: shape of this rank's tokens, (B, T, S, C).
        whole: whether this rank holds the whole window.
        like: a tensor with the tokens' type and device.
    """

    spans: Sequence[Span]
    window: TimeShard
    storage: Storage
    stopwatch: Stopwatch
    shape: tuple[int, ...]
    whole: bool
    like: Tensor

    def reserve(self, count: int) -> list[_Input]:
        """Allocate the inputs of `count` segments, read in reverse order."""
        return [_Input(stored) for stored in self.storage.reserve(count, self.shape, like=self.like)]

    def timed(self, segment: BlockSpan, name: str) -> AbstractContextManager[None]:
        """Time one pass through a segment."""
        return self.stopwatch.around(f"{segment.name}/{name}", self.like.device)


def run_segments(first: Iterator[Tensor], segments: Sequence[BlockSpan], execution: Execution) -> Tensor:
    """Run the transformer from the first stored tensor to the top, averaged over positions.

    Args:
        first: the first segment's input, span by span, without a graph: (B, t, S, C).
        segments: from each stored tensor to the next, the last one to the top.
        execution: how they run.

    Returns:
        (B, T, C) float32, differentiable in the segments' trainable parameters.
    """
    if not torch.is_grad_enabled():
        pair = [_Input(DeviceTensor(execution.like.new_empty(execution.shape))) for _ in segments[:2]]
        return _forward(first, segments, execution, [pair[index % 2] for index in range(len(segments))])
    return _Segments.apply(_anchor(execution), first, segments, execution)  # pyright: ignore[reportReturnType]


def sum_adapters(first: Iterator[Iterator[Tensor]], segments: Sequence[BlockSpan], execution: Execution) -> Tensor:
    """The transformer's output plus its side adapters' outputs, averaged over positions (`side`).

    Args:
        first: for each span, the adapted blocks' outputs and then the last block's, without a graph: (B, t, S, C) each.
        segments: the adapters; their `run` is not used.
        execution: how they run.

    Returns:
        (B, T, C) float32, differentiable in the adapters' parameters.
    """
    if not torch.is_grad_enabled() and execution.whole:
        return _sum_as_they_come(first, segments, execution)
    return _SideSum.apply(_anchor(execution), first, segments, execution)  # pyright: ignore[reportReturnType]


def _anchor(execution: Execution) -> Tensor:
    """Dummy input that requires a gradient, so that autograd calls backward; no other input does."""
    return torch.zeros((), device=execution.like.device, requires_grad=torch.is_grad_enabled())


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        first: Iterator[Tensor],
        segments: Sequence[BlockSpan],
        execution: Execution,
    ) -> Tensor:
        ctx.inputs, ctx.segments, ctx.execution = execution.reserve(len(segments)), segments, execution
        return _forward(first, segments, execution, ctx.inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # pyright: ignore
        inputs, execution = ctx.inputs, ctx.execution
        gradient = _unpooled(gradient, execution).contiguous()  # overwritten from here on
        for segment in reversed(ctx.segments):
            with execution.timed(segment, "backward"):
                _backward(segment, inputs.pop(), gradient, execution)
        return (None,) * 4


class _SideSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        first: Iterator[Iterator[Tensor]],
        segments: Sequence[BlockSpan],
        execution: Execution,
    ) -> Tensor:
        inputs, pooled = execution.reserve(len(segments)), Pooled(execution)
        for (start, _), outputs in zip(execution.spans, first, strict=True):
            for here in inputs:
                here.stored.write(start, next(outputs))
            pooled.write(start, next(outputs))
        for segment, here in zip(segments, inputs, strict=True):
            with execution.timed(segment, "forward"):
                here.meet_neighbours(segment.reach, execution.window)
                for (start, _), (tokens, context) in here.read(execution.spans, segment.reach):
                    pooled.add(start, segment.added(tokens, context))
        ctx.inputs, ctx.segments, ctx.execution = inputs, segments, execution
        return pooled.values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # pyright: ignore
        inputs, execution = ctx.inputs, ctx.execution
        gradient = _unpooled(gradient, execution)
        for segment in reversed(ctx.segments):
            here, parameters = inputs.pop(), OnceAccumulated(segment.trainable)
            with execution.timed(segment, "backward"):
                for (start, stop), (tokens, context) in here.read(execution.spans, segment.reach):
                    with torch.enable_grad():
                        out = segment.added(tokens, context)
                    parameters.differentiate(out, gradient[:, start:stop], last=stop == here.steps)
        return (None,) * 4


def _sum_as_they_come(first: Iterator[Iterator[Tensor]], segments: Sequence[BlockSpan], execution: Execution) -> Tensor:
    """`sum_adapters` without a backward pass: of each block's output, only the adapter's context is kept."""
    pooled, waiting = Pooled(execution), [SlidingContext(segment.reach) for segment in segments]
    for (start, stop), outputs in zip(execution.spans, first, strict=True):
        for segment, of_block in zip(segments, waiting, strict=True):
            at, tokens, before, after = of_block.push(next(outputs), last=stop == execution.shape[1])
            pooled.add(at, segment.added(tokens, (before, after)))
        pooled.add(start, next(outputs))
    return pooled.values


def _forward(
    first: Iterator[Tensor], segments: Sequence[BlockSpan], execution: Execution, inputs: Sequence[_Input]
) -> Tensor:
    """Run all segments without a graph, (B, T, C) float32; each one's input stays in `inputs`."""
    for (start, _), tokens in zip(execution.spans, first, strict=True):
        inputs[0].stored.write(start, tokens)
    pooled = Pooled(execution)
    outputs = [*(each.stored for each in inputs[1:]), pooled]
    for segment, here, output in zip(segments, inputs, outputs, strict=True):
        with execution.timed(segment, "forward"):
            here.meet_neighbours(segment.reach, execution.window)
            for (start, _), (tokens, context) in here.read(execution.spans, segment.reach):
                output.write(start, segment(tokens, context, start))
    return pooled.values


def _backward(segment: BlockSpan, here: _Input, gradient: Tensor, execution: Execution) -> None:
    """Turn the gradient of a segment's output into its input's, in place; accumulate its parameters' gradients."""
    parameters = OnceAccumulated(segment.trainable)
    ends = here.ends(gradient)  # gradients of the neighbours' tubelets, before and after
    overhang = gradient[:, :0]  # of the tubelets after a span, from the spans before
    for (start, stop), (tokens, context) in here.read(execution.spans, segment.reach):
        tokens = tokens.detach().requires_grad_()
        with torch.enable_grad():
            out = segment(tokens, context, start)
        (inner,) = parameters.differentiate(out, gradient[:, start:stop], tokens, last=stop == here.steps)
        before, own = context[0], stop - start
        inner[:, before : before + overhang.shape[1]] += overhang
        _add_before(ends[0], gradient, start, inner[:, :before])
        gradient[:, start:stop] = inner[:, before : before + own]
        overhang = inner[:, before + own :]
    if segment.reach:
        ends[1].copy_(overhang)
        first, last = execution.window.neighbours_adjoint(*ends, segment.reach)
        gradient[:, : first.shape[1]] += first
        gradient[:, gradient.shape[1] - last.shape[1] :] += last


def _add_before(end: Tensor, gradient: Tensor, start: int, values: Tensor) -> None:
    """Add (B, l, S, C) to the l tubelets before `start`, some of which may belong to the previous rank."""
    outside = max(0, values.shape[1] - start)
    gradient[:, start - values.shape[1] + outside : start] += values[:, outside:]
    end[:, end.shape[1] - outside :] += values[:, :outside]


class _Input:
    """A segment's stored input and its neighbours' nearest tubelets."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
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

    def read(self, spans: Sequence[Span], reach: int) -> Iterator[tuple[Span, tuple[Tensor, Span]]]:
        """Each span, its tokens with context, (B, before + t + after, S, C), and (before, after)."""
        inside = [(max(0, start - reach), min(self.steps, stop + reach)) for start, stop in spans]
        for (start, stop), (left, right), tokens in zip(spans, inside, self.stored.read(inside), strict=True):
            before, after = start - left, right - stop
            if self._before is not None and (missing := min(reach - before, self._before.shape[1])):
                tokens, before = torch.cat([self._before[:, -missing:], tokens], dim=1), before + missing
            if self._after is not None and (missing := min(reach - after, self._after.shape[1])):
                tokens, after = torch.cat([tokens, self._after[:, :missing]], dim=1), after + missing
            yield (start, stop), (tokens, (before, after))


class Pooled:
    """Mean over positions, (B, T, C) float32, of tokens that arrive span by span."""

    def __init__(self, execution: Execution) -> None:
        windows, steps, _, width = execution.shape
        self.values = torch.zeros(windows, steps, width, device=execution.like.device)

    def write(self, start: int, tokens: Tensor) -> None:
        """Set the span of tokens (B, t, S, C) at tubelet `start`."""
        self.values[:, start : start + tokens.shape[1]] = pool(tokens)

    def add(self, start: int, tokens: Tensor) -> None:
        """Add the mean of tokens (B, t, S, C) to the span at tubelet `start`."""
        self.values[:, start : start + tokens.shape[1]] += pool(tokens)


def pool(tokens: Tensor) -> Tensor:
    """Mean over positions: (B, t, S, C) to (B, t, C) float32."""
    return tokens.mean(dim=2, dtype=torch.float32)


class OnceAccumulated:
    """Sums parameters' gradients over several graphs and accumulates them once: ZeRO reduces at that moment.

    Args:
        parameters: those that a graph trains, all of which every graph uses.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._sums: list[Tensor] | None = None

    def differentiate(self, out: Tensor, gradient: Tensor, *inputs: Tensor, last: bool) -> Sequence[Tensor]:
        """Gradients of the inputs; with the `last` graph, the parameters get theirs of all graphs."""
        if last:
            handles = [
                parameter.register_hook(lambda own, total=total: (own.float() + total).to(own.dtype))
                for parameter, total in zip(self._parameters, self._sums or (), strict=False)
            ]
            torch.autograd.backward(out, gradient)
            for handle in handles:
                handle.remove()
            return [tensor.grad for tensor in inputs]  # pyright: ignore[reportReturnType]
        gradients = torch.autograd.grad(out, (*inputs, *self._parameters), gradient)
        own = gradients[len(inputs) :]
        if self._sums is None:
            self._sums = [each.float() for each in own]
        else:
            torch._foreach_add_(self._sums, [each.float() for each in own])
        return gradients[: len(inputs)]


def _unpooled(gradient: Tensor, execution: Execution) -> Tensor:
    """Gradient of the tokens, (B, T, S, C) as an expanded view, from that of their mean, (B, T, C)."""
    share = gradient.to(execution.like.dtype) / execution.shape[2]
    return share[:, :, None].expand(execution.shape)
