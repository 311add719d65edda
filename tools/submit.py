"""Submit training to Slurm: one run, or a grid of them as job arrays. Called by the scripts in slurm/.

    python tools/submit.py run --recipe R [--name NAME] [--set ...] [--deepspeed_config FILE] [options of train.py]
    python tools/submit.py grid slurm/frames.json
    python tools/submit.py again runs/GRID [CELL ...]

Each with `--dry-run`, which prints what would be submitted. Site settings come from the environment (slurm/site.env),
and so do overrides of a grid: RECIPE or RECIPES, FRAMES, RESOLUTIONS, SET (assignments for every cell), NODES,
TEMPORAL, GRID (its name). What NODES and TEMPORAL leave open, the memory planner chooses for GPUs. All is checked
before it is submitted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

from adatad_ds.config.schema import Config
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.errors import ConfigError, DataError, UserError
from adatad_ds.planning.gpus import GPUS
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.tasks.recognition import open_clips
from tools.grid import CLONE, Cell, Grid, Overrides, Site, gpu_types_in, gpus_in, read_cells

RUN_CELL = "run"  # the only cell of what slurm/train.sh submits


def main() -> int:
    """Check, then submit or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one run", allow_abbrev=False)
    run.add_argument("--recipe", required=True)
    run.add_argument("--name", help="of its folder in runs/; default: the recipe's name")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    run.add_argument("--deepspeed_config", help="default: DS_CONFIG of slurm/site.env")
    grid = commands.add_parser("grid", help="many", allow_abbrev=False)
    grid.add_argument("file", type=Path)
    again = commands.add_parser("again", help="cells of a grid, with its own code", allow_abbrev=False)
    again.add_argument("grid", type=Path)
    again.add_argument("cells", nargs="*", help="names; default: all that failed")
    for each in (run, grid, again):
        each.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    arguments, extra = parser.parse_known_args()
    if extra and arguments.command != "run":
        parser.error(f"unknown: {' '.join(extra)}")
    os.chdir(CLONE)
    try:
        if arguments.command == "again":
            found = Grid.read(arguments.grid)
            submit(found, chosen=cells_again(found, arguments.cells), dry_run=arguments.dry_run)
            return 0
        made = one_run(arguments, extra) if arguments.command == "run" else many_runs(arguments.file)
        if (made.folder / "cells.json").exists():
            raise ConfigError(
                f"{made.folder} is there already; slurm/again.sh submits cells of it, "
                f"{'--name' if arguments.command == 'run' else 'GRID='}NAME makes another"
            )
        submit(made, chosen=range(len(made.cells)), dry_run=arguments.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def one_run(arguments: argparse.Namespace, extra: Sequence[str]) -> Grid:
    """What slurm/train.sh submits: a grid of one cell."""
    site = read_site([arguments.recipe])
    if arguments.deepspeed_config:
        site = replace(site, ds_config=arguments.deepspeed_config)
    assignments = (*_words("SET"), *arguments.set)
    nodes = _number("NODES") or 1
    cell = Cell(name=RUN_CELL, recipe=arguments.recipe, assignments=assignments, nodes=nodes, extra=tuple(extra))
    return Grid(Path("runs") / (arguments.name or arguments.recipe), site, (cell,))


def many_runs(file: Path) -> Grid:
    """A grid file's cells, with what the environment changes."""
    overrides = Overrides(
        recipes=_words("RECIPES") or _words("RECIPE"),
        frames=_numbers("FRAMES"),
        resolutions=_numbers("RESOLUTIONS"),
        assignments=_words("SET"),
        nodes=_number("NODES"),
        temporal=_number("TEMPORAL"),
    )
    site = read_site(overrides.recipes)
    cells = read_cells(file, overrides, site)
    recipes = dict.fromkeys(cell.recipe for cell in cells)
    name = os.environ.get("GRID") or "_".join([file.stem, *(recipes if len(recipes) < 3 else ())])
    return Grid(Path("runs") / name, site, tuple(cells))


def cells_again(grid: Grid, names: Sequence[str]) -> list[int]:
    """The cells to submit again.

    Raises:
        ConfigError: there are none, they are unknown, or Slurm still has them.
    """
    known = {cell.name: index for index, cell in enumerate(grid.cells)}
    if unknown := set(names) - set(known):
        raise ConfigError(f"{grid.folder} has no cell {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    chosen = [known[name] for name in names] or [index for index in known.values() if grid.failed(index)]
    if not chosen:
        raise ConfigError(f"no cell of {grid.folder} has failed; name those that you want")
    states = grid.slurm_states() or {}
    if held := [f"{grid.cells[index].name} ({states[index]})" for index in chosen if index in states]:
        raise ConfigError(f"Slurm still has {', '.join(held)}; scancel them first")
    return chosen


def read_site(recipes: Sequence[str]) -> Site:
    """What slurm/site.env has set; the rest, what sinfo says. The quickstart's recipes train on CPUs.

    Raises:
        ConfigError: no number where there should be one, no GPUs.
    """
    value = os.environ.get
    gpus, ranks, cpus = (_number(name) for name in ("GPUS_PER_NODE", "RANKS_PER_NODE", "CPUS_PER_RANK"))
    on_cpus = bool(recipes) and all(recipe.split("_")[0] == "quickstart" for recipe in recipes)
    if gpus is None and on_cpus:
        gpus = 0
    gpu = value("GPU", "")
    if gpu and gpu not in GPUS:
        raise ConfigError(f"GPU={gpu} in slurm/site.env is unknown to the memory planner; there are {', '.join(GPUS)}")
    if gpus is None or gpus > 0 or cpus is None:
        there_gpus, there_cpus, types = _ask_sinfo(value("PARTITION", ""))
        if gpus != 0 and not there_gpus:
            raise ConfigError(
                f"the nodes of {value('PARTITION') or 'the default partition'} have no GPUs, says sinfo; set PARTITION "
                "(slurm/site.env) to one with GPUs, or GPUS_PER_NODE=0 to train on CPUs. RECIPE=quickstart does so"
            )
        gpus = there_gpus if gpus is None else gpus
        cpus = cpus or max(1, min(8, there_cpus // (ranks or gpus or 2)))
        gpu = gpu or " or ".join(sorted(types))
    options = [f"--time={value('TIME_LIMIT') or '24:00:00'}", f"--signal=B:USR1@{_number('WARNING_SEC') or 180}"]
    wanted = {"PARTITION": "partition", "ACCOUNT": "account", "QOS": "qos", "CONSTRAINT": "constraint"}
    options += [f"--{option}={value(name)}" for name, option in wanted.items() if value(name)]
    options += [f"--mem={value('MEM_PER_NODE')}"] if value("MEM_PER_NODE") else []
    options += [f"--gpus-per-node={gpus}"] if gpus else []
    return Site(
        gpus_per_node=gpus,
        ranks_per_node=ranks or gpus or 2,
        cpus_per_rank=cpus,
        gpu=gpu,
        ds_config=value("DS_CONFIG") or "ds_configs/zero3.json",
        options=tuple(options),
        cells_at_once=_number("CELLS_AT_ONCE"),
    )


def _ask_sinfo(partition: str) -> tuple[int, int, set[str]]:
    """GPUs and CPUs of a partition's nodes, and those GPUs' types; of the default one for an empty name."""
    lines = _slurm(["sinfo", "--noheader", "--format=%P|%c|%G"]).split()
    asked = [line.split("|") for line in lines]
    nodes = [line for line in asked if (line[0].rstrip("*") == partition if partition else line[0].endswith("*"))]
    if not nodes:
        raise ConfigError(
            f"there is no partition {partition or 'that is the default'}; set PARTITION in slurm/site.env"
        )
    gpus = max(gpus_in(gres) for _, _, gres in nodes)
    fullest = [(int(cpus.rstrip("+")), gres) for _, cpus, gres in nodes if gpus_in(gres) == gpus]
    types = set().union(*(gpu_types_in(gres) for _, gres in fullest))
    return gpus, min(cpus for cpus, _ in fullest), types


def check(grid: Grid, chosen: Iterable[int]) -> None:
    """Find out now what would fail later.

    Raises:
        ConfigError: settings that cannot run on that many ranks, weights that are not there.
        DataError: data that are not there.
    """
    site, seen = grid.site, set()
    for cell in (grid.cells[index] for index in chosen):
        config, ranks = cell.config(), cell.nodes * grid.site.ranks_per_node
        if cell.extra:
            words = cell.arguments(grid.folder, site.ds_config)
            asked = [sys.executable, "adatad_ds/train.py", *words, "--print-config"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigError(f"train.py does not take that: {done.stderr.strip().splitlines()[-1]}")
        if ranks % config.parallel.temporal:
            raise ConfigError(
                f"{cell.name}: parallel.temporal={config.parallel.temporal} does not divide {ranks} ranks"
            )
        resolve_ds_config(read_ds_config(site.ds_config), config=config, ranks=ranks, cuda=site.gpus_per_node > 0)
        clips = config.recognition
        where = (clips.train_list if clips else config.data.annotations, config.data.videos)
        if where not in seen:
            try:
                if clips:
                    open_clips(config, training=True)
                else:
                    WindowDataset.for_training(config.data, seed=0, repeats=1)
            except DataError as error:
                keys = "recognition.train_list=FILE recognition.test_list=FILE" if clips else "data.annotations=FILE"
                hint = f'SET="{keys} data.videos=FOLDER" says where yours are; RECIPE=quickstart needs none'
                raise DataError(f"{cell.name}: {error}\n{hint}") from error
            seen.add(where)
        weights = config.backbone.weights
        if weights is not None and re.search(r"^[./]|\.(pth|pt|safetensors)$", weights) and not Path(weights).exists():
            raise ConfigError(f"{cell.name}: backbone.weights={weights} is not there (docs/weights.md); set it in SET")


def make_quickstart_videos(configs: Iterable[Config]) -> None:
    """The quickstarts' generated videos and clips, where a cell wants them and they are not there."""
    wanted = list(configs)
    place = Path(find_recipe("quickstart").config.data.annotations)
    if not place.exists() and any(c.recognition is None and c.data.annotations == str(place) for c in wanted):
        subprocess.run([sys.executable, "tools/make_videos.py", "--out", str(place.parent)], check=True)
    generated = find_recipe("quickstart_aim").config.recognition
    assert generated is not None
    clips = Path(generated.train_list)
    if not clips.exists() and any(c.recognition and c.recognition.train_list == str(clips) for c in wanted):
        subprocess.run([sys.executable, "tools/make_clips.py", "--out", str(clips.parent)], check=True)


def submit(grid: Grid, *, chosen: Sequence[int], dry_run: bool) -> None:
    """Queue cells, one array for each number of nodes; a new grid's folder is made first.

    Raises:
        ConfigError: something cannot run, or Slurm refuses.
        DataError: data that are not there.
    """
    make_quickstart_videos(grid.cells[index].config() for index in chosen)
    check(grid, chosen)
    by_nodes: dict[int, list[int]] = {}
    for index in chosen:
        by_nodes.setdefault(grid.cells[index].nodes, []).append(index)
    orders = [(indices, sbatch(grid, nodes, indices)) for nodes, indices in by_nodes.items()]
    for indices, command in orders:
        print(" ".join(command))
        for index in indices:
            words = grid.cells[index].arguments(grid.folder, grid.site.ds_config)
            print(f"    {index}: {grid.cells[index].name}: train.py {' '.join(words)}")
    if dry_run:
        return
    for _, command in orders:  # of the script in the clone: the snapshot is not there yet
        _slurm(["sbatch", "--test-only", *command[1:-2], "slurm/job.sh"])
    new = not (grid.folder / "cells.json").exists()
    if new:
        grid.write()
    for number, (indices, command) in enumerate(orders):
        try:
            job = _slurm(command).strip().split(";")[0]
        except ConfigError:
            if new and number == 0:
                shutil.rmtree(grid.folder)  # nothing of it is queued
            raise
        for index in indices:
            grid.submitted(index, job)
        print(f"submitted as job {job}")
    print(f"watch: python tools/scaling_report.py {grid.folder} --watch")


def sbatch(grid: Grid, nodes: int, indices: Sequence[int]) -> list[str]:
    """The command that queues these cells."""
    folder, site = grid.folder.resolve(), grid.site
    at_once = f"%{site.cells_at_once}" if site.cells_at_once else ""
    return [
        "sbatch",
        "--parsable",
        f"--job-name={folder.name}",
        f"--array={','.join(map(str, indices))}{at_once}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={site.ranks_per_node}",
        f"--cpus-per-task={site.cpus_per_rank}",
        f"--output={folder}/cells/%a.out",
        "--open-mode=append",
        "--requeue",
        f"--chdir={CLONE}",
        *site.options,
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


def _words(name: str) -> tuple[str, ...]:
    return tuple(os.environ.get(name, "").split())


def _numbers(name: str) -> tuple[int, ...]:
    if not all(word.isdigit() for word in _words(name)):
        raise ConfigError(f"{name}={os.environ[name]} must be whole numbers")
    return tuple(int(word) for word in _words(name))


def _number(name: str) -> int | None:
    numbers = _numbers(name)
    if len(numbers) > 1:
        raise ConfigError(f"{name}={os.environ[name]} must be one number")
    return numbers[0] if numbers else None


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
