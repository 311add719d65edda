"""Measure a training step of an adapted backbone: time, throughput and peak memory of several ways to run it.

    python tools/bench/step.py --recipe thumos14_videomae_s --set data.window_size=1536 --compare
    torchrun --nproc_per_node 2 tools/bench/step.py --recipe ... --ways alone ours --threads 1
    python tools/bench/step.py --recipe ... --tia

Ways, run in turn in one process group:

    plain      autograd stores everything
    blocks     each block and its adapter under torch.utils.checkpoint over the whole window
    ours       models/recompute.py, all ranks sharing one window (parallel.temporal = ranks)
    host       ours, stored tensors in host memory (GPU only)
    alone      ours on the first rank, while the others wait

A step is the forward pass, and the backward pass of the features' sum, with random weights; the head is not in it.
FLOP/s count the useful work: forward, and gradients of the inputs where they are needed, no recomputation. MFU is their
share of what a matrix product reaches on the same device. Peak memory is the allocator's, above weights and frames, on
the first rank: on a GPU its statistics, on a CPU the profiler's record of one more step.

`--tia` times one adapter's forward and backward pass by itself: as published, with Conv1d between two permutations, and
as it is here, on tokens where they lie.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone, without installing

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from adatad_ds.config.loading import override
from adatad_ds.config.parsing import CLIP_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.process import end_process
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.clips import CLIPS_PER_CHUNK
from adatad_ds.models.execution.activation_store import Storage, StoragePolicy
from adatad_ds.models.execution.window_share import WholeWindow
from adatad_ds.models.factory import Runtime, build_detector
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.models.tuning.adapters import TIA
from adatad_ds.planning.memory import step_flop
from adatad_ds.planning.video_backbones import VideoCost
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.utf8 import use_utf8

WAYS = ("plain", "blocks", "ours", "host", "alone")
Row = dict[str, float | str]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="thumos14_videomae_s")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["ours"])
    parser.add_argument("--compare", action="store_true", help="plain, blocks and ours, or all of --ways")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not; 0: that one")
    parser.add_argument("--tia", action="store_true", help="time an adapter alone, in two layouts")
    parser.add_argument("--threads", type=int, help="of each rank on a CPU")
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    world = World.join()
    try:
        config = override(
            find_recipe(arguments.recipe).config,
            [*arguments.set, f"parallel.temporal={world.size}", "backbone.weights=None"],
        )
        ways = arguments.ways
        if arguments.compare and ways == ["ours"]:
            ways = ["plain", "blocks", "ours"] + (["host"] if world.device.type == "cuda" else [])
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        if arguments.tia:
            compare_tia(config, device=world.device, steps=arguments.steps)
            return 0
        bench = Bench(config, world=world, steps=arguments.steps)
        rows = [bench.measure(way) for way in ways]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        world.leave()
    if world.is_main:
        _print(rows, config=config, device=bench.device_name, ranks=world.size, roof=bench.roof)
        if arguments.json:
            result = {"device": bench.device_name, "torch": torch.__version__, "config": config.to_dict(), "ways": rows}
            arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


class Bench:
    """One window of random frames through a recipe's backbone.

    Args:
        config: of the recipe; its micro batch is run.
        world: all ranks; they share the window.
        steps: timed ones.
    """

    def __init__(self, config: Config, *, world: World, steps: int) -> None:
        self.world, self.config, self.steps = world, config, steps
        self.mesh = Mesh(world=world, config=config)
        side, windows = config.data.resolution, config.train.micro_batch or 1
        generator = torch.Generator().manual_seed(0)
        shape = (windows, config.data.window_frames, side, side, 3)
        self.frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        on_gpu = world.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores {platform.machine()}"
        self.roof = matmul_flop_per_sec(config.train.dtype, world.device)

    def measure(self, way: str) -> Row:
        """Time and peak memory of one way. A collective."""
        alone = way == "alone"
        sharing = self.world.size > 1 and not alone
        row: Row = {}
        if self.world.is_main or not alone:
            backbone, run = self._prepare(way, sharing=sharing)
            frames = (self.frames[:, self.mesh.frames] if sharing else self.frames).to(self.world.device)
            row = self._run(lambda: run(frames).sum().backward(), backbone)
            windows = len(frames)
            flop = windows * step_flop(self.config)
            tokens = windows * self.config.data.window_frames // 2 * backbone.vit.grid_side**2
            ranks = self.world.size if sharing else 1
            row |= {"way": way, "flop": flop, "tflop_per_sec": flop / float(row["median_sec"]) / 1e12}
            row |= {"tokens_per_sec": tokens / float(row["median_sec"]), "roof_tflop_per_sec": ranks * self.roof / 1e12}
            row |= {"stored_tensor_bytes": windows * VideoCost(self.config).tensor_bytes(self.config.sample_frames)}
        self.world.gather(None)  # those who wait, wait here
        return row

    def _prepare(self, way: str, *, sharing: bool) -> tuple[AdaptedBackbone, Callable[[Tensor], Tensor]]:
        recomputes = way in ("ours", "host", "alone")
        torch.manual_seed(0)
        model = build_detector(
            self.config,
            num_classes=1,
            runtime=Runtime(
                window=self.mesh.window() if sharing else WholeWindow(),
                storage=Storage(StoragePolicy(offload=way == "host")),
            ),
        ).backbone.to(self.world.device, self.config.train.dtype)
        assert isinstance(model, AdaptedBackbone), "image transformers have one way alone"
        if not recomputes:
            return model, lambda frames: block_by_block(model, frames, checkpointed=way != "plain")
        return model, model

    def _run(self, step: Callable[[], None], backbone: AdaptedBackbone) -> Row:
        device, seconds, before = self.world.device, [], 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        for _ in range(1 + self.steps):
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            backbone.zero_grad(set_to_none=True)
        peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else cpu_allocator_peak(step)
        return {"median_sec": median(seconds[1:] or seconds), "peak_bytes": peak}


def block_by_block(backbone: AdaptedBackbone, frames: Tensor, *, checkpointed: bool) -> Tensor:
    """Features with each block and its adapter over the whole window, perhaps under one checkpoint (`tia`)."""
    clips = frames.reshape(-1, CLIP_FRAMES, *frames.shape[2:])
    windows, steps = len(frames), frames.shape[1] // 2
    tokens = backbone.vit.embed(clips)
    for index, block in enumerate(backbone.vit.blocks):
        adapter = backbone.adapters[str(index)] if index in backbone.adapted_blocks else None

        def adapted(
            tokens: Tensor, block: torch.nn.Module = block, adapter: torch.nn.Module | None = adapter
        ) -> Tensor:
            tokens = block(tokens)
            if adapter is None:
                return tokens
            whole = tokens.view(windows, steps, -1, tokens.shape[-1])
            return (whole + adapter(whole)).view_as(tokens)

        tokens = checkpoint(adapted, tokens, use_reentrant=False) if checkpointed else adapted(tokens)
    return tokens.mean(dim=1, dtype=torch.float32)


def compare_tia(config: Config, *, device: torch.device, steps: int) -> None:
    """Print the times of one adapter over a chunk, in the published layout and in ours."""
    shape, medians = time_tia(config, device=device, steps=steps)
    print(f"TIA of {config.backbone.name} on {shape} {config.train.precision}, forward and backward:")
    for name, value in medians.items():
        print(f"{name:<10} {1e3 * value:>8.2f} ms  {value / medians['published']:.2f}")


def time_tia(config: Config, *, device: torch.device, steps: int) -> tuple[tuple[int, ...], dict[str, float]]:
    """Median seconds of one adapter's forward and backward pass over a chunk, `published` and `ours`.

    Returns:
        The tokens' shape (1, T, S, C), and the seconds by layout.
    """
    spec, backbone = backbone_spec(config.backbone.name), config.backbone
    tia = TIA(
        width=spec.width,
        ratio=backbone.adapter_ratio,
        kernel=backbone.adapter_kernel,
        dilation=backbone.adapter_dilation,
    ).to(device, config.train.dtype)
    torch.nn.init.normal_(tia.up_proj.weight, std=0.02)
    shape = (1, 8 * (backbone.clips_per_chunk or CLIPS_PER_CHUNK), spec.positions(config.data.resolution), spec.width)
    tokens = torch.randn(shape, device=device).to(config.train.dtype).requires_grad_()
    torch.testing.assert_close(published_tia(tia, tokens), tia(tokens), rtol=2e-2, atol=2e-2)
    medians = {}
    for name, run in (("published", lambda: published_tia(tia, tokens)), ("ours", lambda: tia(tokens))):
        seconds = []
        for _ in range(2 + 5 * steps):
            began = time.perf_counter()
            run().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        medians[name] = median(seconds[2:])
    return shape, medians


def published_tia(tia: TIA, tokens: Tensor) -> Tensor:
    """An adapter with its time convolution as Conv1d, (B, T, S, C) to the same."""
    windows, steps, positions, _ = tokens.shape
    bottleneck = F.gelu(tia.down_proj(tokens))
    series = bottleneck.permute(0, 2, 3, 1).flatten(0, 1)  # (B * S, hidden, T)
    convolution = tia.dwconv
    mixed = F.conv1d(
        series,
        convolution.weight,
        convolution.bias,
        padding=convolution.reach,
        dilation=convolution.dilation,
        groups=series.shape[1],
    )
    mixed = tia.conv(mixed.view(windows, positions, -1, steps).permute(0, 3, 1, 2))
    return tia.gamma * tia.up_proj(bottleneck + mixed)


def cpu_allocator_peak(step: Callable[[], object]) -> int:
    """Most bytes that PyTorch's CPU allocator held during a step, above those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    recorded: Any = record.profiler  # its events are not typed
    held = most = 0
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def matmul_flop_per_sec(dtype: torch.dtype, device: torch.device) -> float:
    """What a large matrix product reaches here."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _print(rows: Sequence[Row], *, config: Config, device: str, ranks: int, roof: float) -> None:
    data, first = config.data, rows[0]
    print(
        f"{config.backbone.name}, {config.backbone.tuning}, {data.window_frames} frames, {data.resolution} px, "
        f"{config.train.precision}; {device}, {ranks} ranks, {torch.get_num_threads()} threads each; "
        f"a matrix product reaches {roof / 1e12:.3f} TFLOP/s a rank"
    )
    against = next((row for row in rows if row["way"] == "blocks"), first)
    name = against["way"]
    print(
        f"{'way':<10} {'median s':>9} {'/ ' + str(name):>11} {'peak GB':>9} {'/ ' + str(name):>11} {'ktokens/s':>10} "
        f"{'TFLOP/s':>8} {'MFU %':>6} {'stored tensors':>15}"
    )
    for row in rows:
        seconds, peak = float(row["median_sec"]), float(row["peak_bytes"])
        print(
            f"{row['way']:<10} {seconds:>9.2f} {seconds / float(against['median_sec']):>11.2f} {peak / 1e9:>9.3f} "
            f"{peak / float(against['peak_bytes']):>11.2f} {float(row['tokens_per_sec']) / 1e3:>10.2f} "
            f"{float(row['tflop_per_sec']):>8.3f} "
            f"{100 * float(row['tflop_per_sec']) / float(row['roof_tflop_per_sec']):>6.1f} "
            f"{peak / float(row['stored_tensor_bytes']):>15.1f}"
        )
    print("stored tensors: the peak, in tensors of the whole window's tokens")


if __name__ == "__main__":
    use_utf8()
    end_process(main())
