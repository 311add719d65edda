"""Recomputation for adapted transformers: one stored tensor an adapted block, whatever lies in between.

A segment leads from one adapted block's output y (before its adapter) to the next one's: z = y + adapter(y), which
needs the whole window, then the frozen blocks up to and with the next adapted one, which need no more than a clip.
Forward keeps y alone. Backward recomputes z, then runs the blocks chunk by chunk, each chunk forward and at once
backward, and last the adapter's backward pass: every block is recomputed once, and needs the memory of one chunk.

`torch.utils.checkpoint` around a segment would hold the graphs of all its chunks together in the backward pass.

M clips, N tokens a clip, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What lies between two stored tensors.

    Attributes:
        adapt: tokens of whole windows to adapted ones, (M, N, C) to (M, N, C).
        run: the frozen blocks that follow, on the clips from `start`: (m, N, C), start to (m, N, C); None: none follow.
        pieces: in how many chunks the clips run; the same on all ranks, where ZeRO-3 gathers weights for each.
    """

    adapt: Callable[[Tensor], Tensor]
    run: Callable[[Tensor, int], Tensor] | None
    pieces: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """(M, N, C) to (M, N, C)."""
        if not torch.is_grad_enabled():
            return self.forward(tokens)
        anchor = torch.zeros(
            (), device=tokens.device, requires_grad=True
        )  # the first segment's input needs no gradient
        return _Recomputed.apply(tokens, anchor, self)  # pyright: ignore[reportReturnType]

    def forward(self, tokens: Tensor) -> Tensor:
        """Without a graph."""
        adapted = self.adapt(tokens)
        if self.run is None:
            return adapted
        out = torch.empty_like(adapted)
        for start, stop in self._chunks(len(tokens)):
            out[start:stop] = self.run(adapted[start:stop], start)
        return out

    def backward(self, tokens: Tensor, gradient: Tensor, *, input_needs_gradient: bool) -> Tensor | None:
        """Recompute and back-propagate; adapters' gradients are added where they belong."""
        tokens = tokens.detach().requires_grad_(input_needs_gradient)
        with torch.enable_grad():
            adapted = self.adapt(tokens)
        if self.run is not None:
            inner = torch.empty_like(gradient)
            for start, stop in self._chunks(len(tokens)):
                chunk = adapted[start:stop].detach().requires_grad_()
                with torch.enable_grad():
                    out = self.run(chunk, start)
                torch.autograd.backward(out, gradient[start:stop])
                assert chunk.grad is not None
                inner[start:stop] = chunk.grad
            gradient = inner
        torch.autograd.backward(adapted, gradient)
        return tokens.grad

    def _chunks(self, count: int) -> list[tuple[int, int]]:
        edges = [count * piece // self.pieces for piece in range(self.pieces + 1)]
        return list(pairwise(edges))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, anchor: Tensor, segment: Segment) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.segment = segment
        return segment.forward(tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:  # pyright: ignore
        (tokens,) = ctx.saved_tensors
        return ctx.segment.backward(tokens, gradient, input_needs_gradient=ctx.needs_input_grad[0]), None, None
