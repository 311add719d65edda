"""What a run takes, computed before it runs: FLOPs of a step, and bytes on the device and in host memory, rank by rank.

What grows with the window is known in closed form (docs/scaling.md). What one chunk of clips and the head take is found
by running them, forward and backward, on fake tensors that have shapes but no memory, with their bytes counted.

B windows a rank and forward pass, F frames, T' = F / 2 tubelets, S positions, C channels, N = 8 * S tokens a clip.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from adatad_ds.config import CLIP_FRAMES, TUBELET_FRAMES, BackboneConfig, Config, DataConfig, Precision, TrainConfig
from adatad_ds.models.backbone import CLIP_TUBELETS
from adatad_ds.models.detector import Detector, adapted_blocks, backbone_spec, build_detector
from adatad_ds.models.recompute import OnceAccumulated
from adatad_ds.models.vit import ViTSpec

ADAM_BYTES = 16  # a learnt parameter: fp32 master, two moments, running average


@dataclass(frozen=True)
class Line:
    """One entry of a plan, in bytes of a rank."""

    name: str
    device: int
    host: int = 0
    transient: bool = False  # never together with the other transient ones


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a rank needs, and what a step computes.

    Attributes:
        lines: the memory.
        useful_flop: of a step of all ranks: forward and gradients, nothing twice.
        executed_flop: with what recomputation adds.
    """

    lines: tuple[Line, ...]
    useful_flop: float
    executed_flop: float

    @property
    def device_bytes(self) -> int:
        """The peak on the device: what is held, and the largest of what comes and goes."""
        held = sum(line.device for line in self.lines if not line.transient)
        return held + max(line.device for line in self.lines if line.transient)

    @property
    def host_bytes(self) -> int:
        """In host memory, of one rank."""
        return sum(line.host for line in self.lines)

    def table(self) -> str:
        """All lines, for a person."""
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
        config: of the run; `parallel.temporal` ranks share each window.
        ds_config: ZeRO stage, offload and buckets.
        ranks: all of them.
        num_classes: K.
    """
    temporal = config.parallel.temporal
    spec, size = backbone_spec(config.backbone.name), config.train.dtype.itemsize
    windows = config.train.micro_batch or max(1, config.train.global_batch * temporal // ranks)
    bare = replace(config, backbone=replace(config.backbone, weights=None))
    with torch.device("meta"):
        detector = build_detector(bare, num_classes=num_classes)
    learnt = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in detector.parameters() if not p.requires_grad)

    zero = ds_config["zero_optimization"]
    shares = ranks if zero["stage"] == 3 else 1
    weights_on_host = zero.get("offload_param", {}).get("device", "none") != "none"
    adam_on_host = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    gathered = 0
    if zero["stage"] == 3:
        most = int(zero.get("stage3_max_live_parameters", 1e9)) + int(zero.get("stage3_prefetch_bucket_size", 5e7))
        gathered = size * min(frozen + learnt, most)
    bucket = size * min(learnt, int(zero.get("reduce_bucket_size", 5e8)))
    gradients = size * learnt // (ranks if zero["stage"] >= 2 else 1)

    def placed(name: str, count: int, *, host: bool) -> Line:
        return Line(name, 0 if host else count, count if host else 0)

    clips = -(-config.data.window_frames // CLIP_FRAMES // temporal)
    tensor = windows * clips * CLIP_TUBELETS * positions(config, spec) * spec.width * size
    stored, offloaded = len(adapted_blocks(config.backbone)), 0
    if ds_config.get("activation_checkpointing", {}).get("cpu_checkpointing", False):
        offloaded = stored - min(stored, int(config.backbone.stored_on_device_gb * 1e9) // tensor)
    frames = windows * clips * CLIP_FRAMES * config.data.resolution**2 * 3
    working = _working_bytes(config, windows=windows, tensor=tensor, on_device=stored - offloaded)
    lines = (
        placed("frozen weights", size * frozen // shares, host=weights_on_host),
        placed("learnt weights", size * learnt // shares, host=weights_on_host),
        placed("masters, moments, average", ADAM_BYTES * learnt // ranks, host=adam_on_host),
        placed("gradients of what learns", gradients, host=adam_on_host),
        Line("gathered weights", gathered),
        Line("gradient bucket", bucket),
        Line("frames", frames),
        Line(f"{stored} stored tensors of {tensor / 1e9:.3f} GB", (stored - offloaded) * tensor, offloaded * tensor),
        Line("the window's gradient, and one chunk", working, transient=True),
        Line("head", head_bytes(config, num_classes=num_classes, windows=windows), transient=True),
    )
    windows_a_step = config.train.global_batch
    return Plan(
        lines=lines,
        useful_flop=windows_a_step * step_flop(config),
        executed_flop=windows_a_step * step_flop(config, executed=True),
    )


def positions(config: Config, spec: ViTSpec) -> int:
    """S of a tubelet."""
    return (config.data.resolution // spec.patch) ** 2


def stored_tensor_bytes(config: Config) -> int:
    """One tensor of a whole window's tokens."""
    spec = backbone_spec(config.backbone.name)
    tokens = config.data.window_frames // TUBELET_FRAMES * positions(config, spec)
    return tokens * spec.width * config.train.dtype.itemsize


def step_flop(config: Config, *, executed: bool = False) -> float:
    """FLOPs of a window's forward and backward pass through the backbone.

    Gradients of weights count where they learn, those of inputs where they are needed.

    Args:
        config: of the run.
        executed: count what recomputation does a second time.
    """
    spec, tuning = backbone_spec(config.backbone.name), config.backbone.tuning
    tokens = config.data.window_frames // TUBELET_FRAMES * positions(config, spec)
    linear = 2.0 * tokens * (4 * spec.width**2 + 2 * spec.width * spec.mlp_hidden)
    attention = 4.0 * tokens * CLIP_TUBELETS * positions(config, spec) * spec.width
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


def span_bytes(config: Config, *, windows: int) -> tuple[int, dict[int, int]]:
    """Peak of what a span of time takes.

    Returns:
        To embed it and run a block; to recompute and back-propagate a segment, by its number of frozen blocks.
    """
    chunk = config.backbone.clips_per_chunk
    clips = -(-config.data.window_frames // CLIP_FRAMES // config.parallel.temporal)
    clips = -(-clips // -(-clips // max(1, chunk // windows))) if chunk else clips
    lengths = tuple(sorted(set(_segments(config))))
    return _span_bytes(config.backbone, config.train.precision, config.data.resolution, windows, clips, lengths)


@cache
def _span_bytes(
    backbone: BackboneConfig, precision: Precision, resolution: int, windows: int, clips: int, lengths: tuple[int, ...]
) -> tuple[int, dict[int, int]]:
    data = DataConfig(resolution=resolution)
    config = Config(data=data, backbone=backbone, train=TrainConfig(precision=precision))
    spec, dtype = backbone_spec(backbone.name), config.train.dtype
    detector = _with_one_block(config, num_classes=1)
    with FakeTensorMode():
        _fake(detector, dtype)
        vit = detector.backbone.vit
        frames = torch.empty(windows * clips, CLIP_FRAMES, resolution, resolution, 3, dtype=torch.uint8)

        def embed() -> None:
            with torch.no_grad():
                vit.blocks[0](vit.embed(frames))

        forward = live_bytes(embed)
        if not lengths:
            return forward, {}
        adapter = detector.backbone.adapters["0"]
        reach: int = adapter.reach  # pyright: ignore[reportAssignmentType]
        steps, rest = clips * CLIP_TUBELETS, (positions(config, spec), spec.width)
        context = torch.empty(windows, reach + steps + reach, *rest, dtype=dtype, requires_grad=True)
        gradient = torch.empty(windows, steps, *rest, dtype=dtype)

        def differentiate(blocks: int) -> None:
            out = context[:, reach : reach + steps] + adapter(context, reach, reach)
            for _ in range(blocks):
                out = vit.blocks[0](out.view(windows * clips, -1, spec.width)).view_as(gradient)
            OnceAccumulated(adapter).differentiate(out, gradient, context, last=False)

        return forward, {blocks: live_bytes(lambda blocks=blocks: differentiate(blocks)) for blocks in lengths}


def _working_bytes(config: Config, *, windows: int, tensor: int, on_device: int) -> int:
    """Most bytes at work beside the stored tensors; those already back-propagated make room for more."""
    forward, backward = span_bytes(config, windows=windows)
    segments = _segments(config)
    gradient = tensor if config.backbone.tuning == "tia" else 0
    peaks = [forward]
    for index, blocks in enumerate(segments):
        still_to_come = len(segments) - 1 - index
        freed = min(on_device, still_to_come)
        peaks.append(gradient + backward[blocks] - freed * tensor)
    return max(peaks)


def _segments(config: Config) -> list[int]:
    """How many frozen blocks each segment recomputes (`side`: none)."""
    blocks = sorted(adapted_blocks(config.backbone))
    if config.backbone.tuning == "side":
        return [0] * len(blocks)
    edges = [*blocks, backbone_spec(config.backbone.name).depth - 1]
    return [last - first for first, last in pairwise(edges)]


def head_bytes(config: Config, *, num_classes: int, windows: int) -> int:
    """Peak of the pyramid's and the heads' forward and backward pass."""
    detector = _with_one_block(config, num_classes=num_classes)
    with FakeTensorMode():
        _fake(detector, config.train.dtype)
        width = detector.backbone.vit.spec.width
        features = torch.empty(windows, config.data.window_size, width, dtype=config.train.dtype, requires_grad=True)
        valid = torch.ones(windows, config.data.window_size, dtype=torch.bool)

        def run() -> None:
            levels, masks = detector.pyramid(features, valid, None)
            logits, distances = detector.head(levels, masks)
            (logits.float().sum() + distances.float().sum()).backward()

        return live_bytes(run)


def _with_one_block(config: Config, *, num_classes: int) -> Detector:
    spec = replace(backbone_spec(config.backbone.name), depth=1)
    adapts = config.backbone.tuning in ("tia", "side")
    backbone = replace(config.backbone, weights=None, adapter_blocks=(0,) if adapts else None)
    with torch.device("meta"):  # initialisation looks at values, which fake tensors do not have
        return build_detector(replace(config, backbone=backbone), spec=spec, num_classes=num_classes)


def _fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace what is on the meta device by fake tensors that say they are on the CPU."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=dtype)
            module.register_parameter(name, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)


def live_bytes(run: Callable[[], None]) -> int:
    """Most bytes alive at once among the tensors that `run` makes."""
    with _LiveBytes() as count:
        run()
    return count.peak


class _LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tree_map_only(Tensor, lambda tensor: self._known.add(tensor.untyped_storage()), (args, kwargs))
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._held -= size
