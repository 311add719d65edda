"""Started by test_engine.py: what makes the host wait in an optimizer step under DeepSpeed, on a GPU that is not there.

DeepSpeed is its own, its CPU's functions say that their device is the GPU; its collectives reach nobody.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine, coordination, deepspeed
from adatad_ds.distributed.world import World
from adatad_ds.models.factory import build_detector
from adatad_ds.models.shapes import shapes_only
from adatad_ds.training.optim import parameter_groups
from tests.support.fake_gpu import GPU, fake_gpu, on_gpu

CHANNELS, STEPS = 20, 32


def pretend() -> None:
    accelerator: Any = deepspeed.get_accelerator()
    accelerator.device_name = lambda index=None: "cuda" if index is None else f"cuda:{index}"
    accelerator.current_device_name = lambda: str(GPU)
    accelerator.on_accelerator = lambda tensor: tensor.device == GPU
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    coordination.assert_ints_same_as_other_ranks = lambda numbers: None  # compares what it was sent


def main() -> None:
    """Print the waits of a second step as JSON."""
    (ds_config,) = sys.argv[1:]
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    pretend()
    config = Config(
        data=DataConfig(window_size=STEPS),
        backbone=BackboneConfig(name="features", tuning="frozen", feature_channels=CHANNELS),
        head=HeadConfig(width=16, arch=(1, 0, 1), regression_range=((0, 4), (4, 99)), drop_path=0.0),
        train=TrainConfig(precision="bf16", global_batch=1),
    )
    with shapes_only():
        model = build_detector(config, num_classes=3)
    with fake_gpu() as gpu:
        on_gpu(model, config.train.dtype)
        model.to = lambda device: model  # pyright: ignore[reportAttributeAccessIssue]  (it is there)
        engine = Engine(
            model=model,
            groups=parameter_groups(model, config.train),
            average=AverageDecay(config.train.ema_decay),
            train=config.train,
            ds_config=resolve_ds_config(
                read_ds_config(f"ds_configs/{ds_config}.json"), config=config, ranks=1, cuda=False
            ),
            world=World(rank=0, size=1, device=GPU),
        )
        features = torch.empty(1, STEPS, CHANNELS, device=GPU)
        for _ in range(2):  # in the first one ZeRO-3 learns the order of modules
            gpu.waits.clear()
            outputs = engine(features, torch.ones(1, STEPS, dtype=torch.bool, device=GPU))
            engine.backward(outputs.class_logits.sum() + outputs.distances.sum())
            before = dict(gpu.waits)
            engine.step()
        print(json.dumps({"passes": before, "step": gpu.waits, "taken": engine.step_taken}))


if __name__ == "__main__":
    main()
