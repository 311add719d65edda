"""Adapters: the few trainable parameters inside the frozen transformer, or next to it (side adapters).

AdaTAD (arXiv 2311.17241), section 3.2. B windows, T tubelets of the whole window, S = h * w positions, C channels,
r adapter ratio.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adatad_ds.errors import ConfigError


def hidden_width(width: int, ratio: float) -> int:
    """Hidden channels of a bottleneck on `width` channels, rounded down.

    Raises:
        ConfigError: there are none.
    """
    hidden = int(width * ratio)
    if not hidden:
        raise ConfigError(
            f"backbone.adapter_ratio={ratio:g} leaves adapters of a backbone of width {width} no hidden channel; it "
            f"must be at least {1 / width:g}"
        )
    return hidden


class TIA(nn.Module):
    """Temporal-informative adapter: a bottleneck with a temporal convolution across the WHOLE window.

        xbar = GELU(W_down x + b);  xhat = xbar + W_mid DWConv(xbar);  out = gamma * (W_up xhat + b)

    The temporal convolution crosses clip borders; beyond the window's two ends there are zeros. W_up starts at zero,
    so the adapted model equals the pretrained one at the first step.

    Args:
        width: channels C of the tokens.
        ratio: hidden channels relative to C (`hidden_width`).
        kernel: taps of the temporal convolution, odd.
        dilation: tubelets between two taps.
    """

    def __init__(self, *, width: int, ratio: float, kernel: int, dilation: int) -> None:
        super().__init__()
        hidden = hidden_width(width, ratio)
        self.down_proj = nn.Linear(width, hidden)
        self.dwconv = DepthwiseTimeConv(width=hidden, kernel=kernel, dilation=dilation)
        self.conv = nn.Linear(hidden, hidden)
        self.up_proj = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(1))
        init_bottleneck(self.down_proj, self.up_proj)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2.0 / hidden))
        nn.init.zeros_(self.conv.bias)

    @property
    def reach(self) -> int:
        """Receptive field to either side, in tubelets."""
        return self.dwconv.reach

    def forward(self, tokens: Tensor, before: int = 0, after: int = 0) -> Tensor:
        """The adapter's output for a span of the window, to be added to its tokens.

        Args:
            tokens: (B, before + T + after, S, C): the span with its context on both sides.
            before: tubelets of context before the span; fewer than `reach` at the window's start.
            after: tubelets of context after it; fewer than `reach` at the window's end.

        Returns:
            (B, T, S, C).
        """
        bottleneck = F.gelu(self.down_proj(tokens))
        mixed = self.conv(self.dwconv(bottleneck, before, after))
        return self.gamma * self.up_proj(bottleneck[:, before : before + mixed.shape[1]] + mixed)


class PlainAdapter(nn.Module):
    """The ablation without temporal convolution: out = gamma * (W_up GELU(W_down x + b) + b)."""

    reach = 0

    def __init__(self, *, width: int, ratio: float) -> None:
        super().__init__()
        hidden = hidden_width(width, ratio)
        self.down_proj = nn.Linear(width, hidden)
        self.up_proj = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(1))
        init_bottleneck(self.down_proj, self.up_proj)

    def forward(self, tokens: Tensor, before: int = 0, after: int = 0) -> Tensor:
        """The adapter's output: (B, before + T + after, S, C) to (B, T, S, C); context is ignored."""
        own = tokens[:, before : tokens.shape[1] - after]
        return self.gamma * self.up_proj(F.gelu(self.down_proj(own)))


class DepthwiseTimeConv(nn.Module):
    """Depthwise temporal convolution at each position, with zero padding, channels last.

    A few shifted multiply-adds on the tokens in place of the published Conv1d, which needs two permuted copies.
    """

    def __init__(self, *, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.reach = dilation * (kernel // 2)
        self.weight = nn.Parameter(torch.empty(width, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=math.sqrt(2.0 / kernel))

    def forward(self, tokens: Tensor, before: int = 0, after: int = 0) -> Tensor:
        """(B, before + T + after, S, C) to (B, T, S, C); missing context up to `reach` is zero."""
        taps = self.weight.squeeze(1).t()  # (kernel, C)
        return _Taps.apply(tokens, taps, self.bias, before, after, self.dilation)  # pyright: ignore[reportReturnType]


class _Taps(torch.autograd.Function):
    """The convolution's taps, added up in place; autograd's own backward pass takes twice its time and memory."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, taps: Tensor, bias: Tensor, before: int, after: int, dilation: int) -> Tensor:
        taps = taps.contiguous()
        middle, *others = _reads(tokens.shape[1], before, after, taps=len(taps), dilation=dilation)
        out = torch.addcmul(bias, tokens[:, middle.inputs], taps[middle.tap])
        for tap, outputs, inputs in others:
            out[:, outputs].addcmul_(tokens[:, inputs], taps[tap])
        ctx.save_for_backward(tokens, taps)
        ctx.before, ctx.after, ctx.dilation = before, after, dilation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        tokens, taps = ctx.saved_tensors
        reads = _reads(tokens.shape[1], ctx.before, ctx.after, taps=len(taps), dilation=ctx.dilation)
        of_tokens = F.pad(gradient * taps[reads[0].tap], (0, 0, 0, 0, ctx.before, ctx.after))
        for tap, outputs, inputs in reads[1:]:
            of_tokens[:, inputs].addcmul_(gradient[:, outputs], taps[tap])
        of_taps = [(gradient[:, outputs] * tokens[:, inputs]).sum((0, 1, 2)) for _, outputs, inputs in sorted(reads)]
        return of_tokens, torch.stack(of_taps), gradient.sum((0, 1, 2)), None, None, None


class _Read(NamedTuple):
    """Which outputs a tap adds to, and which inputs it reads for them."""

    tap: int
    outputs: slice
    inputs: slice


def _reads(total: int, before: int, after: int, *, taps: int, dilation: int) -> list[_Read]:
    """What each tap reads of `total` tubelets, context included; the middle one first, which reaches all outputs."""
    steps, reads = total - before - after, []
    for tap in sorted(range(taps), key=lambda tap: tap != taps // 2):
        shift = before + (tap - taps // 2) * dilation
        first = min(steps, max(0, -shift))
        last = max(first, min(steps, total - shift))
        reads.append(_Read(tap, slice(first, last), slice(first + shift, last + shift)))
    return reads


def init_bottleneck(down: nn.Linear, up: nn.Linear) -> None:
    """Small weights into the bottleneck, zeros out of it: an adapter adds nothing at first."""
    nn.init.trunc_normal_(down.weight, std=0.02)
    for tensor in (down.bias, up.weight, up.bias):
        nn.init.zeros_(tensor)
