"""How long the host takes to launch a block's passes, and how many clips keep the device busy meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from adatad_ds.models.backbones.clips import LAUNCHED_FLOP
from adatad_ds.models.backbones.vit import Block
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.models.tuning.adapters import TIA
from tools.gpu_parts.attention import kernel
from tools.gpu_parts.record import Recorder

CLIPS = {"videomae_s": 64, "videomae_b": 32, "videomaev2_g": 16}  # that keep a device busy


def run(record: Recorder, device: torch.device) -> None:
    """Seconds of a block with its adapter, forward, recomputed and backward, on the host and on the device."""
    side = 32 if record.miniature else 160
    for name, clips in {"tiny": 2}.items() if record.miniature else CLIPS.items():
        host_sec = _seconds(_passes(name, 1, side, device), device)
        device_sec = kernel(_passes(name, clips, side, device), device)[1] / clips
        spec, what = backbone_spec(name), f"block of {name}, {side} px"
        tokens = 8 * spec.positions(side)
        record.amount(f"{what}: launching its three passes", 1e3 * host_sec, "ms")
        record.amount(f"{what}: three passes over a clip", 1e3 * device_sec, "ms of the device")
        busy = host_sec / device_sec
        record.amount(f"{what}: clips that take the device as long", busy, "")
        flop = busy * spec.block_flop(tokens, attended=tokens) / LAUNCHED_FLOP
        record.amount(f"{what}: FLOPs of their forward pass / LAUNCHED_FLOP", flop, "", low=0.5, high=2)


def _passes(name: str, clips: int, side: int, device: torch.device) -> Callable[[], None]:
    """A block and its adapter over so many clips: without a graph, with one, and backward."""
    spec = backbone_spec(name)
    block = Block(width=spec.width, heads=spec.heads, mlp_hidden=spec.mlp_hidden).requires_grad_(False)
    adapter = TIA(width=spec.width, ratio=0.25, kernel=3, dilation=1)
    for module in (block, adapter):
        module.to(device, torch.bfloat16)
    shape = (1, 8 * clips, spec.positions(side), spec.width)
    tokens = torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_()
    gradient = torch.randn_like(tokens)

    def forward() -> Tensor:
        clip_tokens = (tokens + adapter(tokens)).view(clips, -1, spec.width)
        return block(clip_tokens).view(shape)

    def passes() -> None:
        with torch.no_grad():
            forward()
        torch.autograd.grad(forward(), (tokens, *adapter.parameters()), gradient)

    return passes


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    """Median time of a call among others: the host's, where the device is faster."""
    on_gpu, times = device.type == "cuda", []
    calls = 10 if on_gpu else 1
    action()
    for _ in range(7 if on_gpu else 1):
        began = time.perf_counter()
        for _ in range(calls):
            action()
        if on_gpu:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / calls)
    return median(times)
