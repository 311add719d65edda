"""An optimizer step of a recipe as training runs it: engine, head, losses and AdamW; random weights and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType

from adatad_ds.config.schema import Config
from adatad_ds.data.batch import Batch
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import activation_policy, resolve_ds_config
from adatad_ds.distributed.engine import Engine, partitioner
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.adapted_video import frozen_blocks, recomputing
from adatad_ds.models.execution.activation_store import Storage
from adatad_ds.models.factory import Runtime, build_detector, stored_outputs_of
from adatad_ds.training.optim import parameter_groups
from adatad_ds.weights.loading import fill_backbone
from tools.gpu_parts.inputs import CLASSES, random_batch, random_tensors, task_without_videos

SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")


class WholeStep:
    """A detector under DeepSpeed, and the optimizer steps that it takes.

    Args:
        config: of the recipe; its weights are replaced by random ones.
        ds_config: as in its file.
        world: of one rank.
    """

    def __init__(self, config: Config, *, ds_config: dict[str, Any], world: World) -> None:
        on_gpu = world.device.type == "cuda"
        self.config = replace(config, backbone=replace(config.backbone, weights="random"))
        resolved = resolve_ds_config(ds_config, config=self.config, ranks=world.size, cuda=on_gpu)
        policy, stopwatch = activation_policy(
            resolved, config=self.config, stored_tensors=len(stored_outputs_of(config.backbone)), cuda=on_gpu
        )
        self.storage = Storage(policy)
        torch.manual_seed(0)
        model = build_detector(
            self.config, num_classes=CLASSES, runtime=Runtime(storage=self.storage, stopwatch=stopwatch)
        )
        fill_backbone(
            model.backbone.vit,
            random_tensors(model.backbone.vit, config.train.dtype),
            dtype=config.train.dtype,
            read=True,
            host=partitioner(resolved, world=world),
        )
        self.model = model
        self.engine = Engine(
            model=model,
            groups=parameter_groups(model, self.config.train),
            average=AverageDecay(self.config.train.ema_decay),
            called_whole=frozen_blocks(model),
            recomputing=recomputing(model),
            train=self.config.train,
            ds_config=resolved,
            world=world,
        )
        self.engine.train()
        self.engine.set_learning_rate(1.0)
        self.task = task_without_videos(self.config, world=world)
        windows = resolved["train_micro_batch_size_per_gpu"]
        self.batches = [random_batch(self.config, windows=windows, pin=on_gpu)] * self.engine.accumulation

    def __call__(self, batches: Sequence[Batch] | None = None) -> Tensor:
        """Take a step, as `Trainer.step` does; its loss."""
        _, losses = self.task.step(self.engine, batches or self.batches)
        return losses.sum()

    def close(self) -> None:
        """Let go of the engine and its memory."""
        self.engine.close()


def is_operation(event: Any, *, on: DeviceType) -> bool:
    """Whether a profiled event is what a device did; ranges of `record_function` are on a GPU's line, too."""
    return event.device_type == on and not getattr(event, "is_user_annotation", False)


def gpu_activity(events: Any, wall_sec: float) -> dict[str, float]:
    """Of profiled events: share of the time with a kernel at work, largest gap, launches, times that the host waited.

    Args:
        events: of `torch.profiler.profile.events()`.
        wall_sec: how long the profiled code took.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in events if is_operation(event, on=DeviceType.CUDA)
    )
    busy = gap = 0.0
    reached = spans[0][0] if spans else 0.0
    for start, end in spans:
        gap = max(gap, start - reached)
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    names = [event.name for event in events if event.device_type == DeviceType.CPU]
    return {
        "busy_percent": 100 * busy / 1e6 / wall_sec,
        "largest_gap_ms": gap / 1e3,
        "launches": float(sum(name in LAUNCHES for name in names)),
        "synchronisations": float(sum(name in SYNCHRONISATIONS for name in names)),
    }
