"""Cost of a video transformer: FLOPs in closed form, bytes of its activations.

What grows with the window is known in closed form (docs/reference/performance.md); fake_run.py measures one span.

T' = F / 2 tubelets of a sample's F frames, S positions, C channels, N tokens per clip.
"""

from __future__ import annotations

from itertools import pairwise

from adatad_ds.config.parsing import TUBELET_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.models.factory import adapted_blocks, backbone_spec, stored_outputs_of
from adatad_ds.planning.fake_run import SegmentKind, span_bytes, whole_bytes


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
        self._positions = self._spec.positions(config.data.resolution)

    @property
    def stored_tensors(self) -> int:
        """One per tuned block, where recompute.py runs the backbone."""
        return len(self._stored) if self._recomputes else 0

    def tensor_bytes(self, frames: int) -> int:
        """Bytes of a stored tensor, with the tokens of `frames` frames."""
        tokens = frames // TUBELET_FRAMES * self._positions
        return tokens * self._spec.width * self._config.train.dtype.itemsize

    def flop(self, *, executed: bool) -> float:
        """FLOPs of a sample's forward and backward pass; `executed`: with recomputation."""
        config, spec, tuning = self._config, self._spec, self._config.backbone.tuning
        tokens = config.sample_frames // TUBELET_FRAMES * self._positions
        linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
        attention = 4.0 * tokens * config.clip_frames // TUBELET_FRAMES * self._positions * spec.width
        embedding = 2.0 * tokens * spec.width * 3 * TUBELET_FRAMES * spec.patch**2
        hidden = int(spec.width * config.backbone.adapter_ratio)
        middle = hidden**2 + config.backbone.adapter_kernel * hidden if config.backbone.adapter == "tia" else 0
        adapter = 2.0 * tokens * (2 * spec.width * hidden + middle) if config.backbone.has_adapters else 0.0
        added = len(self._tuned) * (adapter + self._lora_flop(tokens))
        below = spec.depth if tuning in ("frozen", "side") else 0 if tuning == "full" else self._stored[0] + 1
        above = spec.depth - below
        recomputed = executed and config.backbone.activation_checkpointing
        forward = embedding + spec.depth * (linear + attention) + added
        backward = above * (linear + 2 * attention) + 2 * added
        if tuning == "full":
            backward += embedding + above * linear
        if not recomputed:
            return forward + backward - self._unneeded_flop(tokens, attention)
        return forward + backward + above * (linear + attention) + added

    def _lora_flop(self, tokens: int) -> float:
        """FLOPs of a block's low-rank updates; DoRA's norms, of weights alone, are left out."""
        backbone, width, hidden = self._config.backbone, self._spec.width, self._spec.mlp_hidden
        if backbone.tuned_inside != "lora":
            return 0.0
        channels = {"qkv": 4 * width, "proj": 2 * width, "fc1": width + hidden, "fc2": width + hidden}
        return 2.0 * tokens * backbone.lora_rank * sum(channels[target] for target in backbone.lora_targets)

    def _unneeded_flop(self, tokens: int, attention: float) -> float:
        """FLOPs of the first tuned block's gradients below its lowest low-rank update, which nothing asks for."""
        backbone, width, hidden = self._config.backbone, self._spec.width, self._spec.mlp_hidden
        if backbone.tuned_inside != "lora":
            return 0.0
        below = {"qkv": 3 * width**2, "proj": width**2, "fc1": width * hidden, "fc2": width * hidden}
        order = list(below)
        lowest = min(backbone.lora_targets, key=order.index)
        weights = sum(below[part] for part in order[: order.index(lowest) + 1])
        into = backbone.lora_rank * (hidden if lowest == "fc2" else width)
        return 2.0 * tokens * (weights + into) + (0.0 if lowest == "qkv" else 2 * attention)

    def working_bytes(self, *, windows: int, clips: int, on_device: int) -> int:
        """Peak bytes of the activations, apart from stored tensors.

        With recomputation: the window's gradient and one span, less the stored tensors that backward has already freed.

        Args:
            windows: windows per forward pass.
            clips: clips of each on this rank.
            on_device: stored tensors that stay on the device.
        """
        backbone, resolution = self._config.backbone, self._config.data.resolution
        precision = self._config.train.precision
        if not self._recomputes:
            return whole_bytes(backbone, precision, resolution, windows, clips)
        segments, chunk = self._segments(), backbone.clips_per_chunk
        at_once = -(-clips // -(-clips // max(1, chunk // windows))) if chunk else clips
        kinds = tuple(sorted(set(segments)))
        forward, backward = span_bytes(backbone, precision, resolution, windows, at_once, kinds)
        tensor = self.tensor_bytes(windows * clips * self._config.clip_frames)
        gradient = tensor if backbone.tuning != "side" else 0
        peaks = [forward]
        for still_to_come, kind in enumerate(reversed(segments)):
            peaks.append(gradient + backward[kind] - min(on_device, still_to_come) * tensor)
        return max(peaks)

    @property
    def _recomputes(self) -> bool:
        """Whether recompute.py runs the backbone."""
        return self._config.backbone.activation_checkpointing and bool(self._stored)

    def _segments(self) -> list[SegmentKind]:
        """What each segment recomputes, lowest first (`side`: no blocks)."""
        backbone = self._config.backbone
        if backbone.tuning == "side":
            return [SegmentKind(adapter=True, inside=False, blocks=0)] * len(self._stored)
        adapted = self._tuned if backbone.has_adapters else []
        return [
            SegmentKind(
                adapter=first in adapted,
                inside=backbone.tuned_inside is not None,
                blocks=last - first,
                last=first == self._stored[-1],
            )
            for first, last in pairwise([*self._stored, self._spec.depth - 1])
        ]
