"""Adapters: the few trainable parameters inside the frozen transformer, or next to it (side adapters).

AdaTAD (arXiv 2311.17241), section 3.2. B windows, T tubelets of the whole window, S = h * w positions, C channels,
r adapter ratio.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TIA(nn.Module):
    """Temporal-informative adapter: a bottleneck with a temporal convolution across the WHOLE window.

        xbar = GELU(W_down x + b);  xhat = xbar + W_mid DWConv(xbar);  out = gamma * (W_up xhat + b)

    The temporal convolution crosses clip borders; beyond the window's two ends there are zeros. W_up starts at zero,
    so the adapted model equals the pretrained one at the first step.

    Args:
        width: channels C of the tokens.
        ratio: hidden channels = int(width * ratio).
        kernel: taps of the temporal convolution, odd.
        dilation: tubelets between two taps.
    """

    def __init__(self, *, width: int, ratio: float, kernel: int, dilation: int) -> None:
        super().__init__()
        hidden = int(width * ratio)
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
        hidden = int(width * ratio)
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
        steps = tokens.shape[1] - before - after
        padded = F.pad(tokens, (0, 0, 0, 0, self.reach - before, self.reach - after))
        out = self.bias.expand(*tokens.shape[:1], steps, *tokens.shape[2:])
        for tap in range(self.weight.shape[-1]):
            start = tap * self.dilation
            out = torch.addcmul(out, padded[:, start : start + steps], self.weight[:, 0, tap])
        return out


def init_bottleneck(down: nn.Linear, up: nn.Linear) -> None:
    """Small weights into the bottleneck, zeros out of it: an adapter adds nothing at first."""
    nn.init.trunc_normal_(down.weight, std=0.02)
    for tensor in (down.bias, up.weight, up.bias):
        nn.init.zeros_(tensor)
