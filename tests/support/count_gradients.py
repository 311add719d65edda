"""Started by test_temporal.py on 2 ranks: every tuning's gradients, of a window that they share and of a whole one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from adatad_ds.config.backbone import BESIDE
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, ParallelConfig, TrainConfig
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.execution.retention import Retention, least_inputs
from adatad_ds.models.factory import Runtime, build_backbone
from adatad_ds.models.sample_noise import SampleNoise
from tests.support.plain_backbone import plain_tubelet_features

TUNINGS = ("tia", "plain", "side", "ladder", "lora", "bitfit", "norm", "tia+lora")
SPEC = ViTSpec(width=24, depth=3, heads=2, mlp_hidden=48, pretrained_side=32)
CLIPS = 3  # one rank has two of them


def gradients(config: Config, runtime: Runtime | None, frames: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each trainable parameter, by plain autograd if there is no runtime."""
    torch.manual_seed(0)
    model = build_backbone(config, feature_steps=CLIPS * 8, spec=SPEC, runtime=runtime)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, AdaptedBackbone)
    noise = SampleNoise(seeds=[5], device=torch.device("cpu"))
    features = plain_tubelet_features(model, frames, noise) if runtime is None else model(frames, noise)
    features.sin().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def retentions(tuning: str) -> list[Retention]:
    """From all graphs to the fewest inputs that a tuning's segments can be run with."""
    found = [Retention(graphs=None), Retention(graphs=3), Retention()]
    if tuning not in BESIDE:
        found.append(Retention(inputs=least_inputs(SPEC.depth + (tuning == "tia+lora"))))
    return found


def main() -> None:
    """Rank 0 writes the largest difference, relative to the gradient, of each tuning."""
    world, found = World.join(), {}
    ranks = world.groups(world.size)
    frames = torch.randint(0, 256, (1, CLIPS * 16, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator())
    for tuning in TUNINGS:
        config = Config(
            data=DataConfig(window_size=CLIPS * 16, resolution=32, short_side_before_crop=32),
            backbone=BackboneConfig(tuning=tuning, drop_path=0.3, clips_per_chunk=1, adapter_kernel=5),
            train=TrainConfig(precision="fp32"),
            parallel=ParallelConfig(temporal=world.size),
        )
        mesh = Mesh(world=world, config=config)
        whole, differences = gradients(config, None, frames), []
        for retention in retentions(tuning):
            runtime = Runtime(window=mesh.window(), retention=retention)
            shared = gradients(config, runtime, frames[:, mesh.frames])
            assert whole.keys() == shared.keys()
            for name, gradient in whole.items():
                mean = ranks.sum(shared[name]) / world.size  # as DeepSpeed averages over all ranks
                differences.append(((mean - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3)).item())
        found[tuning] = max(differences)
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main()
