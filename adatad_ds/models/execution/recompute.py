"""Adapted transformers with bounded memory: by default one stored tensor per tuned block.

A segment leads from one adapted block's output y (before its adapter) to the next one's: z = y + adapter(y), then the
blocks up to and including the next adapted one. Only y is stored. Blocks that are tuned inside (LoRA, biases, norms)
are part of segments in the same way; without adapters, y is what enters such a block. Both passes go span by span over
time, a few clips at a time: the adapter needs no more context than its temporal convolution reaches, the blocks none.
Backward recomputes a span, back-propagates it at once, and overwrites the window's gradient in place. Memory thus holds
the stored tensors, one gradient and one span's graph, however long the window is.

With more memory, the graphs of some spans are kept and not recomputed; with less, only every few segments' inputs are
stored, and backward makes those between again (retention.py). The arithmetic is the same, in the same order.

`torch.utils.checkpoint` around a segment would hold the graphs of all its spans at once in the backward pass.

B windows, T tubelets on this rank, S positions, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adatad_ds.models.execution.activation_store import Stored
from adatad_ds.models.execution.graphs import OnceAccumulated
from adatad_ds.models.execution.segments import Execution, Pooled, Segment, SegmentInput
from adatad_ds.models.execution.window_share import SlidingContext


def run_segments(first: Iterator[Tensor], segments: Sequence[Segment], execution: Execution) -> Tensor:
    """Run the transformer from the first stored tensor to the top, averaged over positions.

    Args:
        first: the first segment's input, span by span, without a graph: (B, t, S, C).
        segments: from each stored tensor to the next, the last one to the top.
        execution: how they run.

    Returns:
        (B, T, C) float32, differentiable in the segments' trainable parameters.
    """
    if not torch.is_grad_enabled():
        pooled = Pooled(execution)
        _run_group(segments, _filled(execution.transient(), first, execution), pooled, execution)
        return pooled.values
    return _Segments.apply(_anchor(execution), first, segments, execution)  # pyright: ignore[reportReturnType]


def sum_adapters(first: Iterator[Iterator[Tensor]], segments: Sequence[Segment], execution: Execution) -> Tensor:
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
        segments: Sequence[Segment],
        execution: Execution,
    ) -> Tensor:
        remaining = iter(segments)
        groups = [list(islice(remaining, size)) for size in execution.retention.groups(len(segments))]
        inputs, pooled = execution.reserve(len(groups)), Pooled(execution)
        _filled(inputs[0], first, execution)
        outputs = [*(each.stored for each in inputs[1:]), pooled]
        kept = execution.graphs_of(groups)
        for group, here, output, graphs in zip(groups, inputs, outputs, kept, strict=True):
            _run_group(group, here, output, execution, graphs=graphs)
        ctx.inputs, ctx.groups, ctx.execution = inputs, groups, execution
        return pooled.values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # pyright: ignore
        waiting, execution = ctx.inputs, ctx.execution
        gradient = _unpooled(gradient, execution).contiguous()  # overwritten from here on
        for group in reversed(ctx.groups):
            inputs = _made_again(group, waiting.pop(), execution)
            for segment in reversed(group):
                with execution.timed(segment, "backward"):
                    _backward(segment, inputs.pop(), gradient, execution)
        return (None,) * 4


class _SideSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        first: Iterator[Iterator[Tensor]],
        segments: Sequence[Segment],
        execution: Execution,
    ) -> Tensor:
        inputs, pooled = execution.reserve(len(segments)), Pooled(execution)
        for (start, _), outputs in zip(execution.spans, first, strict=True):
            for here in inputs:
                here.stored.write(start, next(outputs))
            pooled.write(start, next(outputs))
        for segment, here, graphs in zip(segments, inputs, execution.graphs_of(segments), strict=True):
            with execution.timed(segment, "forward"):
                for (start, _), out in here.run(segment.added, segment.reach, execution, graphs=graphs):
                    pooled.add(start, out)
        ctx.inputs, ctx.segments, ctx.execution = inputs, segments, execution
        return pooled.values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # pyright: ignore
        inputs, execution = ctx.inputs, ctx.execution
        for segment in reversed(ctx.segments):
            here, parameters = inputs.pop(), OnceAccumulated(segment.trainable)
            with execution.timed(segment, "backward"):
                for graph in here.graphs(segment.added, segment.reach, execution):
                    start, stop = graph.span
                    of_span = _unpooled(gradient[:, start:stop], execution)
                    parameters.differentiate(graph.root, of_span, last=stop == here.steps)
        return (None,) * 4


def _sum_as_they_come(first: Iterator[Iterator[Tensor]], segments: Sequence[Segment], execution: Execution) -> Tensor:
    """`sum_adapters` without a backward pass: of each block's output, only the adapter's context is kept."""
    pooled, waiting = Pooled(execution), [SlidingContext(segment.reach) for segment in segments]
    for (start, stop), outputs in zip(execution.spans, first, strict=True):
        for segment, of_block in zip(segments, waiting, strict=True):
            at, tokens, before, after = of_block.push(next(outputs), last=stop == execution.shape[1])
            pooled.add(at, segment.added(tokens, (before, after), at))
        pooled.add(start, next(outputs))
    return pooled.values


def _filled(here: SegmentInput, first: Iterator[Tensor], execution: Execution) -> SegmentInput:
    for (start, _), tokens in zip(execution.spans, first, strict=True):
        here.stored.write(start, tokens)
    return here


def _run_group(
    group: Sequence[Segment],
    here: SegmentInput,
    output: Stored | Pooled,
    execution: Execution,
    *,
    graphs: int = 0,
) -> None:
    """Run consecutive segments from the first one's input into `output`; the inputs of the others come and go.

    Args:
        group: the segments.
        here: the first one's input.
        output: takes the last one's output.
        execution: how they run.
        graphs: how many graphs are kept; of a single segment only.
    """
    for segment in group[:-1]:
        following = execution.transient()
        _run(segment, here, following.stored, execution)
        here = following
    _run(group[-1], here, output, execution, graphs=graphs)


def _made_again(group: Sequence[Segment], here: SegmentInput, execution: Execution) -> list[SegmentInput]:
    """The inputs of consecutive segments, from the first one's, ready for the backward pass."""
    inputs = [here]
    for segment in group[:-1]:
        following = execution.transient()
        _run(segment, inputs[-1], following.stored, execution)
        inputs.append(following)
    if len(group) > 1:
        inputs[-1].meet_neighbours(group[-1].reach, execution.window)
    return inputs


def _run(
    segment: Segment, here: SegmentInput, output: Stored | Pooled, execution: Execution, *, graphs: int = 0
) -> None:
    """Run a segment into `output`, and keep the graphs of its first spans in its input."""
    with execution.timed(segment, "forward"):
        for (start, _), out in here.run(segment, segment.reach, execution, graphs=graphs):
            output.write(start, out)


def _backward(segment: Segment, here: SegmentInput, gradient: Tensor, execution: Execution) -> None:
    """Turn the gradient of a segment's output into its input's, in place; accumulate its parameters' gradients."""
    parameters = OnceAccumulated(segment.trainable)
    ends = here.ends(gradient)  # gradients of the neighbours' tubelets, before and after
    overhang = gradient[:, :0]  # of the tubelets after a span, from the spans before
    for graph in here.graphs(segment, segment.reach, execution):
        (start, stop), before = graph.span, graph.context[0]
        (inner,) = parameters.differentiate(graph.root, gradient[:, start:stop], graph.tokens, last=stop == here.steps)
        inner[:, before : before + overhang.shape[1]] += overhang
        _add_before(ends[0], gradient, start, inner[:, :before])
        gradient[:, start:stop] = inner[:, before : before + stop - start]
        overhang = inner[:, before + stop - start :]
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


def _unpooled(gradient: Tensor, execution: Execution) -> Tensor:
    """Gradient of tokens, (B, t, S, C), from that of their mean, (B, t, C)."""
    positions = execution.shape[2]
    pooled = range(positions)[execution.pooled]
    share = (gradient.to(execution.like.dtype) / len(pooled))[:, :, None]
    if len(pooled) == positions:
        return share.expand(-1, -1, positions, -1)
    weights = share.new_zeros(positions, 1)
    weights[execution.pooled] = 1
    return share * weights
