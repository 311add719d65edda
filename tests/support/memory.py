"""Memory of a backbone's training step: as planned, and as PyTorch's allocator gives it."""

from __future__ import annotations

from dataclasses import replace

import torch

from adatad_ds.config.schema import Config, HeadConfig
from adatad_ds.models.factory import build_backbone
from adatad_ds.planning.memory import make_plan
from tools.bench.step import cpu_allocator_peak

SMALL_HEAD = HeadConfig(width=32, arch=(1, 1, 2), regression_range=((0, 4), (4, 8), (8, 10_000)))  # quickly planned


def backbone_peaks(config: Config) -> tuple[int, int]:
    """Bytes of what a window's activations take on the CPU, (planned, measured)."""
    frames, side = config.data.window_frames, config.data.resolution
    model = build_backbone(config, feature_steps=config.data.window_size).to(config.train.dtype)
    window = torch.zeros(1, frames, side, side, 3, dtype=torch.uint8)

    def step() -> None:
        model(window).sum().backward()

    step()  # gradients are there from now on
    config = replace(config, head=SMALL_HEAD)
    lines = make_plan(config, ds_config={"zero_optimization": {"stage": 2}}, ranks=1, num_classes=3).lines
    planned = sum(line.device for line in lines if "stored tensors" in line.name or "backbone" in line.name)
    return planned, cpu_allocator_peak(step)
