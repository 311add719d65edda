"""TriDet's scalable-granularity perception (SGP) layer (arXiv 2303.07347, section 3.2).

B windows, T feature steps, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.head import SGP_GROUPS
from adatad_ds.models.pyramid import ScaledDropPath
from adatad_ds.models.sample_noise import SampleNoise


class SGPBlock(nn.Module):
    """Depthwise convolutions of two widths, gated by themselves and by the window's mean, and an MLP.

    f(x) = phi(x) FC(x) + psi(x) (Conv_w(x) + Conv_kw(x)) + x, with phi(x) = ReLU(FC(mean over time)), psi = Conv_w'.

    As published, means and the MLP's group normalisation count padded steps too, and these are not masked in between.

    Args:
        width: C, a multiple of `SGP_GROUPS`.
        window: w, kernel of Conv_w and psi, odd.
        scale: k, see `HeadConfig.sgp_scale`.
        stride: 2 halves the rate by max pooling first.
        mlp_width: hidden channels of the MLP.
        drop_path: stochastic depth rate of both branches, which have a trainable scale then; None: neither.
        init_std: deviation of the initial weights of the depthwise convolutions.
    """

    def __init__(
        self,
        *,
        width: int,
        window: int,
        scale: float,
        stride: int,
        mlp_width: int,
        drop_path: float | None,
        init_std: float,
    ) -> None:
        super().__init__()
        self.stride = stride

        def depthwise(kernel: int) -> nn.Conv1d:
            conv = nn.Conv1d(width, width, kernel_size=kernel, padding=kernel // 2, groups=width)
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=init_std)
            nn.init.zeros_(conv.bias)
            return conv

        self.norm = nn.LayerNorm(width)
        self.instant, self.instant_gate = depthwise(1), depthwise(1)
        self.window, self.window_gate = depthwise(window), depthwise(window)
        self.wide_window = depthwise(round((window + 1) * scale) // 2 * 2 + 1)
        self.mlp_norm = nn.GroupNorm(SGP_GROUPS, width)
        self.fc1, self.fc2 = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        for linear in (self.fc1, self.fc2):
            nn.init.zeros_(linear.bias)
        self.mix_branch, self.mlp_branch = (
            None if drop_path is None else ScaledDropPath(width=width, rate=drop_path) for _ in range(2)
        )

    def forward(self, x: Tensor, valid: Tensor, noise: SampleNoise | None) -> tuple[Tensor, Tensor]:
        """(B, T, C) and (B, T) to (B, T / stride, C) and (B, T / stride)."""
        if self.stride > 1:
            x = F.max_pool1d(x.transpose(1, 2), kernel_size=3, stride=self.stride, padding=1).transpose(1, 2)
        valid = valid[:, :: self.stride]
        normed = self.norm(x).transpose(1, 2)  # (B, C, T)
        gate = F.relu(self.instant_gate(normed.mean(dim=2, keepdim=True)))
        windows = (self.window(normed) + self.wide_window(normed)) * self.window_gate(normed)
        mixed = (self.instant(normed) * gate + windows + normed).transpose(1, 2)
        x = x * valid.unsqueeze(-1) + (mixed if self.mix_branch is None else self.mix_branch(mixed, noise))
        hidden = self.fc2(F.gelu(self.fc1(self.mlp_norm(x.transpose(1, 2)).transpose(1, 2))))
        return x + (hidden if self.mlp_branch is None else self.mlp_branch(hidden, noise)), valid
