"""Cost of a video transformer: FLOPs in closed form, bytes of its activations.

What grows with the window is known in closed form (docs/reference/performance.md); fake_run.py measures one span.

T' = F / 2 tubelets of a sample's F frames, S positions, C channels, N = 8 * S tokens per clip.
"""

from __future__ import annotations

from itertools import pairwise

from adatad_ds.config.parsing import TUBELET_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.models.backbones.adapted_video import CLIP_TUBELETS
from adatad_ds.models.factory import adapted_blocks, backbone_spec
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

    @property
    def stored_tensors(self) -> int:
        """One per adapted block, where recompute.py runs the backbone."""
        return len(self._adapted) if self._recomputes else 0

    def tensor_bytes(self, frames: int) -> int:
        """Bytes of a stored tensor, with the tokens of `frames` frames."""
        tokens = frames // TUBELET_FRAMES * self._positions
        return tokens * self._spec.width * self._config.train.dtype.itemsize

    def flop(self, *, executed: bool) -> float:
        """FLOPs of a sample's forward and backward pass; `executed`: with recomputation."""
        config, spec, tuning = self._config, self._spec, self._config.backbone.tuning
        tokens = config.sample_frames // TUBELET_FRAMES * self._positions
        linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
        attention = 4.0 * tokens * CLIP_TUBELETS * self._positions * spec.width
        embedding = 2.0 * tokens * spec.width * 3 * TUBELET_FRAMES * spec.patch**2
        blocks = self._adapted
        hidden = int(spec.width * config.backbone.adapter_ratio)
        middle = hidden**2 + config.backbone.adapter_kernel * hidden if config.backbone.adapter == "tia" else 0
        adapter = 2.0 * tokens * (2 * spec.width * hidden + middle)
        above = {"frozen": 0, "side": 0, "full": spec.depth, "tia": spec.depth - 1 - min(blocks, default=0)}[tuning]
        recomputed = executed and config.backbone.activation_checkpointing
        forward = embedding + spec.depth * (linear + attention) + len(blocks) * adapter
        backward = above * (linear + 2 * attention) + len(blocks) * 2 * adapter
        if tuning == "full":
            backward += embedding + above * linear
        again = above * (linear + attention) + len(blocks) * adapter if recomputed else 0.0
        return forward + backward + again

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
        lengths = tuple(sorted(set(segments)))
        forward, backward = span_bytes(backbone, precision, resolution, windows, at_once, lengths)
        tensor = self.tensor_bytes(windows * clips * self._config.clip_frames)
        gradient = tensor if backbone.tuning == "tia" else 0
        peaks = [forward]
        for still_to_come, blocks in enumerate(reversed(segments)):
            peaks.append(gradient + backward[blocks] - min(on_device, still_to_come) * tensor)
        return max(peaks)

    @property
    def _recomputes(self) -> bool:
        """Whether recompute.py runs the backbone."""
        return self._config.backbone.activation_checkpointing and self._config.backbone.tuning in ("tia", "side")

    def _segments(self) -> list[int]:
        """Number of frozen blocks that each segment recomputes, lowest first (`side`: 0)."""
        if self._config.backbone.tuning == "side":
            return [0] * len(self._adapted)
        return [last - first for first, last in pairwise([*self._adapted, self._spec.depth - 1])]
