"""Measure a training step of an adapted backbone: time and peak memory of ways to run it, in one session.

    python tools/bench_step.py --backbone videomae_s --frames 1536 --resolution 64 --compare

Ways: `plain` (autograd stores everything), `blocks` (each adapted block under torch.utils.checkpoint over the whole
window, as published), `ours` (one stored tensor an adapted block, chunks; models/recompute.py). Each runs in a process
of its own, forward and backward of the features' sum, all blocks adapted. Peak memory is that of the step alone: on a
GPU the allocator's peak, on a CPU the kernel's (VmHWM), above what weights and frames take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # runs from a fresh clone, without installing

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adatad_ds.config import CLIP_FRAMES, BackboneConfig, Config, DataConfig
from adatad_ds.models.adapters import TIA
from adatad_ds.models.backbone import AdaptedBackbone
from adatad_ds.models.vit import VIT_SPECS, VisionTransformer
from adatad_ds.models.window import WholeWindow

WAYS = ("plain", "blocks", "ours")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> int:
    """Run one way here, or each in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=VIT_SPECS, default="videomae_s")
    parser.add_argument("--frames", type=int, default=1536)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--clips-per-chunk", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--way", choices=WAYS, default="ours")
    parser.add_argument("--compare", action="store_true", help="all ways, each in a process of its own")
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    if not arguments.compare:
        print(json.dumps(measure(arguments)))
        return 0
    results = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        command.remove("--compare")
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    print(f"{arguments.backbone}, {arguments.frames} frames, {arguments.resolution} px, {arguments.dtype}")
    print(f"{'way':<8} {'peak GB':>9} {'of blocks':>10} {'median s':>9} {'of blocks':>10} {'TFLOP/s':>8}")
    blocks = results[WAYS.index("blocks")]
    for result in results:
        size, seconds = result["peak_bytes"], result["median_sec"]
        print(
            f"{result['way']:<8} {size / 1e9:>9.3f} {size / blocks['peak_bytes']:>10.2f} {seconds:>9.2f} "
            f"{seconds / blocks['median_sec']:>10.2f} {result['flop'] / seconds / 1e12:>8.3f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Time and peak of one way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = Config(
        data=DataConfig(window_size=arguments.frames, resolution=arguments.resolution),
        backbone=BackboneConfig(name=arguments.backbone),
    )
    spec, ways = VIT_SPECS[arguments.backbone], arguments.way
    backbone = AdaptedBackbone(
        vit=VisionTransformer(spec=spec, resolution=arguments.resolution),
        adapters={
            index: TIA(width=spec.width, ratio=0.25, kernel=3, dilation=1, window=WholeWindow())
            for index in range(spec.depth)
        },
        tuning="tia",
        feature_steps=arguments.frames,
        drop_path=0.0,
        activation_checkpointing=ways == "ours",
        clips_per_chunk=arguments.clips_per_chunk if ways == "ours" else 0,
        window=WholeWindow(),
    ).to(device, DTYPES[arguments.dtype])
    side = config.data.resolution
    frames = torch.randint(256, (1, arguments.frames, side, side, 3), dtype=torch.uint8, device=device)
    run: Callable[[Tensor], Tensor] = backbone if ways != "blocks" else lambda frames: published(backbone, frames)
    before = start_counting(device)
    seconds = []
    for _ in range(1 + arguments.steps):
        began = time.perf_counter()
        run(frames).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        backbone.zero_grad(set_to_none=True)
    return {
        "way": ways,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "peak_bytes": peak(device) - before,
        "median_sec": median(seconds[1:]),
        "stored_tensor_bytes": stored_tensor_bytes(backbone, arguments),
        "flop": flop(backbone, arguments),
    }


def published(backbone: AdaptedBackbone, frames: Tensor) -> Tensor:
    """Features with each block and its adapter under one checkpoint, over the whole window."""
    clips = frames.reshape(-1, CLIP_FRAMES, *frames.shape[2:])
    tokens = backbone.vit.embed(clips)
    for index, block in enumerate(backbone.vit.blocks):
        adapter = backbone.adapters[str(index)]

        def adapted(tokens: Tensor, block: torch.nn.Module = block, adapter: torch.nn.Module = adapter) -> Tensor:
            tokens = block(tokens)
            whole = tokens.view(1, len(tokens) * CLIP_FRAMES // 2, -1, tokens.shape[-1])
            return (whole + adapter(whole)).view_as(tokens)

        tokens = checkpoint(adapted, tokens, use_reentrant=False)
    return tokens.mean(dim=1, dtype=torch.float32)


def flop(backbone: AdaptedBackbone, arguments: argparse.Namespace) -> float:
    """Useful work of a step: forward once, and the gradient of the inputs, which costs as much; no recomputation."""
    spec = backbone.vit.spec
    tokens = arguments.frames // 2 * backbone.vit.grid_side**2
    in_clip = CLIP_FRAMES // 2 * backbone.vit.grid_side**2
    linear = 2 * tokens * sum(p.numel() for block in backbone.vit.blocks for p in block.parameters() if p.ndim > 1)
    attention = 4 * tokens * in_clip * spec.width * spec.depth
    return 2.0 * (linear + attention)


def stored_tensor_bytes(backbone: AdaptedBackbone, arguments: argparse.Namespace) -> int:
    """One tensor of the whole window's tokens."""
    tokens = arguments.frames // 2 * backbone.vit.grid_side**2
    return tokens * backbone.vit.spec.width * torch.empty((), dtype=DTYPES[arguments.dtype]).element_size()


def start_counting(device: torch.device) -> int:
    """Forget the peak so far; what is held now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """Most bytes held since `start_counting`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
