"""Time and memory of a recipe's backbone at budgets from the least to no recomputation, beside plain autograd.

    python tools/bench/sweep.py --set data.window_size=192 --set data.resolution=96 --set train.precision=fp32 \\
        --threads 1

(bf16 where the processor has instructions for it; without, its products take many times as long.)

Each point is a `backbone.activation_memory_gb`, within which the planner chooses as it does for a run; `no budget` is
full recomputation, with the recipe's chunks. `plain` is autograd over the whole window at once, `blocks` the same with
each block and its adapter under a checkpoint. A step is the forward pass, and the backward pass of the features' sum,
with random weights; the head is not in it. All ways take a step in turn, so that what else the machine does falls on
all alike: seconds are the process's CPU seconds, ratios the median over the rounds. `/ best that fits` compares with
the faster one of `plain` and `blocks` that takes no more memory. Memory is the peak of the tensors that are alive in
one more step, above weights and frames; what a kernel allocates for itself is not in it. `--compile` adds full
recomputation with compiled regions (`train.compile`), whose memory is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone, without installing

import torch
from torch import Tensor

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.execution.compiling import compile_regions
from adatad_ds.models.factory import Runtime, build_detector
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.planning.activations import Activations, BudgetError
from adatad_ds.planning.memory import BackboneCost, backbone_cost
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.utf8 import use_utf8
from tools.bench.step import block_by_block

COMPILED = "no budget, compiled"


@dataclass
class Way:
    """A way to take a step, and what was measured of it."""

    name: str
    run: Callable[[], None]
    planned: Activations | None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="thumos14_videomae_s")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        config = override(find_recipe(arguments.recipe).config, [*arguments.set, "backbone.weights=None"])
        ways = list(_ways(config, compiles=arguments.compile))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for way in ways:
        if way.name == COMPILED:
            way.run()  # its kernels allocate unseen
        else:
            way.peak_bytes = live_bytes(way.run)  # warms up, too
        print(f"{way.name}: {way.peak_bytes / 1e9:.3f} GB", file=sys.stderr, flush=True)
    for _ in range(arguments.rounds):
        for way in ways:
            began = time.process_time()
            way.run()
            way.seconds.append(time.process_time() - began)
    _print(config, ways)
    return 0


def _ways(config: Config, *, compiles: bool) -> Iterator[Way]:
    side, windows = config.data.resolution, config.train.micro_batch or 1
    generator = torch.Generator().manual_seed(0)
    shape = (windows, config.data.window_frames, side, side, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def way(name: str, activations: Activations | None, features: Callable[[AdaptedBackbone], Tensor]) -> Way:
        torch.manual_seed(0)
        runtime = (
            Runtime()
            if activations is None
            else Runtime(retention=activations.retention, clips_per_chunk=activations.clips_per_chunk)
        )
        model = build_detector(config, num_classes=1, runtime=runtime).backbone.to(config.train.dtype)
        assert isinstance(model, AdaptedBackbone), "image transformers have no budget"
        if name == COMPILED:
            compile_regions(model, device=frames.device)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        return Way(name, lambda: features(model).sum().backward(), activations)

    cost = backbone_cost(config)
    yield way("plain", None, lambda model: block_by_block(model, frames, checkpointed=False))
    yield way("blocks", None, lambda model: block_by_block(model, frames, checkpointed=True))
    yield way("no budget", _placed(cost, config, None), lambda model: model(frames))
    if compiles:
        yield way(COMPILED, _placed(cost, config, None), lambda model: model(frames))
    for budget in _budgets(cost, config):
        placed = _placed(cost, config, budget)
        yield way(f"{budget / 1e9:.3f} GB", placed, lambda model: model(frames))


def _placed(cost: BackboneCost, config: Config, budget: int | None) -> Activations:
    return cost.activations(
        windows=config.train.micro_batch or 1,
        clips=config.data.window_frames // config.clip_frames,
        policy=StoragePolicy(),
        budget=budget,
        beside=0,
        cuda=False,
    )


def _budgets(cost: BackboneCost, config: Config) -> list[int]:
    """Least memory, some stored tensors, all, then graphs up to all of them."""
    try:
        least = _placed(cost, config, 0).peak_bytes
    except BudgetError as error:
        least = error.needed
    stored = _placed(cost, config, None).peak_bytes
    everything = replace(config, backbone=replace(config.backbone, activation_checkpointing=False))
    most = _placed(backbone_cost(everything), everything, None).peak_bytes
    shares = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
    return [least, (least + stored) // 2, *(stored + int(share * (most - stored)) for share in shares)]


def _print(config: Config, ways: list[Way]) -> None:
    data, backbone = config.data, config.backbone
    print(
        f"{backbone.name}, {backbone.tuning}, {data.window_frames} frames, {data.resolution} px, "
        f"{config.train.precision}, {torch.get_num_threads()} threads\n"
    )
    plain, blocks, today = ways[:3]
    print(
        "| budget | planned GB | measured GB | / planned | stored | graphs | chunk | recomputed | CPU s | / plain | "
        "/ full recomputation | / best that fits |"
    )
    print("|---" * 12 + "|")
    for way in ways:
        placed, measured, ratio = way.planned, "", ""
        if way.peak_bytes:
            measured = f"{way.peak_bytes / 1e9:.3f}"
            ratio = "" if placed is None else f"{way.peak_bytes / placed.peak_bytes:.2f}"
        row = f"| {way.name} | | {measured} | | | | |"
        if placed is not None:
            row = (
                f"| {way.name} | {placed.peak_bytes / 1e9:.3f} | {measured} | {ratio} | {placed.stored} | "
                f"{placed.graphs} of {placed.spans} | {placed.clips_per_chunk} | {placed.recomputed:.2f}"
            )
        fitting = [other for other in (plain, blocks) if other.peak_bytes <= way.peak_bytes]  # none if not counted
        best = min(fitting, key=lambda other: median(other.seconds), default=None)
        ratios = " | ".join("" if other is None else f"{_ratio(way, other):.2f}" for other in (plain, today, best))
        print(f"{row} | {median(way.seconds):.2f} | {ratios} |")


def _ratio(way: Way, other: Way) -> float:
    return median(a / b for a, b in zip(way.seconds, other.seconds, strict=True))


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
