"""Cost of a video transformer: FLOPs in closed form, bytes of its activations.

What grows with the window is known in closed form (docs/reference/performance.md); fake_run.py measures one span.

T' = F / 2 tubelets of a sample's F frames, S positions, C channels, N = 8 * S tokens per clip.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from adatad_ds.config.parsing import TUBELET_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.models.backbones.adapted_video import CLIP_TUBELETS
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.factory import adapted_blocks, backbone_spec
from adatad_ds.planning.activations import Activations, Segments, within
from adatad_ds.planning.fake_run import span_bytes, whole_bytes


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
        self._adapted = sorted(adapted_blocks(config.backbone))
        self._positions = self._spec.positions(config.data.resolution)

    def tensor_bytes(self, frames: int) -> int:
        """Bytes of a stored tensor, with the tokens of `frames` frames."""
        tokens = frames // TUBELET_FRAMES * self._positions
        return tokens * self._spec.width * self._config.train.dtype.itemsize

    def flop(self, *, recomputed: float) -> float:
        """FLOPs of a sample's forward and backward pass, of which so many forward passes with gradients run again."""
        config, spec, tuning = self._config, self._spec, self._config.backbone.tuning
        tokens = config.sample_frames // TUBELET_FRAMES * self._positions
        block, adapter = self._forward_flop(tokens)
        linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
        embedding = 2.0 * tokens * spec.width * 3 * TUBELET_FRAMES * spec.patch**2
        blocks = self._adapted
        above = {"frozen": 0, "side": 0, "full": spec.depth, "tia": spec.depth - 1 - min(blocks, default=0)}[tuning]
        forward = embedding + spec.depth * block + len(blocks) * adapter
        backward = above * (2 * block - linear) + len(blocks) * 2 * adapter
        if tuning == "full":
            backward += embedding + above * linear
        return forward + backward + recomputed * (above * block + len(blocks) * adapter)

    def _forward_flop(self, tokens: int) -> tuple[float, float]:
        """FLOPs of a block's forward pass, and of an adapter's."""
        backbone, spec = self._config.backbone, self._spec
        linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
        attention = 4.0 * tokens * CLIP_TUBELETS * self._positions * spec.width
        hidden = int(spec.width * backbone.adapter_ratio)
        middle = hidden**2 + backbone.adapter_kernel * hidden if backbone.adapter == "tia" else 0
        return linear + attention, 2.0 * tokens * (2 * spec.width * hidden + middle)

    def activations(
        self, *, windows: int, clips: int, policy: StoragePolicy, budget: int | None, beside: int
    ) -> Activations:
        """What waits for the backward pass, and what runs again; see `memory.BackboneCost`."""
        backbone, chunk = self._config.backbone, self._config.backbone.clips_per_chunk
        if backbone.tuning not in ("tia", "side"):
            return self._whole(windows, clips)
        if budget is not None:
            return within(
                budget,
                lambda chunk: self._cut(chunk, windows=windows, clips=clips),
                chunks=_halved(min(chunk or windows * clips, windows * clips), least=windows),
                beside=beside,
                host=policy.offload,
                step_flop=lambda recomputed: self.flop(recomputed=recomputed),
            )
        retention = Retention() if backbone.activation_checkpointing else Retention(graphs=None)
        segments = self._cut(chunk, windows=windows, clips=clips)
        on_device = policy.on_device(len(self._adapted), segments.tensor)
        return segments.place(retention, on_device=on_device, clips_per_chunk=chunk)

    def _whole(self, windows: int, clips: int) -> Activations:
        """Of `full` and `frozen`, which have no segments."""
        config = self._config
        recomputes = config.backbone.tuning == "full" and config.backbone.activation_checkpointing
        return Activations(
            retention=Retention(),
            clips_per_chunk=config.backbone.clips_per_chunk,
            stored=0,
            on_device=0,
            tensor_bytes=self.tensor_bytes(windows * clips * config.clip_frames),
            graphs=0,
            spans=0,
            graph_bytes=0,
            peak_bytes=whole_bytes(config.backbone, config.train.precision, config.data.resolution, windows, clips),
            recomputed=float(recomputes),
        )

    def _cut(self, chunk: int, *, windows: int, clips: int) -> Segments:
        config, lengths = self._config, self._segments()
        spans = -(-clips // max(1, chunk // windows)) if chunk else 1
        backbone = replace(config.backbone, clips_per_chunk=0, activation_memory_gb=None)  # irrelevant: found in cache
        first, by_length = span_bytes(
            backbone,
            config.train.precision,
            config.data.resolution,
            windows,
            -(-clips // spans),
            tuple(sorted(set(lengths))),
        )
        block, adapter = self._forward_flop(1)
        total = sum(lengths) * block + len(lengths) * adapter
        tensor = self.tensor_bytes(windows * clips * config.clip_frames)
        in_line = config.backbone.tuning == "tia"
        return Segments(
            spans=spans,
            lengths=lengths,
            weights=[(adapter + length * block) / total for length in lengths],
            first=first,
            bytes=by_length,
            tensor=tensor,
            gradient=tensor if in_line else 0,
            regroups=in_line,
        )

    def _segments(self) -> list[int]:
        """Number of frozen blocks that each segment recomputes, lowest first (`side`: 0)."""
        if self._config.backbone.tuning == "side":
            return [0] * len(self._adapted)
        return [last - first for first, last in pairwise([*self._adapted, self._spec.depth - 1])]


def _halved(chunk: int, *, least: int) -> list[int]:
    """A number of clips, its half, ... down to one clip of each window."""
    sizes = [max(chunk, least)]
    while sizes[-1] > least:
        sizes.append(max(least, sizes[-1] // 2))
    return sizes
