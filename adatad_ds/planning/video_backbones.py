"""Cost of a video transformer: FLOPs in closed form, bytes of its activations.

What grows with the window is known in closed form (docs/reference/performance.md); fake_run.py measures one span.

T' tubelets of a sample's F frames, S positions, C channels, N tokens per clip.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from adatad_ds.config.backbone import BESIDE
from adatad_ds.config.schema import Config
from adatad_ds.models.backbones.clips import LAUNCHED_FLOP, chunk_size
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.factory import adapted_blocks, stored_outputs_of
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.planning.activations import Activations, Segments, halved, within
from adatad_ds.planning.fake_run import LadderBytes, SegmentKind, ladder_bytes, span_bytes, whole_bytes

CHUNK_COST = 0.04  # of a step's time on a CPU, for each halving of a chunk: what that must save in recomputation


class VideoCost:
    """A `memory.BackboneCost`.

    Args:
        config: config of the run.

    Raises:
        ConfigError: unknown backbone, or blocks that it does not have.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._spec = backbone_spec(config.backbone.name)
        self._tuned = sorted(adapted_blocks(config.backbone))
        self._stored = stored_outputs_of(config.backbone)
        self._frames = self._spec.tubelet_frames
        self._positions = self._spec.positions(config.data.resolution)
        self._clip_tokens = config.clip_frames // self._frames * self._positions
        self._cached_by = replace(config.backbone, clips_per_chunk=0, activation_memory_gb=None)  # irrelevant to a span

    def tensor_bytes(self, frames: int) -> int:
        """Bytes of a stored tensor, with the tokens of `frames` frames."""
        tokens = frames // self._frames * self._positions
        return tokens * self._spec.width * self._config.train.dtype.itemsize

    def flop(self, *, recomputed: float) -> float:
        """FLOPs of a sample's forward and backward pass, of which so many forward passes with gradients run again."""
        config, spec, tuning = self._config, self._spec, self._config.backbone.tuning
        tokens = config.sample_frames // self._frames * self._positions
        block, adapter, inside = self._forward_flop(tokens)
        linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
        embedding = 2.0 * tokens * spec.width * 3 * self._frames * spec.patch**2
        added = len(self._tuned) * (adapter + inside)
        below = spec.depth if tuning in ("frozen", *BESIDE) else 0 if tuning == "full" else self._stored[0] + 1
        above = spec.depth - below
        forward = embedding + spec.depth * block + added
        backward = above * (2 * block - linear) + 2 * added
        if tuning == "full":
            backward += embedding + above * linear
        return forward + backward + self._ladder_flop() + recomputed * (above * block + added)

    def _forward_flop(self, tokens: int) -> tuple[float, float, float]:
        """FLOPs of a block's forward pass, of an adapter's, and of what is added inside a tuned block."""
        backbone, spec = self._config.backbone, self._spec
        hidden = int(spec.width * backbone.adapter_ratio)
        middle = hidden**2 + backbone.adapter_kernel * hidden if backbone.has_time_convolution else 0
        adapter = 2.0 * tokens * (2 * spec.width * hidden + middle) if backbone.has_adapters else 0.0
        return spec.block_flop(tokens, attended=self._clip_tokens), adapter, self._lora_flop(tokens)

    def _lora_flop(self, tokens: int) -> float:
        """FLOPs of a block's low-rank updates; DoRA's norms, of weights alone, are left out."""
        backbone, width, hidden = self._config.backbone, self._spec.width, self._spec.mlp_hidden
        if backbone.tuned_inside != "lora":
            return 0.0
        channels = {"qkv": 4 * width, "proj": 2 * width, "fc1": width + hidden, "fc2": width + hidden}
        return 2.0 * tokens * backbone.lora_rank * sum(channels[target] for target in backbone.lora_targets)

    def chunk(self, *, cuda: bool) -> int:
        """Clips that run through a block at once; 0: all."""
        chosen = self._config.backbone.clips_per_chunk
        return chunk_size(chosen, spec=self._spec, clip_tokens=self._clip_tokens, cuda=cuda)

    def activations(
        self, *, windows: int, clips: int, policy: StoragePolicy, budget: int | None, beside: int, cuda: bool
    ) -> Activations:
        """What waits for the backward pass, and what runs again; see `memory.BackboneCost`."""
        backbone, chunk = self._config.backbone, self.chunk(cuda=cuda)
        if not self._stored:
            return self._whole(windows, clips, chunk=chunk)
        if budget is not None:
            most = min(chunk or windows * clips, windows * clips)
            return within(
                budget,
                lambda chunk: self._cut(chunk, windows=windows, clips=clips),
                chunks=halved(most, least=windows),
                beside=beside,
                host=policy.offload,
                step_cost=lambda recomputed, chunk: (
                    self.flop(recomputed=recomputed) * self._slowed(chunk, most=most, cuda=cuda)
                ),
            )
        retention = Retention() if backbone.activation_checkpointing else Retention(graphs=None)
        segments = self._cut(chunk, windows=windows, clips=clips)
        on_device = policy.on_device(len(self._stored), segments.tensor)
        return segments.place(retention, on_device=on_device, clips_per_chunk=chunk)

    def _slowed(self, chunk: int, *, most: int, cuda: bool) -> float:
        """By what factor a step takes longer in chunks of so many clips: a GPU that waits for the host is idle."""
        if cuda:
            return max(
                1.0, LAUNCHED_FLOP / self._spec.block_flop(chunk * self._clip_tokens, attended=self._clip_tokens)
            )
        return (1 + CHUNK_COST) ** math.log2(most / chunk)

    def _whole(self, windows: int, clips: int, *, chunk: int) -> Activations:
        """Of `full` and `frozen`, which have no segments."""
        config, backbone = self._config, replace(self._config.backbone, clips_per_chunk=chunk)
        recomputes = config.backbone.tuning == "full" and config.backbone.activation_checkpointing
        return Activations(
            clips_per_chunk=chunk,
            tensor_bytes=self.tensor_bytes(windows * clips * config.clip_frames),
            peak_bytes=whole_bytes(backbone, config.train.precision, config.data.resolution, windows, clips),
            recomputed=float(recomputes),
        )

    def _cut(self, chunk: int, *, windows: int, clips: int) -> Segments:
        config, kinds = self._config, self._segments()
        spans = -(-clips // max(1, chunk // windows)) if chunk else 1
        first, by_kind = span_bytes(
            self._cached_by,
            config.train.precision,
            config.data.resolution,
            windows,
            -(-clips // spans),
            tuple(sorted(set(kinds))),
        )
        block, adapter, inside = self._forward_flop(1)
        flop = [kind.adapter * adapter + len(kind.blocks) * block + sum(kind.blocks) * inside for kind in kinds]
        total = sum(flop)
        tensor = self.tensor_bytes(windows * clips * config.clip_frames)
        in_line = config.backbone.tuning not in BESIDE
        return Segments(
            spans=spans,
            kinds=kinds,
            weights=[each / total for each in flop],
            first=first,
            bytes=by_kind,
            tensor=tensor,
            gradient=tensor if in_line else 0,
            regroups=in_line,
            ladder=self._ladder(windows),
        )

    def _ladder(self, windows: int) -> LadderBytes:
        config = self._config
        if config.backbone.tuning != "ladder":
            return LadderBytes()
        tubelets = config.sample_frames // self._frames
        return ladder_bytes(self._cached_by, config.train.precision, windows, tubelets)

    def _ladder_flop(self) -> float:
        """FLOPs of both passes of a sample's long-range adapters, whose inputs need no gradient."""
        config, width = self._config, self._spec.width
        if config.backbone.tuning != "ladder":
            return 0.0
        steps, weights = config.sample_frames // self._frames, width * int(width * config.backbone.adapter_ratio)
        return len(self._tuned) * 2.0 * steps * 5 * weights  # in and out, thrice, but for the inputs

    def _segments(self) -> list[SegmentKind]:
        """What each segment consists of, lowest first (`side`: no blocks)."""
        backbone = self._config.backbone
        if backbone.tuning in BESIDE:
            return [SegmentKind(adapter=True, blocks=(), last=False)] * len(self._stored)
        adapted = self._tuned if backbone.has_adapters else []
        inside = self._tuned if backbone.tuned_inside else []
        return [
            SegmentKind(
                adapter=first in adapted,
                blocks=tuple(block in inside for block in range(first + 1, last + 1)),
                last=first == self._stored[-1],
            )
            for first, last in pairwise([*self._stored, self._spec.depth - 1])
        ]
