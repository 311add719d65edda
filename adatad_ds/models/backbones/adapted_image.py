"""AIM: a frozen image transformer as a video model (Yang et al., ICLR 2023, arXiv 2302.03024, section 3).

B videos or windows, F frames of each, F / t clips of t frames, n clips at once, N tokens per frame, C channels,
T feature steps. Tokens are (n, t, N, C).

Temporal attention never leaves a clip, so clips are independent from frames to features. They run through the whole
transformer a few at a time, and are recomputed in the same way: memory holds frames, features and the activations of
one chunk, however many frames a window has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.backbone import AIMAdapter
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.clips import clip_chunks, drop_path_factors, recomputed
from adatad_ds.models.backbones.image_blocks import ImageBlock
from adatad_ds.models.backbones.image_vit import ImageTransformer
from adatad_ds.models.execution.window_share import TimeShard, WholeWindow
from adatad_ds.models.sample_noise import SampleNoise
from adatad_ds.models.tuning.adapters import hidden_width

TUNINGS = ("frozen", "aim", "full")
ALL_ADAPTERS: tuple[AIMAdapter, ...] = get_args(AIMAdapter)
BRANCHES = 2  # under drop path: temporal, joint


class Bottleneck(nn.Module):
    """out = W_2 GELU(W_1 x + b) + b, plus x with `skip`. W_2 starts at zero.

    Args:
        width: channels C.
        ratio: hidden channels relative to C.
        skip: add the input.
    """

    def __init__(self, *, width: int, ratio: float, skip: bool) -> None:
        super().__init__()
        hidden = hidden_width(width, ratio)
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
    """The adapters of one block, and the forward pass of the frozen block with them.

        z = z + keep * Adapter_T(MSA over the t frames of each position(LN1(z)))      with "temporal" only
        z = z + Adapter_S(MSA over the N tokens of each frame(LN1(z)))
        z = z + MLP(LN2(z)) + keep * s * Adapter_J(LN2(z))

    Both attentions are the same frozen one. Without adapters, the second and third lines are those of the image model.

    Args:
        width: channels C.
        ratio: an adapter's hidden channels relative to C.
        adapt: adapters to create.
        adapter_before_time: another one, with skip, before temporal attention.
        joint_scale: s.
    """

    def __init__(
        self,
        *,
        width: int,
        ratio: float,
        adapt: frozenset[AIMAdapter],
        adapter_before_time: bool,
        joint_scale: float,
    ) -> None:
        super().__init__()

        def bottleneck(wanted: bool, *, skip: bool) -> Bottleneck | None:
            return Bottleneck(width=width, ratio=ratio, skip=skip) if wanted else None

        self.joint_scale = joint_scale
        self.temporal_in = bottleneck(adapter_before_time, skip=True)
        self.temporal = bottleneck("temporal" in adapt, skip=False)
        self.spatial = bottleneck("spatial" in adapt, skip=True)
        self.joint = bottleneck("joint" in adapt, skip=False)

    def run(self, block: nn.Module, tokens: Tensor, keep: Tensor | None, *, rotary: Tensor | None = None) -> Tensor:
        """Run clips through the block: (n, t, N, C) to the same.

        Not `forward`, whose arguments ZeRO-3 searches for tensors: there it would find a block.

        Args:
            block: a block of the image transformer.
            tokens: (n, t, N, C).
            keep: drop-path factors of the temporal and the joint branch, (n, 2, N); None: both kept.
            rotary: rotary embedding of a frame's patches; None: positions are already added.
        """
        assert isinstance(block, ImageBlock)
        if keep is not None:
            keep = keep.to(tokens.dtype)[:, :, None, :, None]
        if self.temporal is not None:
            over_time = block.norm1(tokens).transpose(1, 2)  # (n, N, t, C)
            if self.temporal_in is not None:
                over_time = self.temporal_in(over_time)
            mixed = block.attend(over_time.flatten(0, 1)).view(over_time.shape)
            tokens = tokens + _kept(self.temporal(mixed).transpose(1, 2), keep, 0)
        mixed = block.attend(block.norm1(tokens).flatten(0, 1), rotary=rotary).view(tokens.shape)
        tokens = tokens + (mixed if self.spatial is None else self.spatial(mixed))
        normed = block.norm2(tokens)
        tokens = tokens + block.ls2(block.mlp(normed))
        return tokens if self.joint is None else tokens + _kept(self.joint_scale * self.joint(normed), keep, 1)


class AIMTransformer(nn.Module):
    """An image transformer over video frames, adapted to time.

    - `frozen`: the image model, frame by frame; only its final norm is trainable.
    - `aim`: the adapters, the temporal embedding and the final norm are trainable.
    - `full`: everything is trainable, with or without adapters.

    Args:
        vit: the image transformer; all its parameters except the final norm are frozen here unless `tuning` is `full`.
        clip_frames: t, frames per temporal-attention clip.
        feature_steps: T, each the mean of F / T frames.
        adapt: adapters to create; temporal attention and its embedding come with "temporal".
        tuning: one of the three above.
        adapter_before_time: the variant for strongly temporal data (see `BlockAdapters`).
        adapter_ratio: an adapter's hidden channels relative to C.
        joint_scale: factor on the joint adapters' output.
        drop_path: rate at which token positions skip the last block's temporal and joint branch, decreasing linearly to
            0 at the first block; without those adapters nothing is dropped.
        activation_checkpointing: keep each chunk's frames for the backward pass, and recompute the rest.
        clips_per_chunk: maximum number of clips that run through the transformer at once; 0: all.
        window: this rank's share of a window in time.

    Raises:
        ConfigError: contradictory arguments.
    """

    def __init__(
        self,
        *,
        vit: ImageTransformer,
        clip_frames: int,
        feature_steps: int,
        adapt: Iterable[AIMAdapter],
        tuning: str,
        adapter_before_time: bool = False,
        adapter_ratio: float = 0.25,
        joint_scale: float = 0.5,
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
        clips_per_chunk: int = 0,
        window: TimeShard | None = None,
    ) -> None:
        super().__init__()
        chosen = frozenset(adapt)
        _check(chosen, tuning=tuning, adapter_before_time=adapter_before_time, clip_frames=clip_frames, rate=drop_path)
        self.vit = vit.requires_grad_(tuning == "full")
        self.clip_frames = clip_frames
        self.feature_steps = feature_steps
        self.adapt = chosen
        self.tuning = tuning
        self.drop_path = drop_path
        self.activation_checkpointing = activation_checkpointing
        self.clips_per_chunk = clips_per_chunk
        self._window = window or WholeWindow()
        self.adapters = nn.ModuleList(
            BlockAdapters(
                width=vit.width,
                ratio=adapter_ratio,
                adapt=chosen,
                adapter_before_time=adapter_before_time,
                joint_scale=joint_scale,
            )
            for _ in vit.blocks
        )
        self.temporal_embedding = nn.Parameter(torch.zeros(1, clip_frames, vit.width)) if "temporal" in chosen else None
        for norm in (vit.norm, vit.fc_norm):
            norm.requires_grad_(True)

    @property
    def width(self) -> int:
        """C, the channels of the features."""
        return self.vit.width

    def forward(self, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """Features of each video or window.

        Args:
            frames: (B, F, H, W, 3) uint8, F a multiple of t; only this rank's clips where ranks share a window.
            noise: per-sample randomness of drop path in training; None: every branch is kept.

        Returns:
            (B, C, T) float32, of the whole window.

        Raises:
            ValueError: F is not a multiple of t, T does not divide the window's frames, or frames have the wrong size.
        """
        features = self._window.gather_time(self.frame_features(frames, noise).float().transpose(1, 2))
        if features.shape[2] % self.feature_steps:
            raise ValueError(f"{features.shape[2]} frames do not make {self.feature_steps} features")
        return features.unflatten(2, (self.feature_steps, -1)).mean(dim=3)

    def frame_features(self, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """Features of each frame on this rank: (B, F, C) in the weights' type; arguments as for `forward`."""
        videos, count = frames.shape[:2]
        if count == 0 or count % self.clip_frames:
            raise ValueError(f"{count} frames are not a multiple of the clips' {self.clip_frames}")
        clips = frames.reshape(-1, self.clip_frames, *frames.shape[2:])
        keep = self._drop_path_factors(noise, clips=count // self.clip_frames)
        most = videos * self._window.share(count // self.clip_frames).most
        chunks = clip_chunks(len(clips), most=most, at_once=self.clips_per_chunk)
        features = [self._chunk(clips[i:j], None if keep is None else keep[i:j]) for i, j in chunks]
        return torch.cat(features).view(videos, count, self.width)

    def _chunk(self, clips: Tensor, keep: Tensor | None) -> Tensor:
        """Run one chunk of clips, with recomputation if enabled: (n, t, H, W, 3) to (n, t, C)."""
        if self.activation_checkpointing and self.tuning != "frozen" and torch.is_grad_enabled():
            return recomputed(self._through, clips, keep)
        return self._through(clips, keep)

    def _through(self, clips: Tensor, keep: Tensor | None) -> Tensor:
        """Run clips through the transformer: (n, t, H, W, 3) and drop-path factors (n, depth, 2, N) to (n, t, C)."""
        tokens = self.vit(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        if self.temporal_embedding is not None:
            tokens = tokens + self.temporal_embedding[:, :, None]
        tokens = self.vit.norm_pre(tokens)
        for index, (adapters, block) in enumerate(zip(self.adapters, self.vit.blocks, strict=True)):
            assert isinstance(adapters, BlockAdapters)
            kept = None if keep is None else keep[:, index]
            tokens = adapters.run(block, tokens, kept, rotary=self.vit.rotary)
        return self.vit.pool(tokens)

    def _drop_path_factors(self, noise: SampleNoise | None, *, clips: int) -> Tensor | None:
        """(B * clips, depth, 2, N), for the temporal and the joint branch of each block; None: nothing is dropped.

        A token position is dropped in all frames of a clip: drop path draws along the first axis, which in the authors'
        CLIP model is that of the tokens.

        # differs: theirs drops a position in all clips of a GPU's batch; here each clip draws its own, so that
        results do not depend on how the batch is split. (Their ImageNet model is batch-first and drops frames.)
        """
        if noise is None or self.drop_path == 0 or not self.adapt & {"temporal", "joint"}:
            return None
        return drop_path_factors(
            noise,
            rate=self.drop_path,
            depth=len(self.adapters),
            branches=(BRANCHES, self.vit.tokens),
            window=self._window,
            clips=clips,
        ).flatten(0, 1)


def _kept(branch: Tensor, keep: Tensor | None, which: int) -> Tensor:
    return branch if keep is None else branch * keep[:, which]


def _check(adapt: frozenset[str], *, tuning: str, adapter_before_time: bool, clip_frames: int, rate: float) -> None:
    unknown = sorted(adapt - set(ALL_ADAPTERS))
    if unknown:
        raise ConfigError(f"there is no adapter {', '.join(unknown)}; known: {', '.join(ALL_ADAPTERS)}")
    if tuning not in TUNINGS:
        raise ConfigError(f"an image transformer's backbone.tuning is one of {', '.join(TUNINGS)}, not {tuning}")
    if tuning == "aim" and not adapt:
        raise ConfigError("tuning=aim needs at least one of backbone.aim_adapters; without any, use frozen or full")
    if tuning == "frozen" and adapt:
        raise ConfigError(f"tuning=frozen has no adapters, but aim_adapters asks for {', '.join(sorted(adapt))}")
    if adapter_before_time and "temporal" not in adapt:
        raise ConfigError("backbone.aim_before_time needs the temporal adapter")
    if clip_frames < 1:
        raise ConfigError(f"clips have at least 1 frame, not {clip_frames}")
    if not 0 <= rate < 1:
        raise ConfigError(f"the drop-path rate must be in [0, 1), not {rate}")
