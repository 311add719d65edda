"""Attention at the recipes' shapes, and the adapter alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from adatad_ds.models.transformers import backbone_spec
from adatad_ds.recipes.catalog import find_recipe
from tools.bench.step import time_tia
from tools.gpu_parts.inputs import default_chunk
from tools.gpu_parts.record import Recorder

# backbone, side in pixels, clips at once
SHAPES = [
    (name, side, default_chunk(name, side))
    for name in ("videomaev2_g", "videomae_b", "videomae_s")
    for side in (160, 224)
]
AT_LEAST_TFLOP = {"videomaev2_g": 300.0}


def run(record: Recorder, device: torch.device) -> None:
    """Kernel, and TFLOP/s of the forward and of the backward pass, in bf16, while the device is at work."""
    shapes = [("tiny", 64, 2)] if record.miniature else SHAPES
    for name, side, clips in shapes:
        spec = backbone_spec(name)
        tokens, width = 8 * spec.positions(side), spec.width // spec.heads
        what = f"attention of {name}, head width {width}, {side} px ({tokens} tokens), {clips} clips"
        shape = (clips, spec.heads, tokens, width)
        query, key, value = (
            torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
        )
        gradient = torch.randn(shape, device=device, dtype=torch.bfloat16)

        def forward(query: torch.Tensor = query, key: torch.Tensor = key, value: torch.Tensor = value) -> torch.Tensor:
            return F.scaled_dot_product_attention(query, key, value)

        def both(gradient: torch.Tensor = gradient, forward: Callable[[], torch.Tensor] = forward) -> None:
            forward().backward(gradient)

        forward_flop = 4.0 * clips * spec.heads * tokens**2 * width
        name_of_most, forward_sec = kernel(forward, device)
        _, both_sec = kernel(both, device)
        record.row(f"{what}: kernel", name_of_most)
        record.amount(f"{what}: forward", forward_flop / forward_sec / 1e12, "TFLOP/s")
        rate = 3.5 * forward_flop / both_sec / 1e12  # the backward pass has 5 products where the forward has 2
        record.amount(f"{what}: forward and backward", rate, "TFLOP/s", low=AT_LEAST_TFLOP.get(name))


def run_tia(record: Recorder, device: torch.device) -> None:
    """Time of one adapter over a chunk, in two layouts."""
    names = ["quickstart"] if record.miniature else ["thumos14_videomaev2_g", "thumos14_videomae_s"]
    for name in names:
        config = find_recipe(name).config
        if record.miniature:
            config = replace(config, train=replace(config.train, precision="bf16"))
        shape, medians = time_tia(config, device=device, steps=1 if record.miniature else 5)
        what = f"TIA of {config.backbone.name} on {shape}, forward and backward"
        record.amount(f"{what}: published layout", 1e3 * medians["published"], "ms")
        record.amount(f"{what}: ours", 1e3 * medians["ours"], "ms")
        ratio = medians["ours"] / medians["published"]
        record.amount(f"{what}: ours / published", ratio, "", high=1.0, more_is_better=False)


def kernel(action: Callable[[], object], device: torch.device) -> tuple[str, float]:
    """What takes most of the time, a kernel, on a CPU an operator; and how long all of them take, in seconds."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    calls = 5 if on_gpu else 1
    action()  # libraries choose their kernels
    with profile(activities=activities) as record:
        for _ in range(calls):
            action()
        if on_gpu:
            torch.cuda.synchronize()

    def own_time(average: object) -> float:
        return getattr(average, "self_device_time_total" if on_gpu else "self_cpu_time_total")

    averages = [each for each in record.key_averages() if on_gpu or "attention" in each.key]
    if not averages:
        return "not recorded", math.inf
    return max(averages, key=own_time).key[:90], sum(map(own_time, averages)) / calls / 1e6
