"""Plan a run before it is queued: memory of a rank, FLOPs, what fits, and what to change if it does not.

    adatad-ds plan --recipe thumos14_videomaev2_g_1536 --gpus 8 --temporal 4 --gpu H100-80
    adatad-ds plan --recipe thumos14_videomaev2_g_1536 --ds_config ds_configs/zero3.json --grid

Nothing is allocated. Memory is that of PyTorch's allocator; to decide what fits, 1 GB and 5 % are held back for what
else a process needs on a GPU (context, libraries, fragmentation). The time is a lower bound: all executed FLOPs at the
GPU's dense bf16 peak. If a run fills a cache of features first, memory, time and disk of this are included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.errors import ConfigError
from adatad_ds.planning.gpus import GPUS
from adatad_ds.system.options import at_least, between, check_unused


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("--recipe", required=True, help="name of an experiment; see train --list-recipes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of the recipe"
    )
    parser.add_argument("--ds_config", type=Path, help="default: zero2.json if the frozen weights fit, else zero3.json")
    parser.add_argument("--gpus", type=at_least(1), default=1, help="number of GPUs; default: %(default)s")
    parser.add_argument(
        "--temporal", type=at_least(1), help="ranks that share a window; default: as in the recipe, if possible"
    )
    parser.add_argument(
        "--gpu", choices=tuple(GPUS), help="kind of GPU; default: that of this machine, according to nvidia-smi"
    )
    parser.add_argument("--classes", type=at_least(1), default=20, help="number of classes; default: %(default)s")
    parser.add_argument(
        "--core-frames-per-sec",
        type=between(1),
        metavar="N",
        help="frames per second that one core decodes and augments, to print the cores that a GPU needs",
    )
    parser.add_argument("--grid", action="store_true", help="print frames x GPUs as a Markdown table")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print a plan, or the grid."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if arguments.grid:
        check_unused(arguments, parser, ("gpus", "temporal", "gpu", "core_frames_per_sec"), why="--grid is of many")
    from adatad_ds.config.loading import override
    from adatad_ds.config.without_effect import described
    from adatad_ds.distributed.ds_config import read_ds_config
    from adatad_ds.planning.layouts import (
        POLICIES,
        Planner,
        choose_policy,
        grid_lines,
        one_window_at_a_time,
        plan_report,
        planned_gpu,
        policy_line,
    )
    from adatad_ds.recipes.catalog import find_recipe

    wanted = override(find_recipe(arguments.recipe).config, arguments.set)
    for line in described(wanted, arguments.set):
        print(f"note: {line}", file=sys.stderr)
    config = one_window_at_a_time(wanted)
    if config.backbone.is_features:
        from adatad_ds.data.features.sources import with_feature_channels

        config = with_feature_channels(config)
    path = arguments.ds_config
    if arguments.grid:
        if config.backbone.reads_features:
            raise ConfigError("--grid varies the number of frames, but this recipe reads features")
        planner = Planner(config, read_ds_config(path or POLICIES[-1]), num_classes=arguments.classes)
        for line in grid_lines(planner):
            print(line)
        return 0
    name = planned_gpu(arguments.gpu)
    gpu = GPUS[name]
    if path is None:
        path, _ = choose_policy(config, arguments.gpus, gpu.memory_gb, num_classes=arguments.classes)
        print(policy_line(path))
    ds_config = read_ds_config(path)
    planner = Planner(config, ds_config, num_classes=arguments.classes, memory_gb=gpu.memory_gb)
    host = ds_config.get("activation_checkpointing", {}).get("cpu_checkpointing", False)
    layout = planner.layout(arguments.gpus, gpu.memory_gb, temporal=arguments.temporal, host=host)
    if layout.temporal != (arguments.temporal or config.parallel.temporal):
        print(
            f"--set parallel.temporal={layout.temporal}: with parallel.temporal={config.parallel.temporal} a global "
            f"batch of {config.train.global_batch} cannot be spread over {arguments.gpus} GPUs; this does not "
            "change the training"
        )
    known = arguments.core_frames_per_sec
    print(plan_report(planner, layout, gpu, name=name, core_frames_per_sec=known))
    return 0
