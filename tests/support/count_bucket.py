"""Started by test_plan.py: the gradient bucket that DeepSpeed allocates, by stage and types, if any; prints JSON."""

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

BUCKET = 123_456  # numbers; no other tensor has so many


def main() -> None:
    """Print [stage, whether states are offloaded, precision, communication_data_type, bytes] of each case."""
    world = World.join()
    measured = []
    for stage, offloaded in ((1, False), (2, False), (2, True), (3, False)):
        for precision, sent in (("bf16", "auto"), ("bf16", "fp32"), ("fp32", "auto")):
            zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET}
            if offloaded:
                zero["offload_optimizer"] = {"device": "cpu"}
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
                step(world, precision, {"communication_data_type": sent, "zero_optimization": zero})
            recorded: Any = record.profiler  # its events are not typed
            sizes = {event.nbytes() for event in recorded.kineto_results.events() if event.name() == "[memory]"}
            allocated = [size for size in (2 * BUCKET, 4 * BUCKET) if size in sizes]
            measured.append([stage, offloaded, precision, sent, allocated])
    print(json.dumps(measured))
    world.leave()


def step(world: World, precision: Any, ds_config: dict[str, Any]) -> None:
    """Host a small model and train it for a step."""
    config = Config(train=TrainConfig(precision=precision, global_batch=1))
    resolved = resolve_ds_config(ds_config, config=config, ranks=1, cuda=False)
    model = nn.Linear(8, 8)
    engine = Engine(
        model=model,
        groups=parameter_groups(model, config.train),
        average=AverageDecay(config.train.ema_decay),
        train=config.train,
        ds_config=resolved,
        world=world,
    )
    engine.backward(engine(torch.ones(1, 8, dtype=config.train.dtype)).float().sum())
    engine.step()
    engine.close()


if __name__ == "__main__":
    main()
