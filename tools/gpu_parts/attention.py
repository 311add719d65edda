"""Part 3: attention at the recipes' shapes. Part 6: the adapter alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from adatad_ds.models.transformers import backbone_spec
from adatad_ds.recipes.catalog import find_recipe
from tools.bench.step import time_tia
from tools.gpu_parts.record import Recorder

# backbone, resolution in pixels, clips at once: the executor's default, and least
SHAPES = [
    (name, side, clips)
    for name in ("videomaev2_g", "videomae_b", "videomae_s")
    for side in (160, 224)
    for clips in (8, 1)
]
AT_LEAST_TFLOP = {"videomaev2_g": 300.0}


def run(record: Recorder, device: torch.device) -> None:
    """Kernel, and TFLOP/s of the forward and of the backward pass, in bf16."""
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
        forward_sec, both_sec = seconds(forward, device), seconds(both, device)
        record.row(f"{what}: kernel", kernel(forward, device))
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


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Median time of one call."""
    on_gpu = device.type == "cuda"
    calls, inner, times = 7, 5 if on_gpu else 1, []
    for _ in range(calls):
        began = time.perf_counter()
        for _ in range(inner):
            action()
        if on_gpu:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / inner)
    return median(times[2:])


def kernel(action: Callable[[], object], device: torch.device) -> str:
    """Name of the kernel, on a CPU of the operator, that takes most of the time."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as record:
        action()
        if on_gpu:
            torch.cuda.synchronize()

    def own_time(average: object) -> float:
        return getattr(average, "self_device_time_total" if on_gpu else "self_cpu_time_total")

    averages = [each for each in record.key_averages() if on_gpu or "attention" in each.key]
    return max(averages, key=own_time).key[:90] if averages else "not recorded"
