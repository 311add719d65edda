"""The adapted video backbone: a window of frames in, one feature per step out.

B windows, F frames per window in n clips, T' tubelets, S positions of each, C channels, T feature steps. Tokens of a
span of time are (B, t, S, C), t a multiple of a clip's tubelets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad_ds.config.backbone import BESIDE, Tuning
from adatad_ds.models.backbones.clips import chunk_size, clip_chunks, drop_path_factors, recomputed
from adatad_ds.models.backbones.contract import VideoTransformer
from adatad_ds.models.execution.activation_store import Span, Storage
from adatad_ds.models.execution.recompute import run_segments, sum_adapters
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.segments import Execution, Segment, pool
from adatad_ds.models.execution.window_share import TimeShard
from adatad_ds.models.sample_noise import SampleNoise
from adatad_ds.models.tuning.inside import InsideTuning, stored_outputs
from adatad_ds.models.tuning.ladder import long_range_sum, with_means


class AdaptedBackbone(nn.Module):
    """A video transformer over the clips of a window, tuned in one of these ways (AdaTAD, section 3, and others).

    - `frozen`: no gradient, no adapters.
    - `full`: every weight is trainable, no adapters.
    - `tia`: adapters follow chosen blocks; the frozen blocks above the first adapter pass gradients to their inputs.
    - `side`: adapters read chosen blocks' outputs and are summed onto the last; no gradient enters the transformer.
    - `ladder`: the same, with long-range adapters beside them (tuning/ladder.py).
    - `lora`, `bitfit`, `norm`: parts of chosen blocks are trainable (tuning/inside.py).
    - `tia+lora`: both.
    - `plain`, `side_plain`, `plain+lora`: as `tia`, `side`, `tia+lora`, with adapters that do not look over time.

    Blocks run over a few clips at a time, since attention never leaves a clip: a block's memory does not grow with F.
    Adapters see the whole window. recompute.py runs all but `frozen` and `full`; how much of them it recomputes,
    `retention` says.

    Args:
        vit: the transformer; its parameters are frozen here unless `tuning` is `full`.
        adapters: block index to adapter.
        long_adapters: block index to long-range adapter, in the same blocks; for `ladder` alone.
        inside: what is trained inside blocks, applied to the transformer's here; None: nothing.
        tuning: one of those above.
        feature_steps: T, to which the T' pooled tubelets are interpolated.
        drop_path: stochastic depth rate of the last block, decreasing linearly to 0 at the first.
        activation_checkpointing: for `full`: keep one tensor per block for the backward pass, and recompute the rest.
        retention: except for `frozen` and `full`: what is kept for the backward pass.
        clips_per_chunk: maximum number of clips that run through a block at once (at least one per window); 0: all;
            None: as `chunk_size` has it.
        window: this rank's share of a window in time.
        storage: holds stored tensors until the backward pass.
        stopwatch: times the recomputed segments.
    """

    def __init__(
        self,
        *,
        vit: VideoTransformer,
        adapters: dict[int, nn.Module],
        long_adapters: dict[int, nn.Module],
        inside: InsideTuning | None,
        tuning: Tuning,
        feature_steps: int,
        drop_path: float,
        activation_checkpointing: bool,
        retention: Retention,
        clips_per_chunk: int | None,
        window: TimeShard,
        storage: Storage,
        stopwatch: Stopwatch,
    ) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(tuning == "full")
        self.adapters = _by_block(adapters)
        self.long_adapters = _by_block(long_adapters)
        self.adapted_blocks = sorted(adapters)
        self.stored_outputs = stored_outputs(adapters=self.adapted_blocks, inside=inside.blocks if inside else ())
        if inside is not None:
            inside.apply(self.vit.blocks)
        self.tuning = tuning
        self.beside = tuning in BESIDE
        self.feature_steps = feature_steps
        self.activation_checkpointing = activation_checkpointing
        self.retention = retention
        self.clips_per_chunk = clips_per_chunk
        self.drop_path = drop_path
        self.storage = storage
        self.stopwatch = stopwatch
        self._window = window

    @property
    def width(self) -> int:
        """C, the channels of the features."""
        return self.vit.spec.width

    @property
    def grad_free_blocks(self) -> int:
        """Leading blocks that need no gradient: all up to the first stored output."""
        if self.tuning == "full":
            return 0
        return len(self.vit.blocks) if self.beside or self.tuning == "frozen" else self.stored_outputs[0] + 1

    def chunk(self, *, cuda: bool) -> int:
        """How many clips run through a block at once; 0: all."""
        tokens = self.vit.clip_tubelets * self.vit.positions
        return chunk_size(self.clips_per_chunk, spec=self.vit.spec, clip_tokens=tokens, cuda=cuda)

    def forward(self, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """Features of each window.

        Args:
            frames: (B, F, H, W, 3) uint8, F a multiple of a clip's; only this rank's clips where ranks share a window.
            noise: per-sample randomness of drop path in training; None: every branch is kept.

        Returns:
            (B, C, T) float32, of the whole window.
        """
        features = self.tubelet_features(frames, noise)
        return F.interpolate(features, size=self.feature_steps, mode="linear", align_corners=False)

    def tubelet_features(self, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """Features of each tubelet of the whole window: (B, C, T'); arguments as for `forward`."""
        windows, clips = frames.shape[0], frames.shape[1] // self.vit.clip_frames
        keep = self._drop_path_factors(noise, clips=clips)
        spans = self._spans(windows=windows, clips=clips, at_once=self.chunk(cuda=frames.is_cuda))
        if self.stored_outputs:
            run = self._run_segments
        elif self.tuning == "full" and torch.is_grad_enabled():
            run = self._run_whole
        else:
            run = self._run_clips
        features = run(frames, spans, keep).transpose(1, 2)  # (B, C, T') of this rank's clips
        return self._window.gather_time(features)

    @torch.no_grad()
    def _run_clips(self, frames: Tensor, spans: Sequence[Span], keep: Tensor | None) -> Tensor:
        """Run each span through all blocks, without adapters and gradients: (B, T', C)."""
        every = range(len(self.vit.blocks))
        outputs = (self._to_the_end(every, self._embed(frames, *span), span[0], keep) for span in spans)
        return torch.cat([pool(output, self.vit.pooled) for output in outputs], dim=1)  # one span's tokens at a time

    def _run_segments(self, frames: Tensor, spans: Sequence[Span], keep: Tensor | None) -> Tensor:
        """Run segment by segment, from one stored output to the next (recompute.py): (B, T', C)."""
        clips = frames.shape[1] // self.vit.clip_frames
        execution = Execution(
            spans=spans,
            window=self._window,
            storage=self.storage,
            retention=self.retention,
            stopwatch=self.stopwatch,
            shape=(len(frames), clips * self.vit.clip_tubelets, self.vit.positions, self.width),
            whole=self._window.share(clips).total == clips,
            pooled=self.vit.pooled,
            like=torch.empty(0, dtype=self.vit.dtype, device=frames.device),
        )
        leading, segments = self._leading(frames, spans, keep), self._segments(keep)
        if self.long_adapters:
            return self._run_ladder(leading, segments, execution)
        if self.beside:
            return sum_adapters(leading, segments, execution)
        return run_segments((next(outputs) for outputs in leading), segments, execution)

    def _run_ladder(
        self, leading: Iterator[Iterator[Tensor]], segments: Sequence[Segment], execution: Execution
    ) -> Tensor:
        """Sum short-range adapters onto the last block's output, and add the long-range ones: (B, T', C)."""
        windows, steps, _, width = execution.shape
        means = execution.like.new_empty(len(self.long_adapters), windows, width, steps)
        watched = (
            with_means(of, means, start, pooled=self.vit.pooled)
            for of, (start, _) in zip(leading, execution.spans, strict=True)
        )
        features = sum_adapters(watched, segments, execution)
        first = self._window.share(steps // self.vit.clip_tubelets).first * self.vit.clip_tubelets
        added = long_range_sum(self.long_adapters.values(), self._window.gather_time(means))  # of the whole window
        return features + added[:, first : first + steps]

    def _run_whole(self, frames: Tensor, spans: Sequence[Span], keep: Tensor | None) -> Tensor:
        """Run each block over the whole window before the next, under plain autograd (`full`): (B, T', C)."""
        tokens = torch.cat([self._embed(frames, *span) for span in spans], dim=1)
        for index in range(len(self.vit.blocks)):
            parts = [
                self._stored_once(range(index, index + 1), tokens[:, start:stop], start, keep) for start, stop in spans
            ]
            tokens = torch.cat(parts, dim=1)
        return pool(self.vit.finish(tokens), self.vit.pooled)

    def _leading(self, frames: Tensor, spans: Sequence[Span], keep: Tensor | None) -> Iterator[Iterator[Tensor]]:
        """Outputs of the blocks that need no gradient, span by span: for `side` the adapted blocks', then the last's.

        Lazy: a block runs when its output is requested.
        """
        wanted = self.adapted_blocks if self.beside else []

        def outputs(start: int, stop: int) -> Iterator[Tensor]:
            tokens = self._embed(frames, start, stop)
            for index in range(self.grad_free_blocks):
                tokens = self._blocks(range(index, index + 1), tokens, start, keep)
                if index in wanted:
                    yield tokens
            yield self.vit.finish(tokens) if self.beside else tokens

        return (outputs(*span) for span in spans)

    def _segments(self, keep: Tensor | None) -> list[Segment]:
        """Segments from each stored output to the next one, the last one up to the top."""
        segments = []
        for first, last in pairwise([*self.stored_outputs, len(self.vit.blocks) - 1]):
            blocks = range(first + 1, last + 1)
            adapter = self.adapters[str(first)] if first in self.adapted_blocks else None
            parts = [*([] if adapter is None else [adapter]), *(self.vit.blocks[index] for index in blocks)]
            run = self._to_the_end if first == self.stored_outputs[-1] else self._blocks
            segments.append(
                Segment(
                    name=f"into_block_{first + 1}" if adapter is None else f"block_{first}",
                    adapter=adapter,
                    reach=0 if adapter is None else _reach(adapter),
                    trainable=tuple(p for part in parts for p in part.parameters() if p.requires_grad),
                    run=lambda tokens, start, run=run, blocks=blocks: run(blocks, tokens, start, keep),
                )
            )
        return segments

    def _embed(self, frames: Tensor, start: int, stop: int) -> Tensor:
        """Tokens of the tubelets `start` to `stop`: (B, t, S, C)."""
        span = frames[:, start * self.vit.spec.tubelet_frames : stop * self.vit.spec.tubelet_frames]
        clips = self.vit.embed(span.reshape(-1, self.vit.clip_frames, *span.shape[2:]))
        return self.vit.by_tubelet(clips, windows=len(frames))

    def _blocks(self, blocks: range, tokens: Tensor, start: int, keep: Tensor | None) -> Tensor:
        """Run consecutive blocks on the span at tubelet `start`, clip by clip: (B, t, S, C) to the same."""
        windows, steps = tokens.shape[:2]
        clips, long = self.vit.by_clip(tokens), self.vit.clip_tubelets
        if keep is not None:
            keep = keep[:, start // long : (start + steps) // long].flatten(0, 1)
        for index in blocks:
            clips = self.vit.run_block(index, clips, None if keep is None else keep[:, index])
        return self.vit.by_tubelet(clips, windows=windows)

    def _to_the_end(self, blocks: range, tokens: Tensor, start: int, keep: Tensor | None) -> Tensor:
        """`_blocks`, and what follows the last one."""
        return self.vit.finish(self._blocks(blocks, tokens, start, keep))

    def _stored_once(self, blocks: range, tokens: Tensor, start: int, keep: Tensor | None) -> Tensor:
        """Run blocks; with checkpointing, keep only their input for the backward pass (`full`)."""
        if self.activation_checkpointing:
            return recomputed(self._blocks, blocks, tokens, start, keep)
        return self._blocks(blocks, tokens, start, keep)

    def _spans(self, *, windows: int, clips: int, at_once: int) -> list[Span]:
        """Spans of time that run at once, in tubelets: a chunk of clips of every window."""
        chunks = clip_chunks(
            clips,
            most=self._window.share(clips).most,
            at_once=max(1, at_once // windows) if at_once else 0,
        )
        return [(start * self.vit.clip_tubelets, stop * self.vit.clip_tubelets) for start, stop in chunks]

    def _drop_path_factors(self, noise: SampleNoise | None, *, clips: int) -> Tensor | None:
        """(B, n, depth, 2), for the attention and the MLP of each block; None: nothing is dropped."""
        if noise is None or self.drop_path == 0:
            return None
        return drop_path_factors(
            noise, rate=self.drop_path, depth=len(self.vit.blocks), branches=(2,), window=self._window, clips=clips
        )


def whole_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model's backbone, if it calls each as a whole: those of an `AdaptedBackbone`."""
    return [block for backbone in _adapted_backbones(model) for block in backbone.vit.blocks]


def frozen_blocks(model: nn.Module) -> list[nn.Module]:
    """Those of `whole_blocks` in which nothing learns."""
    return [block for block in whole_blocks(model) if not any(p.requires_grad for p in block.parameters())]


def recomputing(model: nn.Module) -> list[nn.Module]:
    """The modules that recompute in graphs of their own, span by span: each `AdaptedBackbone` unless it is `full`."""
    return [backbone for backbone in _adapted_backbones(model) if backbone.tuning != "full"]


def _adapted_backbones(model: nn.Module) -> list[AdaptedBackbone]:
    return [module for module in model.modules() if isinstance(module, AdaptedBackbone)]


def _by_block(adapters: dict[int, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({str(index): adapters[index] for index in sorted(adapters)})


def _reach(adapter: nn.Module) -> int:
    reach = adapter.reach
    assert isinstance(reach, int)
    return reach
