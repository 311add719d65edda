"""Long-range adapters beside the frozen transformer (`ladder`), after LoSA (arXiv 2404.01282).

At each chosen block two adapters read the block's output: a short-range one at each position (`adapters.TIA`, as with
`side`), and one of these, which reads its mean over positions and looks far over the time of the whole window. What
all of them add up to is added to the transformer's features. The means are small, so autograd keeps the graph of all
long-range adapters; no gradient leaves them for the transformer.

R chosen blocks, B windows, T tubelets of the whole window, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.models.execution.segments import pool
from adatad_ds.models.tuning.adapters import DepthwiseTimeConv, hidden_width, init_bottleneck

KERNEL = 3


class LongRange(nn.Module):
    """A bottleneck with convolutions over time whose dilations grow.

        h = GELU(W_down x + b);  for each dilation: h = h + GELU(DWConv(h));  out = gamma * (W_up h + b)

    Beyond the window's two ends there are zeros. W_up starts at zero.

    Args:
        width: channels C.
        ratio: hidden channels relative to C (`hidden_width`).
        dilations: tubelets between the three taps of each convolution.
    """

    def __init__(self, *, width: int, ratio: float, dilations: Sequence[int]) -> None:
        super().__init__()
        hidden = hidden_width(width, ratio)
        self.down_proj = nn.Linear(width, hidden)
        self.convs = nn.ModuleList(
            DepthwiseTimeConv(width=hidden, kernel=KERNEL, dilation=dilation) for dilation in dilations
        )
        self.up_proj = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(1))
        init_bottleneck(self.down_proj, self.up_proj)

    @property
    def reach(self) -> int:
        """Receptive field to either side, in tubelets."""
        return sum(conv.reach for conv in self.convs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def forward(self, means: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        hidden = F.gelu(self.down_proj(means)).unsqueeze(2)
        for conv in self.convs:
            hidden = hidden + F.gelu(conv(hidden))
        return self.gamma * self.up_proj(hidden.squeeze(2))


def long_range_sum(adapters: Iterable[nn.Module], means: Tensor) -> Tensor:
    """The sum of long-range adapters' outputs, (B, T, C) float32, of the means that each reads, (R, B, C, T)."""
    outputs = (adapter(mean.transpose(1, 2)).float() for adapter, mean in zip(adapters, means, strict=True))
    return functools.reduce(torch.add, outputs)


def with_means(outputs: Iterator[Tensor], means: Tensor, start: int, *, pooled: slice) -> Iterator[Tensor]:
    """Blocks' outputs of the span at tubelet `start`, unchanged; means over positions are written as they come.

    Args:
        outputs: (B, t, S, C) each, of the chosen blocks and then others.
        means: (R, B, C, T), of this rank's tubelets.
        start: the span's first tubelet.
        pooled: the positions whose mean it is.
    """
    for mean, tokens in zip(means, outputs, strict=False):
        mean[..., start : start + tokens.shape[1]] = pool(tokens, pooled).transpose(1, 2)
        yield tokens
    yield from outputs
