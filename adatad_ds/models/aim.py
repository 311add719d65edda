"""AIM: a frozen image transformer as a video model (Yang et al., ICLR 2023, arXiv 2302.03024, section 3).

B videos or windows, T frames of each, n = T / t clips of t frames, N tokens a frame, C channels. Tokens are
(B * n, t, N, C). Attention over time never leaves a clip.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adatad_ds.config import ConfigError
from adatad_ds.models.image_vit import ImageTransformer, attend
from adatad_ds.models.noise import SampleNoise

AIMAdapter = Literal["temporal", "spatial", "joint"]
AIMTuning = Literal["frozen", "adapters", "full"]
ALL_ADAPTERS: tuple[AIMAdapter, ...] = get_args(AIMAdapter)
ADAPTER_RATIO = 0.25
JOINT_SCALE = 0.5
BRANCHES = 2  # under drop path: temporal, joint


class Bottleneck(nn.Module):
    """out = W_2 GELU(W_1 x + b) + b, plus x with `skip`. W_2 starts at zero.

    Args:
        width: channels C.
        skip: whether the input is added.
    """

    def __init__(self, *, width: int, skip: bool) -> None:
        super().__init__()
        hidden = int(width * ADAPTER_RATIO)
        self.skip = skip
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.fc1.weight, std=0.02)
        for tensor in (self.fc1.bias, self.fc2.weight, self.fc2.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        out = self.fc2(F.gelu(self.fc1(x)))
        return x + out if self.skip else out


class BlockAdapters(nn.Module):
    """The adapters of one block, and how the frozen block is run with them.

        z = z + keep * Adapter_T(MSA over the t frames of each position(LN1(z)))      with "temporal" only
        z = z + Adapter_S(MSA over the N tokens of each frame(LN1(z)))
        z = z + MLP(LN2(z)) + keep * 0.5 * Adapter_J(LN2(z))

    Both attentions are the same frozen one. Without its adapter, the second and third lines are the image model's.

    Args:
        width: channels C.
        adapt: which adapters there are.
        adapter_before_time: one more, with skip, before the attention over time.
    """

    def __init__(self, *, width: int, adapt: frozenset[AIMAdapter], adapter_before_time: bool) -> None:
        super().__init__()

        def bottleneck(wanted: bool, *, skip: bool) -> Bottleneck | None:
            return Bottleneck(width=width, skip=skip) if wanted else None

        self.temporal_in = bottleneck(adapter_before_time, skip=True)
        self.temporal = bottleneck("temporal" in adapt, skip=False)
        self.spatial = bottleneck("spatial" in adapt, skip=True)
        self.joint = bottleneck("joint" in adapt, skip=False)

    def run(self, block: nn.Module, tokens: Tensor, keep: Tensor | None) -> Tensor:
        """Clips through the block: (n, t, N, C) to the same.

        Not this module's call, which ZeRO-3 would search for tensors and find a block.

        Args:
            block: the image transformer's.
            tokens: of n clips.
            keep: drop-path factors of the temporal and the joint branch, (n, 2); None: both kept.
        """
        assert isinstance(block, Block)
        if keep is not None:
            keep = keep.to(tokens.dtype)[:, :, None, None, None]
        if self.temporal is not None:
            over_time = block.norm1(tokens).transpose(1, 2)  # (n, N, t, C)
            if self.temporal_in is not None:
                over_time = self.temporal_in(over_time)
            mixed = attend(block, over_time.flatten(0, 1)).view(over_time.shape)
            tokens = tokens + _kept(self.temporal(mixed), keep, 0).transpose(1, 2)
        mixed = attend(block, block.norm1(tokens).flatten(0, 1)).view(tokens.shape)
        tokens = tokens + (mixed if self.spatial is None else self.spatial(mixed))
        normed = block.norm2(tokens)
        tokens = tokens + block.ls2(block.mlp(normed))
        return tokens if self.joint is None else tokens + _kept(JOINT_SCALE * self.joint(normed), keep, 1)


class AIMTransformer(nn.Module):
    """An image transformer over the frames of videos, adapted to time.

    - `frozen`: the image model, frame by frame; only its final norm learns.
    - `adapters`: the adapters, the temporal embedding and the final norm learn.
    - `full`: everything learns, with or without adapters.

    Args:
        vit: the image transformer; its parameters but the final norm are frozen here unless `tuning` is `full`.
        clip_frames: t, over which attention over time goes.
        adapt: which adapters there are; attention over time and its embedding come with "temporal".
        tuning: one of the three ways above.
        adapter_before_time: the variant for strongly temporal data (see `BlockAdapters`).
        drop_path: stochastic depth rate of the last block's temporal and joint branch, falling linearly to 0 at the
            first block's; without those adapters there is nothing to drop.
        activation_checkpointing: keep each block's input for the backward pass, and recompute the rest.

    Raises:
        ConfigError: a combination that makes no sense.
    """

    def __init__(
        self,
        *,
        vit: ImageTransformer,
        clip_frames: int,
        adapt: Iterable[AIMAdapter],
        tuning: AIMTuning,
        adapter_before_time: bool,
        drop_path: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        chosen = frozenset(adapt)
        _check(chosen, tuning=tuning, adapter_before_time=adapter_before_time, clip_frames=clip_frames, rate=drop_path)
        self.vit = vit.requires_grad_(tuning == "full")
        self.clip_frames = clip_frames
        self.adapt = chosen
        self.tuning = tuning
        self.drop_path = drop_path
        self.activation_checkpointing = activation_checkpointing
        self.adapters = nn.ModuleList(
            BlockAdapters(width=vit.width, adapt=chosen, adapter_before_time=adapter_before_time) for _ in vit.blocks
        )
        self.temporal_embedding = nn.Parameter(torch.zeros(1, clip_frames, vit.width)) if "temporal" in chosen else None
        for norm in (vit.norm, vit.fc_norm):
            norm.requires_grad_(True)

    @property
    def width(self) -> int:
        """C, the channels of the features."""
        return self.vit.width

    def forward(self, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """Features of each frame, for recognition.

        Args:
            frames: (B, T, H, W, 3) uint8, T a multiple of t.
            noise: per-sample randomness of drop path in training; None: every branch is kept.

        Returns:
            (B, T, C), in the weights' type.

        Raises:
            ValueError: T is no multiple of t, or frames of another size.
        """
        videos, count = frames.shape[:2]
        if count == 0 or count % self.clip_frames:
            raise ValueError(f"{count} frames are no multiple of the clips' {self.clip_frames}")
        clips = count // self.clip_frames
        keep = self._drop_path_factors(noise, clips=clips)
        tokens = self.vit(frames.flatten(0, 1)).unflatten(0, (videos * clips, self.clip_frames))
        if self.temporal_embedding is not None:
            tokens = tokens + self.temporal_embedding[:, :, None]
        tokens = self.vit.norm_pre(tokens)
        for index in range(len(self.adapters)):
            tokens = self._block(index, tokens, None if keep is None else keep[:, index])
        return self.vit.pool(tokens).view(videos, count, self.width)

    def window_features(self, frames: Tensor, steps: int, noise: SampleNoise | None = None) -> Tensor:
        """Features of windows, for detection: each the mean of T / `steps` frames.

        Args:
            frames: (B, T, H, W, 3) uint8, T a multiple of t.
            steps: features of a window, a divisor of T.
            noise: as for `forward`.

        Returns:
            (B, C, steps) float32.

        Raises:
            ValueError: as for `forward`, and where `steps` does not divide T.
        """
        if steps < 1 or frames.shape[1] % steps:
            raise ValueError(f"{frames.shape[1]} frames do not make {steps} features")
        features = self(frames, noise).float()
        return features.unflatten(1, (steps, -1)).mean(dim=2).transpose(1, 2)

    def _block(self, index: int, tokens: Tensor, keep: Tensor | None) -> Tensor:
        """Block `index` with its adapters: (B * n, t, N, C) to the same.

        Not the reentrant kind of checkpoint: it loses gradients silently where a block's input needs none.
        """
        adapters, block = self.adapters[index], self.vit.blocks[index]
        assert isinstance(adapters, BlockAdapters)
        if self.activation_checkpointing and self.tuning != "frozen" and torch.is_grad_enabled():
            return checkpoint(adapters.run, block, tokens, keep, use_reentrant=False, preserve_rng_state=False)
        return adapters.run(block, tokens, keep)

    def _drop_path_factors(self, noise: SampleNoise | None, *, clips: int) -> Tensor | None:
        """(B * n, depth, 2), drawn once a forward pass so that recomputation shares them."""
        if noise is None or self.drop_path == 0 or not self.adapt & {"temporal", "joint"}:
            return None
        depth = len(self.adapters)
        rate = torch.linspace(0, self.drop_path, depth)[:, None]  # the reference's rule, block by block
        return noise.keep(clips, depth, BRANCHES, rate=rate).flatten(0, 1)


def _kept(branch: Tensor, keep: Tensor | None, which: int) -> Tensor:
    return branch if keep is None else branch * keep[:, which]


def _check(
    adapt: frozenset[str], *, tuning: AIMTuning, adapter_before_time: bool, clip_frames: int, rate: float
) -> None:
    unknown = sorted(adapt - set(ALL_ADAPTERS))
    if unknown:
        raise ConfigError(f"there is no adapter {', '.join(unknown)}; there are {', '.join(ALL_ADAPTERS)}")
    if tuning not in get_args(AIMTuning):
        raise ConfigError(f"tuning is one of {', '.join(get_args(AIMTuning))}, not {tuning}")
    if tuning == "adapters" and not adapt:
        raise ConfigError("tuning=adapters wants at least one adapter; without, choose tuning=frozen or full")
    if tuning == "frozen" and adapt:
        raise ConfigError(f"tuning=frozen has no adapters, but {', '.join(sorted(adapt))} were asked for")
    if adapter_before_time and "temporal" not in adapt:
        raise ConfigError("the adapter before attention over time wants the temporal adapter too")
    if clip_frames < 1:
        raise ConfigError(f"clips have at least 1 frame, not {clip_frames}")
    if not 0 <= rate < 1:
        raise ConfigError(f"the drop-path rate lies in [0, 1), not at {rate}")
