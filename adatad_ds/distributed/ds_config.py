"""DeepSpeed configs: read the engine policy, fill in the recipe's values, reject contradictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adatad_ds.config.parsing import nearest
from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.execution.segment_timer import Stopwatch

STAGES = (1, 2, 3)
MOST_RANKS_IN_16_BITS = 64  # up to here gradients are reduced in the compute type, see docs/reference/performance.md
REDUCTION_TYPES = ("bf16", "fp16", "fp32")
# Keys of DeepSpeed's section activation_checkpointing; docs/reference/performance.md says what each does here.
ACTIVATION_KEYS = {
    "partition_activations": bool,
    "cpu_checkpointing": bool,
    "contiguous_memory_optimization": bool,
    "number_checkpoints": int,
    "synchronize_checkpoint_boundary": bool,
    "profile": bool,
}
SECTIONS = ("bf16", "fp16", "zero_optimization", "activation_checkpointing")
# Of the section zero_optimization; DeepSpeed reads some only in stage 3.
ZERO_NUMBERS = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)


def read_ds_config(path: str | Path) -> dict[str, Any]:
    """Read a ds_config file.

    Raises:
        ConfigError: it cannot be read, or it or one of the sections used here is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # ValueError: neither JSON nor UTF-8
        raise ConfigError(f"cannot read the DeepSpeed config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the DeepSpeed config {path} must hold a JSON object")
    for section in SECTIONS:
        if not isinstance(content.get(section, {}), dict):
            raise ConfigError(f"{section} in the DeepSpeed config {path} must be a JSON object")
    return content


def resolve_ds_config(source: Mapping[str, Any], *, config: Config, ranks: int, cuda: bool) -> dict[str, Any]:
    """Fill the recipe's values into a ds_config's `"auto"` fields.

    A ds_config holds engine policy: ZeRO stage, offload, buckets. Batch, accumulation, clipping, precision, optimizer
    and schedule belong to the recipe. If the file does not set `communication_data_type`, gradients are reduced in fp32
    above 64 ranks, and in the compute type otherwise. Other `"auto"` values of ZeRO's are DeepSpeed's defaults.

    Raises:
        ConfigError: the two contradict each other; every mismatch is listed.
    """
    train, temporal = config.train, config.parallel.temporal
    data_ranks = ranks // temporal
    micro, accumulation = split_batch(
        global_batch=train.global_batch,
        data_ranks=data_ranks,
        micro_batch=train.micro_batch,
        temporal=next(iter(temporal_choices(config, ranks)), None),
    )
    wanted = {
        ("train_batch_size",): train.global_batch,
        ("train_micro_batch_size_per_gpu",): micro,
        ("gradient_accumulation_steps",): accumulation,
        ("gradient_clipping",): train.grad_clip,
        ("bf16", "enabled"): train.precision == "bf16",
        ("fp16", "enabled"): train.precision == "fp16",
    }
    resolved = json.loads(json.dumps(source))
    problems = []
    for path, value in wanted.items():
        *parents, key = path
        section = resolved
        for parent in parents:
            section = section.setdefault(parent, {})
        given = section.get(key, "auto")
        if given != "auto" and given != value:
            problems.append(f"{'.'.join(path)} is {given} where the recipe has {value}")
        section[key] = value
    for section_name in ("optimizer", "scheduler"):
        if section_name in resolved:
            problems.append(
                f"it has a section {section_name!r}, which belongs to the recipe (train.lr_*, train.*_epochs)"
            )
    # DeepSpeed assumes that every rank has its own batch; the ranks of a temporal group share theirs.
    resolved["train_batch_size"] = train.global_batch * temporal
    zero = resolved.setdefault("zero_optimization", {})
    if zero.get("stage") not in STAGES:
        problems.append(f"zero_optimization.stage is {zero.get('stage')}; it must be 1, 2 or 3")
    if zero.get("stage") == 3 and train.compile:
        problems.append("zero_optimization.stage is 3, whose hooks inside of blocks cannot be compiled (train.compile)")
    reduction = resolved.get("communication_data_type", "auto")
    if reduction == "auto":
        reduction = "fp32" if ranks > MOST_RANKS_IN_16_BITS else train.precision
    elif reduction not in REDUCTION_TYPES:
        problems.append(f"communication_data_type is {reduction!r}; it must be {', '.join(REDUCTION_TYPES)} or auto")
    resolved["communication_data_type"] = reduction
    problems += _resolve_zero(zero, cuda=cuda)
    if problems:
        raise ConfigError(
            "the DeepSpeed config contradicts the recipe: " + "; ".join(problems) + '. Put "auto" in the ds_config, '
            "or change the recipe with --set"
        )
    resolved.setdefault("steps_per_print", 10**9)  # the trainer has its own reports
    resolved.setdefault("timers", {"throughput": {"enabled": False}})  # waits for the device twice a micro batch
    resolved["zero_allow_untested_optimizer"] = True  # torch's AdamW: same on all devices, no compilation
    resolved["zero_force_ds_cpu_optimizer"] = False
    return resolved


def _resolve_zero(zero: dict[str, Any], *, cuda: bool) -> list[str]:
    """Fill in `pin_memory`, drop every other `"auto"` of the section, as DeepSpeed does; returns what cannot be."""
    problems = []
    for name in ("offload_param", "offload_optimizer"):
        section = zero.get(name)
        if section is None or section == "auto":
            zero.pop(name, None)
        elif not isinstance(section, dict):
            problems.append(f"zero_optimization.{name} is {section!r}; it must be an object with a device")
        else:
            if section.get("device") == "nvme":
                problems.append(
                    f'zero_optimization.{name}.device is "nvme", which is not tested here; use "cpu" or "none"'
                )
            if section.get("pin_memory") == "auto":
                section["pin_memory"] = cuda  # host memory can only be pinned for a GPU
            zero[name] = {key: value for key, value in section.items() if value != "auto"}
    for key in [key for key, value in zero.items() if value == "auto"]:
        del zero[key]
    for key in ZERO_NUMBERS:
        value = zero.get(key, 0)
        if type(value) not in (int, float) or value < 0 or value % 1:
            problems.append(f"zero_optimization.{key} is {value!r}; it must be a whole number or auto")
    return problems


def activation_policy(
    ds_config: Mapping[str, Any], *, config: Config, stored_tensors: int, cuda: bool
) -> tuple[StoragePolicy, Stopwatch]:
    """Translate a ds_config's section `activation_checkpointing` into settings of recompute.py.

    Args:
        ds_config: the ds_config.
        config: config of the run.
        stored_tensors: tensors kept by a forward pass, one per adapted block.
        cuda: whether the device has its own memory.

    Raises:
        ConfigError: unknown keys, wrong types, or too few `number_checkpoints`.
    """
    section = ds_config.get("activation_checkpointing", {})
    problems = []
    for key, value in section.items():
        if key not in ACTIVATION_KEYS:
            problems.append(f"there is no key {key!r}{nearest(key, ACTIVATION_KEYS)}")
        elif type(value) is not ACTIVATION_KEYS[key] and not (key == "number_checkpoints" and value is None):
            problems.append(f"{key} must be of type {ACTIVATION_KEYS[key].__name__}, not {value!r}")
    room = section.get("number_checkpoints")
    if isinstance(room, int) and room < stored_tensors:
        problems.append(
            f"number_checkpoints is {room}, but {stored_tensors} tensors are kept, one for each adapted block; use "
            "null, or adapt fewer blocks with --set backbone.adapter_blocks"
        )
    if problems:
        raise ConfigError("activation_checkpointing in the DeepSpeed config: " + "; ".join(problems))
    policy = StoragePolicy(
        offload=cuda and section.get("cpu_checkpointing", False),  # on a CPU they are in host memory anyway
        device_bytes=int(config.backbone.stored_on_device_gb * 1e9),
    )
    stopwatch = Stopwatch(
        profile=section.get("profile", False), synchronize=section.get("synchronize_checkpoint_boundary", False)
    )
    return policy, stopwatch


def temporal_choices(config: Config, ranks: int) -> list[int]:
    """By how many ranks each window can be shared on so many, the batches as they are."""
    train = config.train
    shared = [count for count in range(1, min(ranks, config.most_temporal_ranks) + 1) if ranks % count == 0]
    return [count for count in shared if train.global_batch % (ranks // count * (train.micro_batch or 1)) == 0]


def split_batch(
    *, global_batch: int, data_ranks: int, micro_batch: int | None, temporal: int | None = None
) -> tuple[int, int]:
    """Split a global batch: (windows per rank and forward pass, forward passes per step).

    Args:
        global_batch: windows of all ranks.
        data_ranks: ranks that take different windows.
        micro_batch: windows per rank and forward pass; None: as many as there are.
        temporal: the `parallel.temporal` with which it could be split, for the message; None: there is none.

    Raises:
        ConfigError: the batch cannot be split evenly; the message says what would fit.
    """
    if global_batch % data_ranks:
        fitting = [ranks for ranks in range(1, global_batch + 1) if global_batch % ranks == 0]
        share = f"--set parallel.temporal={temporal}, which leaves the training unchanged; or " if temporal else ""
        raise ConfigError(
            f"train.global_batch={global_batch} windows cannot be spread evenly over {data_ranks} ranks; use "
            f"{share}{', '.join(map(str, fitting))} ranks; or --set "
            f"train.global_batch={_next_multiple(global_batch, data_ranks)}"
        )
    share = global_batch // data_ranks
    micro = micro_batch or share
    if share % micro:
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        raise ConfigError(
            f"train.micro_batch={micro} does not divide the {share} windows that each of {data_ranks} ranks has of "
            f"train.global_batch={global_batch}; use {', '.join(map(str, fitting))}"
        )
    return micro, share // micro


def _next_multiple(number: int, step: int) -> int:
    return -(-number // step) * step
