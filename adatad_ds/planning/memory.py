"""Cost of a run, computed in advance: FLOPs per step, and bytes per rank on the device and in host memory.

The backbone's part is that of video_backbones.py or image_backbones.py; fake_run.py measures the head. Where steps read
features, there is a head alone, and FLOPs are the head's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import activation_policy, resolve_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.factory import build_model, stored_outputs_of
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.activations import Activations
from adatad_ds.planning.fake_run import head_bytes, head_flop, shapes_of
from adatad_ds.planning.feature_cache import FEATURE_BYTES, CachePlan, FeatureCost, on_features, plan_cache, tera
from adatad_ds.planning.video_backbones import VideoCost

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
        activations: what waits for the backward pass, and what runs again.
        useful_flop: FLOPs per step of all ranks: forward pass and gradients, without recomputation.
        executed_flop: the same with recomputation.
        cache: of filling a cache of features before; None: there is none.
    """

    lines: tuple[Line, ...]
    activations: Activations
    useful_flop: float
    executed_flop: float
    cache: CachePlan | None = None

    @property
    def step_bytes(self) -> int:
        """Peak of a step on the device: all persistent entries and the largest transient one."""
        held = sum(line.device for line in self.lines if not line.transient)
        return held + max(line.device for line in self.lines if line.transient)

    @property
    def device_bytes(self) -> int:
        """Peak on the device: of a step or, where that takes more, of filling the cache."""
        return max(self.step_bytes, self.cache.device_bytes if self.cache else 0)

    @property
    def host_bytes(self) -> int:
        """Host memory per rank."""
        return sum(line.host for line in self.lines)

    def table(self) -> str:
        """All lines as text."""
        rows = [f"{'GB per rank':<45} {'device':>9} {'host':>9}"]
        for line in self.lines:
            name = f"({line.name})" if line.transient else line.name
            rows.append(f"{name:<45} {line.device / 1e9:>9.3f} {line.host / 1e9:>9.3f}")
        device, host = self.step_bytes / 1e9, self.host_bytes / 1e9
        rows.append(f"{'peak, with the larger value in brackets':<45} {device:>9.3f} {host:>9.3f}")
        rows.append(f"step, all ranks: {tera(self.useful_flop)} TFLOP useful, {tera(self.executed_flop)} executed")
        if self.activations.stored:
            rows.append(str(self.activations))
        if self.cache:
            rows += self.cache.lines()
        return "\n".join(rows)


def usable_bytes(memory_gb: float) -> int:
    """What of a GPU's memory is planned with: 1 GB and 5 % are held back."""
    return int((0.95 * memory_gb - 1.0) * 1e9)


def make_plan(
    config: Config,
    *,
    ds_config: Mapping[str, Any],
    ranks: int,
    num_classes: int,
    memory_gb: float | None = None,
    cuda: bool = True,
) -> Plan:
    """Plan a training run.

    Args:
        config: config of the run; `parallel.temporal` ranks share each window.
        ds_config: ZeRO stage, offload, buckets and activation storage, as in its file.
        ranks: total number of ranks.
        num_classes: K.
        memory_gb: of each device, for `backbone.activation_memory_gb=auto`; None: not known.
        cuda: whether they are GPUs.

    Raises:
        ConfigError: it cannot be run this way.
    """
    if config.backbone.cache_features:
        cache = plan_cache(config, cost=backbone_cost(config), cuda=cuda)
        steps = on_features(config, channels=cache.channels)
        plan = make_plan(steps, ds_config=ds_config, ranks=ranks, num_classes=num_classes, cuda=cuda)
        return replace(plan, cache=cache)
    temporal, clips = config.parallel.temporal, config.sample_frames // config.clip_frames
    if temporal > 1 and config.backbone.is_features:
        raise ConfigError(f"parallel.temporal={temporal} splits a backbone's frames over ranks; features leave none")
    if ranks % temporal or temporal > clips:
        raise ConfigError(f"parallel.temporal={temporal} must divide {ranks} ranks and be at most the {clips} clips")
    resolved = resolve_ds_config(ds_config, config=config, ranks=ranks, cuda=cuda)
    windows = resolved["train_micro_batch_size_per_gpu"]
    size = config.train.dtype.itemsize
    model = _model_size(shapes_of(config), num_classes)
    trainable, frozen = model.trainable, model.frozen

    zero = resolved["zero_optimization"]
    shares = ranks if zero["stage"] == 3 else 1
    weights_on_host = zero.get("offload_param", {}).get("device", "none") != "none"
    adam_on_host = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    gathered = 0
    if zero["stage"] == 3:
        most = int(zero.get("stage3_max_live_parameters", 1e9)) + int(zero.get("stage3_prefetch_bucket_size", 5e7))
        if config.backbone.is_aim and config.backbone.activation_checkpointing:
            most = frozen + trainable  # a chunk is recomputed through all blocks, whose weights its graph then holds
        gathered = size * min(frozen + trainable, most)
    gradients = gradient_lines(resolved, trainable=trainable, size=size, ranks=ranks)

    def held(name: str, count: int, *, host: bool) -> Line:
        return Line(name, 0 if host else count, count if host else 0)

    clips = -(-clips // temporal)
    is_features = config.backbone.is_features
    if is_features:
        read = Line("features", windows * config.data.window_size * model.channels * FEATURE_BYTES)
    else:
        read = Line("frames", windows * clips * config.clip_frames * config.data.resolution**2 * 3)
    head = 0
    of_head: dict[str, Any] = {"in_channels": model.channels, "num_classes": num_classes, "windows": windows}
    if config.recognition is None:
        head = head_bytes(config, **of_head)
    others = (
        held("frozen weights", size * frozen // shares, host=weights_on_host),
        held("trainable weights", size * trainable // shares, host=weights_on_host),
        held("masters, moments, average", ADAM_BYTES * trainable // ranks, host=adam_on_host),
        *gradients,
        Line("gathered weights", gathered),
        read,
    )
    cost, budget = backbone_cost(config), config.backbone.activation_memory_gb
    automatic = budget == "auto"
    if automatic:
        if memory_gb is None:
            raise ConfigError("backbone.activation_memory_gb=auto needs a GPU whose memory is known; set it in GB")
        budget = (usable_bytes(memory_gb) - sum(line.device for line in others)) / 1e9
    stored_tensors = len(stored_outputs_of(config.backbone))
    policy, _ = activation_policy(resolved, config=config, stored_tensors=stored_tensors, cuda=cuda)
    placed = cost.activations(
        windows=windows,
        clips=clips,
        policy=policy,
        budget=None if budget is None else int(budget * 1e9),
        beside=head if automatic else 0,
        cuda=cuda,
    )
    backbone = [] if is_features else _backbone_lines(placed)
    lines = (*others, *backbone, Line("head", head, transient=True))
    windows_a_step = config.train.global_batch
    if is_features:
        useful = executed = windows_a_step / windows * head_flop(config, **of_head)
    else:
        useful, executed = (windows_a_step * cost.flop(recomputed=again) for again in (0.0, placed.recomputed))
    return Plan(lines=lines, activations=placed, useful_flop=useful, executed_flop=executed)


def gradient_lines(ds_config: Mapping[str, Any], *, trainable: int, size: int, ranks: int) -> list[Line]:
    """Memory of the gradients, before and while they are reduced.

    Args:
        ds_config: as `resolve_ds_config` returns it.
        trainable: trainable numbers.
        size: bytes of one.
        ranks: total number of ranks.
    """
    zero, sent = ds_config["zero_optimization"], 4 if ds_config["communication_data_type"] == "fp32" else 2
    on_host = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if zero["stage"] == 3 or on_host:  # as DeepSpeed does: the whole bucket, however few parameters are trainable
        kept = size * trainable // (ranks if zero["stage"] >= 2 else 1)
        bucket = (sent if zero["stage"] == 3 else size) * int(zero.get("reduce_bucket_size", 5e8))
        return [Line("gradients", 0 if on_host else kept, kept if on_host else 0), Line("gradient bucket", bucket)]
    own = size * trainable  # see distributed/gradients.py: at the parameters, and again in the sums
    kept = 2 * own if ds_config["gradient_accumulation_steps"] > 1 else own
    copied = (sent * trainable if sent != size else 0) + (sent * trainable // ranks if ranks > 1 else 0)
    return [Line("gradients", kept), Line("gradients reduced", own + max(own, copied) - kept, transient=True)]


class _ModelSize(NamedTuple):
    """Numbers of parameters, and channels of the backbone's features."""

    trainable: int
    frozen: int
    channels: int


@cache
def _model_size(config: Config, num_classes: int) -> _ModelSize:
    with shapes_only():
        model = build_model(config, num_classes=num_classes)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return _ModelSize(trainable, frozen, model.backbone.width)


def _backbone_lines(placed: Activations) -> list[Line]:
    tensor, on_device = placed.tensor_bytes, placed.on_device
    stored = f"{placed.stored} stored tensors of {tensor / 1e9:.3f} GB"
    return [
        Line(stored, on_device * tensor, (placed.stored - on_device) * tensor),
        *([Line("graphs of long-range adapters", placed.ladder_bytes)] * bool(placed.ladder_bytes)),
        *([Line(f"graphs of {placed.graphs} of {placed.spans} chunks", placed.graph_bytes)] * bool(placed.graphs)),
        Line("backbone at work", placed.peak_bytes - placed.kept_bytes, transient=True),
    ]


def step_flop(config: Config, *, executed: bool = False) -> float:
    """FLOPs of a sample's forward and backward pass through the backbone.

    Gradients of weights count where these are trainable, gradients of inputs where they are needed.

    Args:
        config: config of the run.
        executed: include recomputation, as it is without a budget.
    """
    again = executed and config.backbone.activation_checkpointing and config.backbone.tuning != "frozen"
    return backbone_cost(config).flop(recomputed=float(again))


class BackboneCost(Protocol):
    """What a backbone costs, without running it."""

    def flop(self, *, recomputed: float) -> float:
        """FLOPs of a sample's forward and backward pass, of which so many forward passes with gradients run again."""
        ...

    def chunk(self, *, cuda: bool) -> int:
        """Clips that run at once; 0: all."""
        ...

    def activations(
        self, *, windows: int, clips: int, policy: StoragePolicy, budget: int | None, beside: int, cuda: bool
    ) -> Activations:
        """What waits for the backward pass, and what runs again.

        Args:
            windows: windows per forward pass.
            clips: clips of each on this rank.
            policy: where stored tensors wait without a budget.
            budget: bytes of the device; None: as the config has it.
            beside: bytes that the head takes while they wait.
            cuda: whether the device is a GPU.

        Raises:
            ConfigError: nothing fits the budget.
        """
        ...


def backbone_cost(config: Config) -> BackboneCost:
    """The cost of a config's backbone.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """
    if config.backbone.is_features:
        return FeatureCost()
    if config.backbone.is_aim:
        from adatad_ds.planning.image_backbones import ImageCost  # here, as timm takes seconds to import

        return ImageCost(config)
    return VideoCost(config)
