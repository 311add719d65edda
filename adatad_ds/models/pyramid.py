"""ActionFormer's temporal feature pyramid (arXiv 2202.07925, section 3.2).

B windows, T feature steps, C channels, channels last throughout: (B, T, C). Steps beyond the video's end are masked
after every operation over time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.models.backbones.vit import sinusoid
from adatad_ds.models.sample_noise import SampleNoise

CONV_NORM_EPS = 1e-6  # of the convolution modules and the neck; the transformer blocks use PyTorch's 1e-5
ACTIONFORMER_EPS = 1e-5  # the same in ActionFormer's own code
ATTENDED_AT_ONCE = 1024  # steps of local attention
HALVING = 2


class Pyramid(nn.Module):
    """Masked convolutions, blocks at full rate, then blocks that halve the rate; LayerNorm on each level.

    Args:
        in_channels: channels of the backbone's features.
        sources: projects these features, `in_channels` to `width`, before the convolutions; None: they take them.
        width: channels C of every level.
        arch: numbers of convolutions, of blocks at full rate, and of halving blocks (= levels - 1).
        make_block: makes the block of a level and a stride (1 or 2): a module that maps features (B, T, C), mask (B, T)
            and noise to features and mask of T / stride steps.
        steps: T, the window's feature steps plus padding.
        step_multiple: what longer ones are padded to a multiple of; 0: of the coarsest level's stride.
        abs_pos_embed: add a fixed sine-cosine position embedding after the convolutions.
        input_dropout: dropout rate of input channels in training.
        input_noise: deviation of Gaussian noise added to the features in training.
        actionformer_norms: see `MaskedConv`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        sources: SourceProjections | None = None,
        width: int,
        arch: tuple[int, int, int],
        make_block: Callable[[int, int], nn.Module],
        steps: int,
        step_multiple: int = 0,
        abs_pos_embed: bool,
        input_dropout: float = 0.0,
        input_noise: float = 0.0,
        actionformer_norms: bool = False,
    ) -> None:
        super().__init__()
        convolutions, full_rate, halving = arch
        self.input_dropout, self.input_noise = input_dropout, input_noise
        self.steps = steps
        self.step_multiple = step_multiple or HALVING**halving
        self.sources = sources
        in_channels = in_channels if sources is None else width
        self.embed = nn.ModuleList(
            MaskedConv(
                in_channels=width if i else in_channels, out_channels=width, actionformer_norms=actionformer_norms
            )
            for i in range(convolutions)
        )
        position = sinusoid(length=steps, width=width) / width**0.5 if abs_pos_embed else None
        self.position: Tensor | None
        self.register_buffer("position", position, persistent=False)

        self.stem = nn.ModuleList(make_block(0, 1) for _ in range(full_rate))
        self.branch = nn.ModuleList(make_block(level, HALVING) for level in range(1, halving + 1))
        eps = ACTIONFORMER_EPS if actionformer_norms else CONV_NORM_EPS
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(halving + 1))

    def forward(
        self, features: Tensor, valid: Tensor, noise: SampleNoise | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features of all levels, from fine to coarse.

        Args:
            features: (B, steps, in_channels), padded to T or, if longer, to a multiple of `step_multiple`.
            valid: (B, the same) bool, False beyond the video's end.
            noise: per-sample randomness in training; None: nothing is dropped.

        Returns:
            Features (B, T / 2^l, C) and masks (B, T / 2^l) of each level l.
        """
        own = features.shape[1]
        steps = self.steps if own <= self.steps else -(-own // self.step_multiple) * self.step_multiple
        padding = steps - own
        x, valid = F.pad(features, (0, 0, 0, padding)), F.pad(valid, (0, padding))
        if noise is not None and self.input_noise > 0:
            x = x + self.input_noise * noise.normal(*x.shape[1:]).to(x.dtype)
        if noise is not None and self.input_dropout > 0:
            x = x * noise.keep(1, x.shape[-1], rate=self.input_dropout).to(x.dtype)
        if self.sources is not None:
            x = self.sources(x) * valid.unsqueeze(-1)
        for convolution in self.embed:
            x = convolution(x, valid)
        if self.position is not None:
            x = x + self._position(steps).to(x.dtype) * valid.unsqueeze(-1)
        for block in self.stem:
            x, valid = block(x, valid, noise)
        levels, masks = [x], [valid]
        for block in self.branch:
            x, valid = block(x, valid, noise)
            levels.append(x)
            masks.append(valid)
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)], masks

    def _position(self, steps: int) -> Tensor:
        """Position embedding (1, steps, C), stretched where steps are more than it was made for."""
        assert self.position is not None
        if steps == self.position.shape[-2]:
            return self.position
        stretched = F.interpolate(self.position.transpose(-1, -2).reshape(1, -1, self.steps), size=steps, mode="linear")
        return stretched.transpose(1, 2)


class SourceProjections(nn.Module):
    """A linear layer for each of several sources, whose features lie side by side before and after.

    Args:
        channels: of each source.
        widths: channels that each is projected to.
    """

    def __init__(self, *, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.linears = nn.ModuleList(nn.Linear(own, width) for own, width in zip(channels, widths, strict=True))
        for linear in self.linears:
            nn.init.zeros_(linear.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, sum of channels) to (B, T, sum of widths)."""
        parts = features.split(self.channels, dim=-1)
        return torch.cat([linear(part) for linear, part in zip(self.linears, parts, strict=True)], dim=-1)


class MaskedConv(nn.Module):
    """Temporal convolution without bias, LayerNorm, ReLU; masked before the norm and at the end.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: of the convolution, odd.
        actionformer_norms: as in ActionFormer's own code: not masked at the end, so that padding holds the norm's bias.
    """

    def __init__(self, *, in_channels: int, out_channels: int, kernel: int = 3, actionformer_norms: bool) -> None:
        super().__init__()
        self.actionformer_norms = actionformer_norms
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size=kernel, padding=kernel // 2, bias=False)
        self.norm = nn.LayerNorm(out_channels, eps=ACTIONFORMER_EPS if actionformer_norms else CONV_NORM_EPS)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, in) and (B, T) bool to (B, T, out)."""
        mask = valid.unsqueeze(-1)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2) * mask
        x = F.relu(self.norm(x))
        return x if self.actionformer_norms else x * mask


class PyramidBlock(nn.Module):
    """Pre-norm masked attention and MLP with layer scale, dropout and drop path; may halve the rate."""

    def __init__(
        self, *, width: int, heads: int, attn_window: int, stride: int, drop_path: float, proj_dropout: float
    ) -> None:
        super().__init__()
        self.stride = stride
        self.proj_dropout = proj_dropout
        self.ln1 = nn.LayerNorm(width)
        self.attn = ConvAttention(width=width, heads=heads, window=attn_window, stride=stride)
        self.ln2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.attn_branch = ScaledDropPath(width=width, rate=drop_path)
        self.mlp_branch = ScaledDropPath(width=width, rate=drop_path)
        for linear in (self.fc1, self.fc2):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, valid: Tensor, noise: SampleNoise | None) -> tuple[Tensor, Tensor]:
        """(B, T, C) and (B, T) to (B, T / stride, C) and (B, T / stride)."""
        out_valid = valid[:, :: self.stride]
        mask = out_valid.unsqueeze(-1)
        mixed = self._dropped(self.attn(self.ln1(x), valid, out_valid), noise)
        if self.stride > 1:
            x = F.max_pool1d(x.transpose(1, 2), kernel_size=3, stride=self.stride, padding=1).transpose(1, 2)
        x = x * mask + self.attn_branch(mixed, noise)
        hidden = self._dropped(F.gelu(self.fc1(self.ln2(x))), noise)
        hidden = self._dropped(self.fc2(hidden), noise) * mask
        return x + self.mlp_branch(hidden, noise), out_valid

    def _dropped(self, x: Tensor, noise: SampleNoise | None) -> Tensor:
        """Elementwise dropout of (B, T, C)."""
        if noise is None or self.proj_dropout == 0:
            return x
        return x * noise.keep(*x.shape[1:], rate=self.proj_dropout).to(x.dtype)


class MaxPooling(nn.Module):
    """Masked max pooling over three steps (TemporalMaxer, arXiv 2303.09055); may halve the rate."""

    def __init__(self, *, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, valid: Tensor, noise: SampleNoise | None) -> tuple[Tensor, Tensor]:
        """(B, T, C) and (B, T) to (B, T / stride, C) and (B, T / stride)."""
        out_valid = valid[:, :: self.stride]
        pooled = F.max_pool1d(x.transpose(1, 2), kernel_size=3, stride=self.stride, padding=1).transpose(1, 2)
        return pooled * out_valid.unsqueeze(-1), out_valid


class ScaledDropPath(nn.Module):
    """Trainable per-channel scale, initially small, and per-sample stochastic depth."""

    def __init__(self, *, width: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, x: Tensor, noise: SampleNoise | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x * self.scale
        if noise is None or self.rate == 0:
            return x
        return x * noise.keep(1, 1, rate=self.rate).to(x.dtype)


class ConvAttention(nn.Module):
    """Multi-head attention whose q, k, v come from depthwise temporal convolutions, which may halve the rate.

    Local attention is ordinary attention with a band mask, some steps at a time: up to a thousand steps the dense
    product is cheaper than gathering windows, and of longer ones neither mask nor product grows with the square.
    """

    def __init__(self, *, width: int, heads: int, window: int, stride: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window

        def depthwise() -> nn.Conv1d:
            return nn.Conv1d(width, width, kernel_size=3, stride=stride, padding=1, groups=width, bias=False)

        self.query_conv, self.key_conv, self.value_conv = depthwise(), depthwise(), depthwise()
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        for linear in (self.query, self.key, self.value, self.proj):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, valid: Tensor, out_valid: Tensor) -> Tensor:
        """(B, T, C) to (B, T / stride, C); `valid` (B, T) and `out_valid` (B, T / stride) bool."""
        mask = out_valid.unsqueeze(-1)
        channels_first = x.transpose(1, 2)
        query = self.query(self.query_norm(self.query_conv(channels_first).transpose(1, 2) * mask))
        key = self.key(self.key_norm(self.key_conv(channels_first).transpose(1, 2) * mask))
        value = self.value(self.value_norm(self.value_conv(channels_first).transpose(1, 2) * mask))
        query, key, value = (self._split(projected) for projected in (query, key, value))
        if self.window > 1:
            mixed = self._local(query, key, value, out_valid)
        else:  # where nothing is valid, all may be attended to: softmax over nothing is NaN
            allowed = out_valid | ~out_valid.any(dim=1, keepdim=True)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None, None, :])
        return self.proj(mixed.transpose(1, 2).flatten(2)) * mask

    def _local(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        """(B, heads, T, C / heads); each step may attend to itself, so that none attends to nothing."""
        steps, reach = valid.shape[1], self.window // 2
        place = torch.arange(steps, device=valid.device)
        parts = []
        for begin in range(0, steps, ATTENDED_AT_ONCE):
            end = min(begin + ATTENDED_AT_ONCE, steps)
            near = slice(max(begin - reach, 0), end + reach)
            distance = (place[begin:end, None] - place[None, near]).abs()
            allowed = (valid[:, None, None, near] | (distance == 0)) & (distance <= reach)
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, begin:end], key[:, :, near], value[:, :, near], attn_mask=allowed
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, C / heads)
