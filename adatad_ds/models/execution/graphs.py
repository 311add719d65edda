"""Graphs of single spans: built, perhaps kept for a while, and differentiated one after the other.

B windows, t tubelets of a span, S positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from adatad_ds.models.execution.activation_store import Span

Run: TypeAlias = Callable[[Tensor, Span, int], Tensor]  # tokens with context, the context, first tubelet: the output


class SpanGraph(NamedTuple):
    """The graph of a span.

    Attributes:
        span: the span.
        tokens: its input, with context; a leaf.
        context: tubelets of context before and after it.
        root: where its backward pass begins.
    """

    span: Span
    tokens: Tensor
    context: Span
    root: Root


class Root(NamedTuple):
    """Where a backward pass begins.

    Attributes:
        edge: of a scalar. An edge, since a tensor would hold the output.
        gradient: takes the output's gradient before the backward pass, which leaves it empty. Given to autograd with
            the edge, it would import SymPy to compare two shapes: 0.6 CPU s of each rank's first step.
    """

    edge: GradientEdge
    gradient: list[Tensor]


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, gradient: list[Tensor]) -> Tensor:
        ctx.gradient = gradient
        return out.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return ctx.gradient.pop(), None


def build_graph(run: Run, span: Span, tokens: Tensor, context: Span) -> tuple[SpanGraph, Tensor]:
    """Run a span with a graph, which starts at its tokens; the graph and the output, (B, t, S, C), without one."""
    tokens = tokens.detach().requires_grad_()
    with torch.enable_grad():
        out, gradient = run(tokens, context, span[0]), list[Tensor]()
        edge = get_gradient_edge(_Root.apply(out, gradient))
    return SpanGraph(span, tokens, context, Root(edge, gradient)), out.detach()


class OnceAccumulated:
    """Sums parameters' gradients over several graphs and accumulates them once: ZeRO reduces at that moment.

    Args:
        parameters: those that a graph trains, all of which every graph uses.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._sums: list[Tensor] | None = None

    def differentiate(self, root: Root, gradient: Tensor, *inputs: Tensor, last: bool) -> Sequence[Tensor]:
        """Gradients of the inputs; with the `last` graph, the parameters get theirs of all graphs."""
        root.gradient.append(gradient)
        if last:
            handles = [
                parameter.register_hook(lambda own, total=total: (own.float() + total).to(own.dtype))
                for parameter, total in zip(self._parameters, self._sums or (), strict=False)
            ]
            torch.autograd.backward(root.edge)
            for handle in handles:
                handle.remove()
            return [tensor.grad for tensor in inputs]  # pyright: ignore[reportReturnType]
        gradients = torch.autograd.grad(root.edge, (*inputs, *self._parameters))
        own = gradients[len(inputs) :]
        if self._sums is None:
            self._sums = [each.float() for each in own]
        else:
            torch._foreach_add_(self._sums, [each.float() for each in own])
        return gradients[: len(inputs)]
