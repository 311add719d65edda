"""Submit training to Slurm: one run, or a grid of them as job arrays, all checked before it is queued.

Site settings come from the environment (slurm/site.env), and so do overrides of a grid: RECIPE or RECIPES, FRAMES,
RESOLUTIONS, SET (assignments for every cell), NODES, TEMPORAL, GRID (its name). What NODES and TEMPORAL leave open, the
memory planner chooses for GPUs. Paths are those of the clone's folder, which is the working directory.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from adatad_ds.cluster.cells import Overrides, read_cells
from adatad_ds.cluster.grid import Cell, Grid
from adatad_ds.cluster.site import Site, call_slurm, file_settings, number_of, numbers_of, read_site, words_of
from adatad_ds.config.schema import Config
from adatad_ds.data.generated.folders import generate_clips, generate_videos
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.clone import CLONE
from adatad_ds.tasks.factory import open_train_data

PLANNED = ("GPUS_PER_NODE", "RANKS_PER_NODE", "DS_CONFIG")  # settings that cells keep
JOB_SETS = ("--run-dir", "--resume")  # options of train.py
RUN_CELL = "run"  # the only cell of what slurm/train.sh submits


def one_run(
    recipe: str, *, name: str | None, assignments: Sequence[str], ds_config: str | None, extra: Sequence[str]
) -> Grid:
    """What slurm/train.sh submits: a grid of one cell.

    Args:
        recipe: what it trains.
        name: of its folder in runs/; None: the recipe's.
        assignments: changes of the recipe, after those of SET.
        ds_config: path of the engine's policy; None: the site's.
        extra: further options of train.py.

    Raises:
        ConfigError: the site's settings cannot be, or an option would take the run out of the job's hands.
    """
    if taken := [word for word in extra if word.split("=")[0] in JOB_SETS]:
        raise ConfigError(
            f"{taken[0]}: a job sets it itself, to find what its ranks saved and to continue from there: its run is in "
            "runs/NAME/run (--name NAME)"
        )
    site = read_site([recipe])
    if ds_config:
        site = replace(site, ds_config=ds_config)
    cell = Cell(
        name=RUN_CELL,
        recipe=recipe,
        assignments=(*words_of("SET"), *assignments),
        nodes=number_of("NODES") or 1,
        extra=tuple(extra),
    )
    return Grid(Path("runs") / (name or recipe), site, (cell,))


def many_runs(file: Path) -> Grid:
    """A grid file's cells, with what the environment changes.

    Raises:
        ConfigError: the site's settings cannot be, or a cell cannot.
    """
    overrides = Overrides(
        recipes=words_of("RECIPES") or words_of("RECIPE"),
        frames=numbers_of("FRAMES"),
        resolutions=numbers_of("RESOLUTIONS"),
        assignments=words_of("SET"),
        nodes=number_of("NODES"),
        temporal=number_of("TEMPORAL"),
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


def site_again(grid: Grid, *, report: Callable[[str], None]) -> Site:
    """That of a submitted grid, with what is set anew: in the environment, or in slurm/site.env since.

    Args:
        grid: of which cells are submitted again.
        report: is given a line for each setting that differs.

    Raises:
        ConfigError: the site's settings cannot be, or the cells were planned for other ones.
    """
    before, now = (file_settings(folder / "slurm/site.env") for folder in (grid.folder / "code", CLONE))
    given = words_of("SETTINGS_GIVEN") or tuple(os.environ)  # slurm/launch.sh adds those of the file to the environment
    old = grid.site.settings
    new = {name: os.environ[name] for name in old if name in given and name in os.environ}
    edited = {name: now[name] for name in old if name in now and now[name] != before.get(name)}
    site = replace(read_site([], old | edited | new), gpu=grid.site.gpu)
    changed = [name for name, value in site.settings.items() if value != old[name]]
    if planned := [name for name in changed if name in PLANNED]:
        was, is_ = (" ".join(f"{name}={values[name]}" for name in planned) for values in (old, site.settings))
        raise ConfigError(
            f"the cells of {grid.folder} were planned for {was}, now it is {is_}; unset that, or make another grid"
        )
    for name in changed:
        report(f"changed: {name}={shlex.quote(site.settings[name])}, before {shlex.quote(old[name])}")
    return site


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
            words = cell.arguments(grid.folder, grid.ds_config_of(cell))
            asked = [sys.executable, "adatad_ds/train.py", *words, "--print-config"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigError(f"train.py rejects these options: {done.stderr.strip().splitlines()[-1]}")
        if ranks % config.parallel.temporal:
            raise ConfigError(
                f"{cell.name}: parallel.temporal={config.parallel.temporal} does not divide {ranks} ranks"
            )
        ds_config = read_ds_config(grid.ds_config_of(cell))
        resolve_ds_config(ds_config, config=config, ranks=ranks, cuda=site.gpus_per_node > 0)
        where = (*config.annotation_files.values(), config.data.videos, config.data.features)
        if where not in seen:
            try:
                open_train_data(config)
            except DataError as error:
                keys = " ".join(f"{key}=FILE" for key in config.annotation_files)
                hint = f'SET="{keys} data.videos=FOLDER" says where yours are; RECIPE=quickstart needs none'
                raise DataError(f"{cell.name}: {error}\n{hint}") from error
            seen.add(where)
        weights = config.backbone.weights
        if weights is not None and re.search(r"^[./]|\.(pth|pt|safetensors)$", weights) and not Path(weights).exists():
            raise ConfigError(
                f"{cell.name}: backbone.weights={weights} does not exist (docs/guides/weights.md); set it in SET"
            )


def make_quickstart_data(configs: Iterable[Config], *, report: Callable[[str], None]) -> None:
    """The quickstarts' generated videos and clips, where a cell wants them and they are not there."""
    wanted = {file for config in configs for file in config.annotation_files.values()}
    videos = find_recipe("quickstart").config.annotation_files["data.annotations"]
    clips = find_recipe("quickstart_aim").config.annotation_files["recognition.train_list"]
    for file, generate in ((Path(videos), generate_videos), (Path(clips), generate_clips)):
        if str(file) in wanted and not file.exists():
            report(generate(file.parent))


def submit_new(grid: Grid, *, rename: str, dry_run: bool, report: Callable[[str], None]) -> None:
    """Queue all cells of a grid whose folder is not there yet, or empty; see `submit`.

    Args:
        grid: to be made.
        rename: how the user gives it another name, for the message.
        dry_run: only say what would be queued.
        report: is given each line for the user.

    Raises:
        ConfigError: its folder is there, something cannot run, or Slurm refuses.
        DataError: data that are not there.
    """
    if (grid.folder / "cells.json").exists():
        raise ConfigError(
            f"{grid.folder} already exists; slurm/again.sh resubmits its cells, {rename}NAME makes another grid"
        )
    if grid.folder.is_dir() and any(grid.folder.iterdir()):
        raise ConfigError(f"{grid.folder} already exists and holds no submitted grid; {rename}NAME makes another")
    submit(grid, chosen=range(len(grid.cells)), dry_run=dry_run, report=report)


def submit(grid: Grid, *, chosen: Sequence[int], dry_run: bool, report: Callable[[str], None]) -> None:
    """Queue cells, one array for each number of nodes; a new grid's folder is made first.

    Args:
        grid: new, or one that was submitted.
        chosen: indices of its cells.
        dry_run: only say what would be queued.
        report: is given each line for the user.

    Raises:
        ConfigError: something cannot run, or Slurm refuses.
        DataError: data that are not there.
    """
    make_quickstart_data((grid.cells[index].config() for index in chosen), report=report)
    check(grid, chosen)
    by_nodes: dict[int, list[int]] = {}
    for index in chosen:
        by_nodes.setdefault(grid.cells[index].nodes, []).append(index)
    orders = [(indices, sbatch(grid, nodes, indices)) for nodes, indices in by_nodes.items()]
    for indices, command in orders:
        report(shlex.join(command))
        for index in indices:
            cell = grid.cells[index]
            words = cell.arguments(grid.folder, grid.ds_config_of(cell))
            report(f"    {index}: {cell.name}: train.py {' '.join(words)}")
    if dry_run:
        return
    for _, command in orders:  # of the script in the clone: the snapshot is not there yet
        call_slurm(["sbatch", "--test-only", *command[1:-4], "slurm/job.sh"])
    new = not (grid.folder / "cells.json").exists()
    if new:
        grid.write()
    else:  # it may have been moved
        grid.write_arguments(chosen)
    for number, (indices, command) in enumerate(orders):
        try:
            job = call_slurm(command).strip().split(";")[0]
        except ConfigError:
            if new and number == 0:
                shutil.rmtree(grid.folder)  # nothing of it is queued
            raise
        for index in indices:
            grid.submitted(index, job)
        report(f"submitted as job {job}")
    report(f"watch: adatad-ds slurm report {grid.folder} --watch")


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
        site.container,
        site.srun_options,
    ]
