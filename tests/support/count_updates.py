"""Started by test_updates.py on each rank: step a small hosted detector, and measure its updates in parts and whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.factory import build_detector
from adatad_ds.training.optim import parameter_groups
from adatad_ds.training.update_stats import Updates
from adatad_ds.weights.trainable_state import MASTER


def main() -> None:
    """Write one JSON file a rank."""
    ds_config, folder = sys.argv[1:]
    world = World.join()
    config = Config(
        data=DataConfig(window_size=32, resolution=32, short_side_before_crop=32),
        backbone=BackboneConfig(adapter_ratio=0.05),
        head=HeadConfig(width=16, arch=(1, 0, 1), regression_range=((0, 4), (4, 99))),
        train=TrainConfig(precision="fp32", global_batch=world.size),
    )
    torch.manual_seed(0)
    spec = ViTSpec(width=64, depth=2, heads=4, mlp_hidden=256, pretrained_side=32)
    detector = build_detector(config, spec=spec, num_classes=3)
    with torch.no_grad():
        for index, adapter in enumerate(detector.backbone.adapters.values()):
            adapter.gamma.fill_(0.5 + index)
    resolved = resolve_ds_config(
        read_ds_config(f"ds_configs/{ds_config}.json"), config=config, ranks=world.size, cuda=False
    )
    engine = Engine(
        model=detector,
        groups=parameter_groups(detector, config.train),
        average=AverageDecay(config.train.ema_decay),
        train=config.train,
        ds_config=resolved,
        world=world,
    )
    updates = Updates(parts=engine.trainable_parts, total=world.sum)
    before = {name: tensors[MASTER] for name, tensors in engine.trainable_state()}
    engine.set_learning_rate(1.0)
    frames = torch.randint(0, 255, (1, 32, 32, 32, 3), dtype=torch.uint8)
    for _ in range(2):  # the first only moves the ends of the adapters, which start at zero
        predictions = engine(frames, torch.ones(1, 32, dtype=torch.bool))
        engine.backward(predictions.class_logits.sum() + predictions.distances.sum())
        engine.step()
    after = {name: tensors[MASTER] for name, tensors in engine.trainable_state()}
    movement = updates.take()
    found = {
        "sizes": {name: part.numel() for name, part in engine.trainable_parts()},
        "before": {name: float(value.double().norm()) for name, value in before.items()},
        "moved": {name: float((after[name] - value).double().norm()) for name, value in before.items()},
        "gamma": {name: float(value) for name, value in after.items() if name.endswith(".gamma")},
        "updates": movement.updates,
        "gammas": movement.gammas,
    }
    (Path(folder) / f"rank{world.rank}.json").write_text(json.dumps(found))
    engine.close()
    world.leave()


if __name__ == "__main__":
    main()
