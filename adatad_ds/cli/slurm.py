"""Submit training to Slurm: one run, or a grid of runs as job arrays; report on a grid. Called by slurm/*.sh.

    adatad-ds slurm run --recipe R [--name NAME] [--set ...] [--deepspeed_config FILE] [options of train.py]
    adatad-ds slurm grid slurm/frames.json
    adatad-ds slurm again runs/GRID [CELL ...]
    adatad-ds slurm report runs/GRID [--watch]

With `--dry-run`, the first three only print what would be submitted. Site settings come from the environment
(slurm/site.env), and so do overrides of a grid: RECIPE or RECIPES, FRAMES, RESOLUTIONS, SET (settings for every cell),
NODES, TEMPORAL, GRID (its name). If NODES or TEMPORAL are not set, the memory planner chooses them for GPUs. Everything
is checked before it is submitted. A report is a table, report.md, .csv and .png, and hparams/ for TensorBoard.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from adatad_ds.cli.commands import command_parser


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|grid|again|report")
    run = commands.add_parser("run", help="submit one run", allow_abbrev=False)
    run.add_argument("--recipe", required=True)
    run.add_argument("--name", help="name of the run's folder in runs/; default: the recipe's")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    run.add_argument("--deepspeed_config", help="default: DS_CONFIG of slurm/site.env")
    grid = commands.add_parser("grid", help="submit the cells of a grid file", allow_abbrev=False)
    grid.add_argument("file", type=Path)
    again = commands.add_parser(
        "again", help="resubmit cells of a grid, with its snapshot of the code", allow_abbrev=False
    )
    again.add_argument("grid", type=Path)
    again.add_argument("cells", nargs="*", help="names of cells; default: all failed cells")
    for each in (run, grid, again):
        each.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    report = commands.add_parser("report", help="progress and results of a grid", allow_abbrev=False)
    report.add_argument("grid", type=Path)
    report.add_argument("--watch", action="store_true", help="repeat every 30 s until all cells have ended")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Check, then submit or print; or report."""
    parser = make_parser(prog)
    arguments, extra = parser.parse_known_args(argv)
    if extra and arguments.command != "run":
        parser.error(f"unknown: {' '.join(extra)}")
    say = partial(print, flush=True)
    if arguments.command == "report":
        from adatad_ds.cluster.report import watch

        watch(arguments.grid, again=arguments.watch, report=say)
        return 0
    from adatad_ds.cluster.grid import Grid
    from adatad_ds.cluster.submission import cells_again, many_runs, one_run, site_again, submit, submit_new
    from adatad_ds.system.clone import CLONE

    os.chdir(CLONE)
    if arguments.command == "again":
        grid = Grid.read(arguments.grid)
        chosen = cells_again(grid, arguments.cells)
        grid = replace(grid, site=site_again(grid, report=say))
        submit(grid, chosen=chosen, dry_run=arguments.dry_run, report=say)
    elif arguments.command == "grid":
        submit_new(many_runs(arguments.file), rename="GRID=", dry_run=arguments.dry_run, report=say)
    else:
        grid = one_run(
            arguments.recipe,
            name=arguments.name,
            assignments=arguments.set,
            ds_config=arguments.deepspeed_config,
            extra=extra,
        )
        submit_new(grid, rename="--name ", dry_run=arguments.dry_run, report=say)
    return 0
