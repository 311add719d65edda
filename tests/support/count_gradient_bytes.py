"""Started by test_plan.py: memory that gradients take, DeepSpeed's bucket among it, by stage and types; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from adatad_ds.config.schema import Config, TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import resolve_ds_config
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.world import World
from adatad_ds.training.optim import parameter_groups
from tools.bench.step import cpu_allocator_peak

BUCKET = 123_456  # numbers; no other tensor has so many
TYPES = (("bf16", "auto"), ("bf16", "fp32"), ("fp32", "auto"))
WIDTH = 1000


def main() -> None:
    """Print what `buckets` and `peaks` return."""
    world = World.join()
    print(json.dumps({"buckets": buckets(world), "peaks": peaks(world)}))
    world.leave()


def buckets(world: World) -> list[Any]:
    """[stage, whether states are offloaded, precision, communication_data_type, bytes of each bucket] of each case."""
    measured = []
    for stage, offloaded in ((1, False), (2, False), (2, True), (3, False)):
        for precision, sent in TYPES:
            zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET}
            if offloaded:
                zero["offload_optimizer"] = {"device": "cpu"}
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
                engine = host(
                    world, nn.Linear(8, 8), precision, {"communication_data_type": sent, "zero_optimization": zero}
                )
                learn(engine, 8)
                engine.step()
                engine.close()
            recorded: Any = record.profiler  # its events are not typed
            sizes = {event.nbytes() for event in recorded.kineto_results.events() if event.name() == "[memory]"}
            allocated = [size for size in (2 * BUCKET, 4 * BUCKET) if size in sizes]
            measured.append([stage, offloaded, precision, sent, allocated])
    return measured


def peaks(world: World) -> list[Any]:
    """Of a step's gradients, in two micro batches or one.

    Returns:
        [precision, communication_data_type, trainable numbers, micro batches, bytes held before the last one, bytes at
        most from there on] of each case.
    """
    measured = []
    for precision, sent in TYPES:
        for accumulation in (1, 2):
            model = nn.Linear(WIDTH, WIDTH)  # whose activations are a thousandth of it
            ds_config = {"communication_data_type": sent, "zero_optimization": {"stage": 2}}
            engine = host(world, model, precision, ds_config, accumulation=accumulation)
            held = 0
            if accumulation == 2:
                learn(engine, WIDTH)
                engine.step()
                assert engine._gradients is not None
                held = sum(total.nbytes for total in engine._gradients._sums)
            peak = cpu_allocator_peak(lambda engine=engine: learn(engine, WIDTH))
            engine.step()
            engine.close()
            numbers = sum(parameter.numel() for parameter in model.parameters())
            measured.append([precision, sent, numbers, accumulation, held, peak])
    return measured


def host(world: World, model: nn.Module, precision: Any, ds_config: dict[str, Any], *, accumulation: int = 1) -> Engine:
    """Host a small model."""
    config = Config(train=TrainConfig(precision=precision, global_batch=accumulation, micro_batch=1))
    return Engine(
        model=model,
        groups=parameter_groups(model, config.train),
        average=AverageDecay(config.train.ema_decay),
        train=config.train,
        ds_config=resolve_ds_config(ds_config, config=config, ranks=1, cuda=False),
        world=world,
    )


def learn(engine: Engine, width: int) -> None:
    """A forward and a backward pass."""
    (weight, _) = engine.module.parameters()
    engine.backward(engine(torch.ones(1, width, dtype=weight.dtype)).float().sum())


if __name__ == "__main__":
    main()
