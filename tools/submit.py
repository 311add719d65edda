"""Submit training to Slurm: one run, or a grid of them as job arrays. Called by the scripts in slurm/.

    python tools/submit.py run --name NAME [--dry-run] --recipe R [--set ...]
    python tools/submit.py grid slurm/frames.json [--dry-run] [--only CELL ...]

Site settings come from the environment (slurm/site.env); so do overrides of a grid: RECIPE or RECIPES, FRAMES,
RESOLUTIONS, SET (assignments for every cell), NODES, TEMPORAL, GRID (its name). Without NODES the memory planner
chooses nodes, temporal ranks and chunks for GPUs. All is checked before anything is submitted.

A grid is a folder, runs/GRID: `cells.json`, `code/` (a snapshot: what is queued does not change with the clone), a
run's folder for each cell.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # runs from a fresh clone, without installing

from adatad_ds import config as configuration
from adatad_ds.config import Config, ConfigError
from adatad_ds.data.annotations import DataError
from adatad_ds.data.dataset import WindowDataset
from adatad_ds.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.recipes import find_recipe
from adatad_ds.runs import REVISION_FILE, revision
from tools.plan_memory import GPUS, Layout, Planner

SNAPSHOT = ("adatad_ds", "ds_configs", "slurm", "tools")


@dataclass(frozen=True)
class Site:
    """A cluster, by slurm/site.env."""

    gpus_per_node: int
    ranks_per_node: int
    cpus_per_rank: int
    gpu: str
    ds_config: str
    sbatch: tuple[str, ...]

    @classmethod
    def from_environment(cls) -> Site:
        """Read what slurm/site.env has set.

        Raises:
            ConfigError: something is missing or no number.
        """
        value = os.environ.get
        try:
            gpus, ranks = int(os.environ["GPUS_PER_NODE"]), int(os.environ["RANKS_PER_NODE"])
            cpus, warning = int(os.environ["CPUS_PER_RANK"]), int(os.environ["WARNING_SEC"])
        except (KeyError, ValueError) as error:
            raise ConfigError(f"slurm/site.env must set numbers of GPUs, ranks, CPUs and seconds: {error}") from error
        options = [f"--time={value('TIME_LIMIT', '24:00:00')}", f"--signal=B:USR1@{warning}", "--requeue"]
        for name in ("PARTITION", "ACCOUNT", "QOS"):
            options += [f"--{name.lower()}={value(name)}"] if value(name) else []
        options += [f"--mem={value('MEM_PER_NODE')}"] if value("MEM_PER_NODE") else []
        options += [f"--gpus-per-node={gpus}"] if gpus else []
        gpu = value("GPU", "A100-80")
        if gpu not in GPUS:
            raise ConfigError(
                f"GPU={gpu} in slurm/site.env is unknown to the memory planner; there are {', '.join(GPUS)}"
            )
        return cls(gpus, ranks, cpus, gpu, value("DS_CONFIG", "ds_configs/zero3.json"), tuple(options))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid: its name, command line and nodes."""

    name: str
    recipe: str
    assignments: tuple[str, ...]
    nodes: int

    def config(self) -> Config:
        """As train.py will see it.

        Raises:
            ConfigError: unknown recipe or key, impossible value.
        """
        return configuration.override(find_recipe(self.recipe).config, self.assignments)


def main() -> int:
    """Check, then submit or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one run")
    run.add_argument("--name", help="of its folder in runs/; default: the recipe's name")
    run.add_argument("--recipe", required=True)
    run.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    grid = commands.add_parser("grid", help="many")
    grid.add_argument("file", type=Path)
    grid.add_argument("--only", nargs="+", metavar="CELL", help="submit these again, with the grid's own code")
    for each in (run, grid):
        each.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    arguments = parser.parse_args()
    os.chdir(CLONE)
    try:
        site = Site.from_environment()
        if arguments.command == "run":
            name = arguments.name or arguments.recipe
            assignments = (*os.environ.get("SET", "").split(), *arguments.set)
            cells = [Cell(name="run", recipe=arguments.recipe, assignments=assignments, nodes=_number("NODES") or 1)]
            only = None
        else:
            name, cells = read_grid(arguments.file, site)
            only = arguments.only
        submit(Path("runs") / name, cells, site, only=only, dry_run=arguments.dry_run)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_grid(file: Path, site: Site) -> tuple[str, list[Cell]]:
    """A grid's name and cells, overrides applied, nodes chosen.

    Raises:
        ConfigError: a cell cannot be, or fits nowhere.
    """
    grid = json.loads(file.read_text())
    value = os.environ.get
    recipes = (value("RECIPES") or value("RECIPE") or " ".join(grid["recipes"])).split()
    frames = [int(word) for word in (value("FRAMES") or " ".join(map(str, grid["frames"]))).split()]
    resolutions = [int(word) for word in (value("RESOLUTIONS") or " ".join(map(str, grid["resolutions"]))).split()]
    extra = tuple(value("SET", "").split())
    cells = []
    for recipe, count, side in product(recipes, frames, resolutions):
        data = find_recipe(recipe).config.data
        cell = Cell(
            name=f"{recipe}_{count}f_{side}px",
            recipe=recipe,
            assignments=(
                f"data.window_size={count // data.frames_per_feature}",
                f"data.resolution={side}",
                f"data.short_side_before_crop={round(side * data.short_side_before_crop / data.resolution)}",
                *extra,
            ),
            nodes=_number("NODES") or 0,
        )
        cells.append(cell if cell.nodes else choose_nodes(cell, site))
        if temporal := _number("TEMPORAL"):
            cells[-1] = replace(cells[-1], assignments=(*cells[-1].assignments, f"parallel.temporal={temporal}"))
    return value("GRID") or f"{file.stem}_{'_'.join(recipes)}", cells


def choose_nodes(cell: Cell, site: Site) -> Cell:
    """The fewest nodes that a cell fits, by the memory planner; on CPUs one."""
    if not site.gpus_per_node:
        return replace(cell, nodes=1)
    config = cell.config()
    single = replace(config, train=replace(config.train, micro_batch=config.train.micro_batch or 1))
    planner = Planner(single, read_ds_config(site.ds_config), num_classes=max(1, len(config.data.classes)))
    for nodes in (1, 2, 4, 8, 16, 32, 64, 128):
        found = planner.first_fit(nodes * site.ranks_per_node, GPUS[site.gpu].memory_gb)
        if found:
            return replace(cell, nodes=nodes, assignments=(*cell.assignments, *_as_assignments(found[0])))
    raise ConfigError(
        f"{cell.name} fits no number of nodes up to 128 with {site.gpu}; set NODES, or a larger global batch"
    )


def _as_assignments(layout: Layout) -> tuple[str, ...]:
    return (
        f"parallel.temporal={layout.temporal}",
        f"backbone.clips_per_chunk={layout.chunk}",
        "train.micro_batch=1",
    )


def check(cells: Sequence[Cell], site: Site) -> None:
    """Find out now what would fail later.

    Raises:
        ConfigError: settings that cannot run on that many ranks.
        DataError: data that are not there.
    """
    checked = set()
    for cell in cells:
        config = cell.config()
        ranks = cell.nodes * site.ranks_per_node
        if ranks % config.parallel.temporal:
            raise ConfigError(
                f"{cell.name}: parallel.temporal={config.parallel.temporal} does not divide {ranks} ranks"
            )
        resolve_ds_config(read_ds_config(site.ds_config), config=config, ranks=ranks, cuda=site.gpus_per_node > 0)
        weights = config.backbone.weights
        if weights is not None and "/" in weights and not Path(weights).exists():
            raise ConfigError(f"{cell.name}: backbone.weights={weights} is not there; set SET='backbone.weights=...'")
        where = (config.data.annotations, config.data.videos)
        if where not in checked:
            WindowDataset.for_training(config.data, seed=0, repeats=1)
            checked.add(where)
    if site.gpus_per_node and shutil.which("sinfo"):
        found = subprocess.run(["sinfo", "-h", "-o", "%G"], capture_output=True, text=True, check=False).stdout
        if "gpu" not in found:
            raise ConfigError(
                f"GPUS_PER_NODE={site.gpus_per_node}, but this cluster has no GPUs; set GPUS_PER_NODE in "
                "slurm/site.env, to 0 for CPUs"
            )


def submit(folder: Path, cells: Sequence[Cell], site: Site, *, only: Sequence[str] | None, dry_run: bool) -> None:
    """Write the grid's folder and queue its cells, one array for each number of nodes.

    Raises:
        ConfigError: the grid is there already, a cell is unknown, Slurm refuses.
    """
    if only is not None:
        _, known = read_grid_folder(folder)
        unknown = set(only) - {cell.name for cell in known}
        if unknown:
            raise ConfigError(f"{folder} has no cell {sorted(unknown)}; it has {[cell.name for cell in known]}")
        cells = known
    elif (folder / "cells.json").exists():
        raise ConfigError(f"{folder} is there already; --only CELL submits some of it again, GRID=NAME makes another")
    chosen = [index for index, cell in enumerate(cells) if only is None or cell.name in only]
    check([cells[index] for index in chosen], site)
    by_nodes: dict[int, list[int]] = {}
    for index in chosen:
        by_nodes.setdefault(cells[index].nodes, []).append(index)
    orders = [(nodes, indices, _sbatch(folder, nodes, indices, site)) for nodes, indices in by_nodes.items()]
    for nodes, indices, command in orders:
        print(f"{nodes} nodes x {site.ranks_per_node} ranks: {', '.join(cells[index].name for index in indices)}")
        print(f"    {' '.join(command)}")
        for index in indices:
            print(f"    {index}: {' '.join(_arguments(cells[index], folder, site))}")
    if dry_run:
        return
    for _, _, command in orders:
        _slurm(["sbatch", "--test-only", *command[1:-2], "slurm/job.sh"])
    if only is None:
        write_grid(folder, cells, site)
    for number, (_, indices, command) in enumerate(orders):
        try:
            job = _slurm(command).strip()
        except ConfigError:
            if only is None and number == 0:
                shutil.rmtree(folder)  # nothing of it is queued
            raise
        for index in indices:
            (folder / cells[index].name / "failed").unlink(missing_ok=True)
        print(f"submitted as job {job}")
    print(f"watch: python tools/scaling_report.py {folder} --watch")


def write_grid(folder: Path, cells: Sequence[Cell], site: Site) -> None:
    """A grid's folder: cells, their command lines, a snapshot of the code."""
    folder = folder.resolve()
    (folder / "cells").mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for part in SNAPSHOT:
        shutil.copytree(CLONE / part, folder / "code" / part, ignore=ignored)
    (folder / "code" / REVISION_FILE).write_text(json.dumps(revision(), indent=1) + "\n")
    for index, cell in enumerate(cells):
        (folder / "cells" / f"{index}.args").write_text("\n".join(_arguments(cell, folder, site)) + "\n")
        (folder / "cells" / f"{index}.run").write_text(f"{folder / cell.name}\n")
    content = {"site": asdict(site), "cells": [asdict(cell) for cell in cells]}
    (folder / "cells.json").write_text(json.dumps(content, indent=1) + "\n")


def read_grid_folder(folder: Path) -> tuple[dict[str, Any], list[Cell]]:
    """The site and the cells of a grid, as they were submitted.

    Raises:
        ConfigError: this is no grid's folder.
    """
    try:
        content = json.loads((folder / "cells.json").read_text())
        cells = [Cell(**{**cell, "assignments": tuple(cell["assignments"])}) for cell in content["cells"]]
        return content["site"], cells
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} is no grid's folder: {error}") from error


def _arguments(cell: Cell, folder: Path, site: Site) -> list[str]:
    arguments = ["--recipe", cell.recipe, "--deepspeed_config", str(folder.resolve() / "code" / site.ds_config)]
    for assignment in cell.assignments:
        arguments += ["--set", assignment]
    return arguments


def _sbatch(folder: Path, nodes: int, indices: Sequence[int], site: Site) -> list[str]:
    folder = folder.resolve()
    return [
        "sbatch",
        "--parsable",
        f"--job-name={folder.name}",
        f"--array={','.join(map(str, indices))}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={site.ranks_per_node}",
        f"--cpus-per-task={site.cpus_per_rank}",
        f"--output={folder}/cells/%a.out",
        "--open-mode=append",
        f"--chdir={CLONE}",
        *site.sbatch,
        str(folder / "code/slurm/job.sh"),
        str(folder),
    ]


def _slurm(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        raise ConfigError(f"there is no {command[0]} here; is this a machine of the cluster?")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"Slurm refuses: {done.stderr.strip()}\n(asked: {' '.join(command)})")
    return done.stdout


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise ConfigError(f"{name}={text} must be a number")
    return int(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
