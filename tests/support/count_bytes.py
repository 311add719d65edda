"""Started by test_memory.py on each rank: build a small hosted detector, take steps, and count every tensor alive."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from safetensors.torch import save_file

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine, partitioner
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.adapted_video import frozen_blocks, recomputing
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.vit import VisionTransformer
from adatad_ds.models.factory import build_detector
from adatad_ds.training.optim import parameter_groups
from adatad_ds.weights.loading import fill_backbone, find_weights

DEPTH, WIDTH = 12, 128


def main() -> None:
    """Write one JSON file a rank."""
    ds_config, precision, folder = sys.argv[1:]
    world = World.join()
    file = Path(folder) / "backbone.safetensors"
    config = Config(
        data=DataConfig(window_size=32, resolution=32, short_side_before_crop=32),
        backbone=BackboneConfig(adapter_ratio=0.05, weights=str(file)),
        head=HeadConfig(width=16, arch=(1, 0, 1), regression_range=((0, 4), (4, 99))),
        train=TrainConfig(precision=precision, global_batch=world.size),
    )
    spec = ViTSpec(width=WIDTH, depth=DEPTH, heads=4, mlp_hidden=4 * WIDTH, pretrained_side=32)
    world.on_main(lambda: save_file(VisionTransformer(spec=spec, resolution=32).state_dict(), file))
    detector = build_detector(config, spec=spec, num_classes=3)
    frozen = sum(p.numel() for p in detector.parameters() if not p.requires_grad)
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    resolved = resolve_ds_config(
        read_ds_config(f"ds_configs/{ds_config}.json"), config=config, ranks=world.size, cuda=False
    )
    resolved["zero_optimization"] |= {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
    if resolved["zero_optimization"]["stage"] == 3:  # as a giant's: weights are gathered as they are needed
        block = 12 * WIDTH**2
        few = {"param_persistence_threshold": 0, "max_live_parameters": 2 * block, "prefetch_bucket_size": block}
        few["max_reuse_distance"] = block
        resolved["zero_optimization"] |= {f"stage3_{key}": numbers for key, numbers in few.items()}
    weights = find_weights(config.backbone, detector.backbone.vit)
    assert weights is not None
    fill_backbone(
        detector.backbone.vit,
        weights.vit,
        dtype=config.train.dtype,
        read=world.is_main,
        host=partitioner(resolved, world=world),
    )
    engine = Engine(
        model=detector,
        groups=parameter_groups(detector, config.train),
        average=AverageDecay(config.train.ema_decay),
        called_whole=frozen_blocks(detector),
        recomputing=recomputing(detector),
        train=config.train,
        ds_config=resolved,
        world=world,
    )
    of_blocks = [p for block in detector.backbone.vit.blocks for p in block.parameters()]
    gathered: list[int] = []
    for block in detector.backbone.vit.blocks:
        block.register_forward_pre_hook(lambda *_: gathered.append(sum(p.numel() for p in of_blocks)))
    del detector, block
    for _ in range(2):  # DeepSpeed records the first, and goes by it in the second
        predictions = engine(torch.zeros(1, 32, 32, 32, 3, dtype=torch.uint8), torch.ones(1, 32, dtype=torch.bool))
        engine.backward(predictions.class_logits.sum() + predictions.distances.sum())
        with_gradient = sum(p.grad is not None for p in engine.module.parameters() if not p.requires_grad)
        engine.step()
    engine.train(False)
    with torch.no_grad():
        for _ in range(3):
            engine(torch.zeros(1, 32, 32, 32, 3, dtype=torch.uint8), torch.ones(1, 32, dtype=torch.bool))
    del predictions
    gc.collect()
    largest = [tensor for tensor in gc.get_objects() if _is_tensor(tensor) and tensor.numel() >= WIDTH * WIDTH]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in largest}
    report = {
        "rank": world.rank,
        "frozen": frozen,
        "trainable": trainable,
        "kinds": engine.bytes_by_kind(),
        "most_gathered": max(gathered),
        "frozen_with_gradient": with_gradient,
        "bytes_in_large_tensors": sum(storages.values()),
    }
    (Path(folder) / f"rank{world.rank}.json").write_text(json.dumps(report))
    world.leave()


def _is_tensor(item: object) -> bool:
    try:
        return isinstance(item, torch.Tensor)
    except ReferenceError:  # a dead weak proxy
        return False


if __name__ == "__main__":
    main()
