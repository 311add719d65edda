"""Memory and time of a training step over longer and longer windows, up to whole videos, beside the plan.

    python tools/bench/long_windows.py --steps 3840 7680 15360 --threads 1 \\
        --set data.resolution=32 --set backbone.clips_per_chunk=8 --set head.attn_window=19

A step is the whole detector's forward and backward pass on one window of random frames, with random weights. Memory is
the peak of the tensors that are alive in it, above weights, gradients and frames; planned are the stored tensors and
the larger of what the head and what a chunk of the backbone takes. Seconds are the process's CPU seconds; `/ steps`
divides them and memory by those of the shortest window, each per step of the window: 1.00 is a straight line.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone, without installing

import torch

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.models.factory import build_detector
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.planning.memory import make_plan
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.clone import DS_CONFIGS
from adatad_ds.system.utf8 import use_utf8

CLASSES = 4
RECOMPUTED = ("train.global_batch=1", "backbone.activation_checkpointing=true", "backbone.weights=None")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One window."""

    steps: int
    frames: int
    planned_bytes: int
    measured_bytes: int
    cpu_sec: float


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--steps", nargs="+", type=int, required=True, help="data.window_size of each window")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    try:
        recipe = find_recipe(arguments.recipe).config
        for steps in arguments.steps:
            rows.append(measured(override(recipe, [*RECOMPUTED, *arguments.set, f"data.window_size={steps}"])))
            print(f"{steps} steps done", file=sys.stderr, flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| steps | frames | planned GB | measured GB | / planned | / steps | CPU s | / steps |")
    print("|---" * 8 + "|")
    first = rows[0]
    for row in rows:
        longer = row.steps / first.steps
        memory, seconds = row.measured_bytes / first.measured_bytes, row.cpu_sec / first.cpu_sec
        print(
            f"| {row.steps:,} | {row.frames:,} | {row.planned_bytes / 1e9:.3f} | {row.measured_bytes / 1e9:.3f} | "
            f"{row.measured_bytes / row.planned_bytes:.2f} | {memory / longer:.2f} | {row.cpu_sec:.1f} | "
            f"{seconds / longer:.2f} |"
        )
    return 0


def measured(config: Config) -> Row:
    """A window's step, beside its plan."""
    lines = make_plan(config, ds_config=read_ds_config(DS_CONFIGS / "zero2.json"), ranks=1, num_classes=CLASSES).lines
    stored = sum(line.device for line in lines if "stored tensors" in line.name)
    at_work = max(line.device for line in lines if line.name in ("head", "backbone at work"))
    torch.manual_seed(0)
    model = build_detector(config, num_classes=CLASSES)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    side, steps = config.data.resolution, config.data.window_size
    frames = torch.randint(256, (1, config.data.window_frames, side, side, 3), dtype=torch.uint8)
    valid, seeds = torch.ones(1, steps, dtype=torch.bool), torch.zeros(1, dtype=torch.long)

    def step() -> None:
        predictions = model(frames, valid, seeds)
        (predictions.class_logits.sum() + predictions.distances.sum()).backward()

    began = time.process_time()
    step()
    cpu_sec = time.process_time() - began
    return Row(
        steps=steps,
        frames=config.data.window_frames,
        planned_bytes=stored + at_work,
        measured_bytes=live_bytes(step),
        cpu_sec=cpu_sec,
    )


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
