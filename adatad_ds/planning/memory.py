"""Cost of a run, computed in advance: FLOPs per step, and bytes per rank on the device and in host memory.

What grows with the window is known in closed form (docs/reference/performance.md); fake_run.py measures one span and
the head.

B windows per rank and forward pass, F frames, T' = F / 2 tubelets, S positions, C channels, N = 8 * S tokens per clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from adatad_ds.config.parsing import CLIP_FRAMES, TUBELET_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import activation_policy, resolve_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import CLIP_TUBELETS
from adatad_ds.models.factory import adapted_blocks, backbone_spec, build_model
from adatad_ds.planning.fake_run import head_bytes, span_bytes, whole_bytes

ADAM_BYTES = 16  # per trainable parameter: fp32 master, two moments, running average


@dataclass(frozen=True)
class Line:
    """One entry of a plan, in bytes per rank."""

    name: str
    device: int
    host: int = 0
    transient: bool = False  # never at the same time as another transient one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory per rank, and FLOPs per step.

    Attributes:
        lines: entries of the memory.
        useful_flop: FLOPs per step of all ranks: forward pass and gradients, without recomputation.
        executed_flop: the same with recomputation.
    """

    lines: tuple[Line, ...]
    useful_flop: float
    executed_flop: float

    @property
    def device_bytes(self) -> int:
        """Peak on the device: all persistent entries and the largest transient one."""
        held = sum(line.device for line in self.lines if not line.transient)
        return held + max(line.device for line in self.lines if line.transient)

    @property
    def host_bytes(self) -> int:
        """Host memory per rank."""
        return sum(line.host for line in self.lines)

    def table(self) -> str:
        """All lines as text."""
        rows = [f"{'GB of a rank':<45} {'device':>9} {'host':>9}"]
        for line in self.lines:
            name = f"({line.name})" if line.transient else line.name
            rows.append(f"{name:<45} {line.device / 1e9:>9.3f} {line.host / 1e9:>9.3f}")
        device, host = self.device_bytes / 1e9, self.host_bytes / 1e9
        rows.append(f"{'peak, with the larger one in brackets':<45} {device:>9.3f} {host:>9.3f}")
        rows.append(
            f"a step of all ranks: {self.useful_flop / 1e12:.1f} TFLOP useful, {self.executed_flop / 1e12:.1f} executed"
        )
        return "\n".join(rows)


def make_plan(config: Config, *, ds_config: Mapping[str, Any], ranks: int, num_classes: int) -> Plan:
    """Plan a training run on `ranks` GPUs.

    Args:
        config: config of the run; `parallel.temporal` ranks share each window.
        ds_config: ZeRO stage, offload, buckets and activation storage, as in its file.
        ranks: total number of ranks.
        num_classes: K.

    Raises:
        ConfigError: it cannot be run this way.
    """
    temporal, clips = config.parallel.temporal, config.sample_frames // config.clip_frames
    if ranks % temporal or temporal > clips:
        raise ConfigError(f"parallel.temporal={temporal} must divide {ranks} ranks and be at most the {clips} clips")
    resolved = resolve_ds_config(ds_config, config=config, ranks=ranks, cuda=True)
    windows = resolved["train_micro_batch_size_per_gpu"]
    size = config.train.dtype.itemsize
    bare = replace(config, backbone=replace(config.backbone, weights=None))
    with torch.device("meta"):
        model = build_model(bare, num_classes=num_classes)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)

    zero = resolved["zero_optimization"]
    shares = ranks if zero["stage"] == 3 else 1
    weights_on_host = zero.get("offload_param", {}).get("device", "none") != "none"
    adam_on_host = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    gathered = 0
    if zero["stage"] == 3:
        most = int(zero.get("stage3_max_live_parameters", 1e9)) + int(zero.get("stage3_prefetch_bucket_size", 5e7))
        gathered = size * min(frozen + trainable, most)
    # DeepSpeed allocates the whole bucket, however few parameters are trainable; in stage 3, of the type that it sends.
    sent = 4 if resolved["communication_data_type"] == "fp32" else 2
    bucket = (sent if zero["stage"] == 3 else size) * int(zero.get("reduce_bucket_size", 5e8))
    gradients = size * trainable // (ranks if zero["stage"] >= 2 else 1)

    def held(name: str, count: int, *, host: bool) -> Line:
        return Line(name, 0 if host else count, count if host else 0)

    clips = -(-clips // temporal)
    frames = windows * clips * config.clip_frames * config.data.resolution**2 * 3
    tensor = 0 if config.backbone.is_image else windows * clips * stored_tensor_bytes(config, frames=CLIP_FRAMES)
    stored = len(adapted_blocks(config.backbone)) if _recomputes(config) else 0
    policy, _ = activation_policy(resolved, config=config, stored_tensors=stored, cuda=True)
    on_device = policy.on_device(stored, tensor)
    working = _working_bytes(config, windows=windows, clips=clips, tensor=tensor, on_device=on_device)
    lines = (
        held("frozen weights", size * frozen // shares, host=weights_on_host),
        held("trainable weights", size * trainable // shares, host=weights_on_host),
        held("masters, moments, average", ADAM_BYTES * trainable // ranks, host=adam_on_host),
        held("gradients", gradients, host=adam_on_host),
        Line("gathered weights", gathered),
        Line("gradient bucket", bucket),
        Line("frames", frames),
        Line(f"{stored} stored tensors of {tensor / 1e9:.3f} GB", on_device * tensor, (stored - on_device) * tensor),
        Line("backbone at work", working, transient=True),
        Line(
            "head",
            0 if config.recognition else head_bytes(config, num_classes=num_classes, windows=windows),
            transient=True,
        ),
    )
    windows_a_step = config.train.global_batch
    return Plan(
        lines=lines,
        useful_flop=windows_a_step * step_flop(config),
        executed_flop=windows_a_step * step_flop(config, executed=True),
    )


def stored_tensor_bytes(config: Config, *, frames: int | None = None) -> int:
    """Bytes of a tensor with the tokens of `frames` frames; None: of a whole window."""
    spec = backbone_spec(config.backbone.name)
    tokens = (frames or config.sample_frames) // TUBELET_FRAMES * spec.positions(config.data.resolution)
    return tokens * spec.width * config.train.dtype.itemsize


def step_flop(config: Config, *, executed: bool = False) -> float:
    """FLOPs of a sample's forward and backward pass through the backbone.

    Gradients of weights count where these are trainable, gradients of inputs where they are needed.

    Args:
        config: config of the run.
        executed: include recomputation.
    """
    if config.backbone.is_image:
        from adatad_ds.planning.image_backbones import image_flop  # here, as timm takes seconds to import

        return image_flop(config, executed=executed)
    spec, tuning = backbone_spec(config.backbone.name), config.backbone.tuning
    tokens = config.sample_frames // TUBELET_FRAMES * spec.positions(config.data.resolution)
    linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
    attention = 4.0 * tokens * CLIP_TUBELETS * spec.positions(config.data.resolution) * spec.width
    embedding = 2.0 * tokens * spec.width * 3 * TUBELET_FRAMES * spec.patch**2
    blocks = adapted_blocks(config.backbone)
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


def _working_bytes(config: Config, *, windows: int, clips: int, tensor: int, on_device: int) -> int:
    """Peak bytes of the backbone's activations, apart from stored tensors.

    With recomputation: the window's gradient and one span, less the stored tensors that backward has already freed.
    """
    backbone, train = config.backbone, config.train
    if backbone.is_image:
        from adatad_ds.planning.image_backbones import image_bytes

        return image_bytes(config, samples=windows, clips=clips)
    if not _recomputes(config):
        return whole_bytes(backbone, train.precision, config.data.resolution, windows, clips)
    segments, chunk = _segments(config), backbone.clips_per_chunk
    at_once = -(-clips // -(-clips // max(1, chunk // windows))) if chunk else clips
    lengths = tuple(sorted(set(segments)))
    forward, backward = span_bytes(backbone, train.precision, config.data.resolution, windows, at_once, lengths)
    gradient = tensor if backbone.tuning == "tia" else 0
    peaks = [forward]
    for still_to_come, blocks in enumerate(reversed(segments)):
        peaks.append(gradient + backward[blocks] - min(on_device, still_to_come) * tensor)
    return max(peaks)


def _recomputes(config: Config) -> bool:
    """Whether recompute.py runs the backbone."""
    return config.backbone.activation_checkpointing and config.backbone.tuning in ("tia", "side")


def _segments(config: Config) -> list[int]:
    """Number of frozen blocks that each segment recomputes, lowest first (`side`: 0)."""
    blocks = sorted(adapted_blocks(config.backbone))
    if config.backbone.tuning == "side":
        return [0] * len(blocks)
    edges = [*blocks, backbone_spec(config.backbone.name).depth - 1]
    return [last - first for first, last in pairwise(edges)]
