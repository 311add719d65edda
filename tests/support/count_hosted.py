"""Started by test_temporal.py on 2 ranks: gradients of transformers that DeepSpeed hosts, against plain autograd's.

Their weights come from a file, so that ZeRO-3 partitions blocks of frozen and trainable parameters one by one, on the
meta device before.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from deepspeed.utils import get_z3_leaf_modules
from safetensors.torch import save_file
from torch import nn

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, ParallelConfig, TrainConfig
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine, partitioner
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.adapted_video import frozen_blocks, recomputing
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.detector import Detector
from adatad_ds.models.factory import Runtime, build_detector
from adatad_ds.models.transformers import build_configured_image, build_video_transformer
from adatad_ds.training.optim import parameter_groups
from adatad_ds.weights.loading import fill_backbone, find_weights
from tests.support.plain_backbone import plain_tubelet_features

VJEPA2 = ViTSpec(width=48, depth=3, heads=2, mlp_hidden=96, pretrained_side=32, family="V-JEPA 2")
SPECS = {
    "vjepa2_l": VJEPA2,
    "internvideo2_s": replace(VJEPA2, family="InternVideo2", tubelet_frames=1, prefix_tokens=1),
    "vit_tiny_generated": None,  # its own
}
FRAMES = 64


def build(config: Config, runtime: Runtime | None, *, read: bool, host) -> Detector:
    """With trainable parameters that are not zero, the same wherever it is called."""
    torch.manual_seed(0)
    model = build_detector(config, num_classes=3, spec=SPECS[config.backbone.name], runtime=runtime)
    for parameter in model.backbone.parameters():
        if parameter.requires_grad and not parameter.is_meta:
            nn.init.normal_(parameter, std=0.1)
    weights = find_weights(config.backbone, model.backbone.vit)
    assert weights is not None
    fill_backbone(model.backbone.vit, weights.vit, dtype=torch.float32, read=read, host=host)
    return model


def main() -> None:
    """Rank 0 writes the gradient norm of each case as hosted and of plain autograd."""
    folder, *stages = sys.argv[1:]
    world, found = World.join(), {}
    frames = torch.randint(0, 256, (1, FRAMES, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator())
    valid = torch.ones(1, FRAMES, dtype=torch.bool)
    for case in stages:
        stage, tuning, name = case.split(":")
        weights = Path(folder) / f"{name}.safetensors"
        torch.manual_seed(1)
        spec = SPECS[name]
        if spec is None:
            vit = build_configured_image(BackboneConfig(name=name), resolution=32)
        else:
            vit = build_video_transformer(spec, clip_frames=16, resolution=32)
        state = {key: p.detach() for key, p in vit.named_parameters()}
        world.on_main(lambda state=state, weights=weights: save_file(state, weights))
        config = Config(
            data=DataConfig(window_size=FRAMES, resolution=32, short_side_before_crop=32),
            backbone=BackboneConfig(
                name=name,
                weights=str(weights),
                tuning=tuning,  # pyright: ignore
                adapter_blocks=(0, 2),
                clips_per_chunk=1 if spec else 16,
                lora_rank=2,
            ),
            head=HeadConfig(width=16, arch=(1, 0, 1), regression_range=((0, 4), (4, 99)), drop_path=0.0),
            train=TrainConfig(precision="fp32", global_batch=1, grad_clip=1e9),
            parallel=ParallelConfig(temporal=world.size),
        )
        ds_config = read_ds_config(f"ds_configs/{stage}.json")
        resolved = resolve_ds_config(ds_config, config=config, ranks=world.size, cuda=False)
        mesh = Mesh(world=world, config=config)
        runtime = Runtime(window=mesh.window())
        model = build(config, runtime, read=world.is_main, host=partitioner(resolved, world=world))
        groups = parameter_groups(model, config.train)
        average = AverageDecay(config.train.ema_decay)
        engine = Engine(
            model=model,
            groups=groups,
            average=average,
            called_whole=frozen_blocks(model),
            recomputing=recomputing(model),
            train=config.train,
            ds_config=resolved,
            world=world,
        )
        assert get_z3_leaf_modules(model) == frozen_blocks(model) != [], "frozen blocks are not gathered whole"
        predictions = engine(frames[:, mesh.frames], valid)
        engine.backward(predictions.class_logits.sin().sum() + predictions.distances.sum())
        engine.step()
        hosted = engine.gradient_norm()
        engine.close()
        alone = build(config, None, read=True, host=lambda module: None)
        alone.backbone.tubelet_features = partial(plain_tubelet_features, alone.backbone)  # pyright: ignore
        predictions = alone(frames, valid)
        (predictions.class_logits.sin().sum() + predictions.distances.sum()).backward()
        norms = [p.grad.norm() for p in alone.parameters() if p.grad is not None]
        found[case] = hosted, torch.stack(norms).norm().item()
    if world.is_main:
        (Path(folder) / "norms.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main()
