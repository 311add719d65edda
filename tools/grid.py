"""Grids of runs on a Slurm cluster: their cells, and the folder in which one lies.

A grid's folder, runs/GRID, holds `cells.json`; of each cell `cells/INDEX.args` and `.run`, which slurm/job.sh reads,
`.job`, the array task that Slurm made of it, and `.out`, its output; `code/`, a snapshot, so that what is queued does
not change with the clone; and a run's folder for each cell.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from adatad_ds.config import loading
from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.errors import ConfigError, UserError
from adatad_ds.planning.gpus import GPUS, gpu_named
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.folder import REVISION_FILE, revision
from tools.plan_memory import Planner

CLONE = Path(__file__).resolve().parents[1]
SNAPSHOT = ("adatad_ds", "ds_configs", "slurm", "tools")
FAILED_FILE = "failed"  # in a run's folder, written by slurm/job.sh
NODES = (1, 2, 4, 8, 16, 32, 64, 128)  # that the planner may choose


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster, as slurm/site.env and sinfo tell.

    Attributes:
        gpus_per_node: 0: CPUs.
        ranks_per_node: tasks of a node.
        cpus_per_rank: of each.
        gpu: what GPU of slurm/site.env says, else the type in the nodes' GRES; "": nothing does.
        ds_config: path of the engine's policy.
        options: more options of sbatch.
        cells_at_once: of a grid; None: no limit.
    """

    gpus_per_node: int
    ranks_per_node: int
    cpus_per_rank: int
    gpu: str
    ds_config: str
    options: tuple[str, ...]
    cells_at_once: int | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: of its folder.
        recipe: what it trains.
        assignments: changes of the recipe, as for `--set`.
        nodes: how many.
        on_host: stored activations wait in host memory, whatever the ds_config says.
        extra: further options of train.py.
    """

    name: str
    recipe: str
    assignments: tuple[str, ...]
    nodes: int
    on_host: bool = False
    extra: tuple[str, ...] = ()

    def config(self) -> Config:
        """As train.py will see it.

        Raises:
            ConfigError: unknown recipe or key, impossible value.
        """
        return loading.override(find_recipe(self.recipe).config, self.assignments)

    def arguments(self, grid: Path, ds_config: str) -> list[str]:
        """Of train.py, with the grid's own copy of the ds_config."""
        copied = _snapshot_of(ds_config, grid, on_host=self.on_host)
        sets = [word for assignment in self.assignments for word in ("--set", assignment)]
        folder = ["--run-dir", str(grid.resolve() / self.name), "--resume", "auto"]
        return ["--recipe", self.recipe, "--deepspeed_config", str(copied), *sets, *folder, *self.extra]


@dataclass(frozen=True)
class Grid:
    """A submitted grid, or one to be."""

    folder: Path
    site: Site
    cells: tuple[Cell, ...]

    def write(self) -> None:
        """Make its folder, with the snapshot."""
        folder = self.folder.resolve()
        (folder / "cells").mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for part in SNAPSHOT:
            shutil.copytree(CLONE / part, folder / "code" / part, ignore=ignored)
        for on_host in {cell.on_host for cell in self.cells}:
            ds_config = dict(read_ds_config(Path(self.site.ds_config)))
            if on_host:
                section = ds_config.get("activation_checkpointing", {})
                ds_config["activation_checkpointing"] = section | {"cpu_checkpointing": True}
            copied = _snapshot_of(self.site.ds_config, folder, on_host=on_host)
            copied.write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")
        (folder / "code" / REVISION_FILE).write_text(json.dumps(revision(), indent=1) + "\n", encoding="utf-8")
        for index, cell in enumerate(self.cells):
            words = cell.arguments(folder, self.site.ds_config)
            (folder / f"cells/{index}.args").write_text("\n".join(words) + "\n", encoding="utf-8")
            (folder / f"cells/{index}.run").write_text(f"{folder / cell.name}\n", encoding="utf-8")
        content = {"site": asdict(self.site), "cells": [asdict(cell) for cell in self.cells]}
        (folder / "cells.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Grid:
        """One that was submitted.

        Raises:
            ConfigError: this is no grid's folder.
        """
        try:
            content = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
            site = Site(**{**content["site"], "options": tuple(content["site"]["options"])})
            tuples = ("assignments", "extra")
            cells = [Cell(**{**cell, **{name: tuple(cell[name]) for name in tuples}}) for cell in content["cells"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} is no grid's folder: {error}") from error
        return cls(folder, site, tuple(cells))

    def submitted(self, index: int, job: str) -> None:
        """Note the array task that a cell became; it has not failed yet."""
        (self.folder / f"cells/{index}.job").write_text(f"{job}_{index}\n", encoding="utf-8")
        (self.folder / self.cells[index].name / FAILED_FILE).unlink(missing_ok=True)

    def slurm_states(self) -> dict[int, str] | None:
        """What Slurm says of each cell that it still has, e.g. PENDING or RUNNING; None where there is no Slurm."""
        if shutil.which("squeue") is None:
            return None
        asked = ["squeue", "--noheader", "--array", "--format=%i %T"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        states = dict(line.split() for line in done.stdout.splitlines())
        files = ((index, self.folder / f"cells/{index}.job") for index in range(len(self.cells)))
        jobs = {index: file.read_text(encoding="utf-8").strip() for index, file in files if file.exists()}
        return {index: states[job] for index, job in jobs.items() if job in states}

    def failed(self, index: int) -> bool:
        """Whether a cell's last job ended with an error."""
        return (self.folder / self.cells[index].name / FAILED_FILE).exists()


def _snapshot_of(ds_config: str, grid: Path, *, on_host: bool) -> Path:
    path = Path(ds_config)
    return grid.resolve() / "code/ds_configs" / f"{path.stem}{'_host' if on_host else ''}.json"


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the environment changes in a grid's file; empty: nothing."""

    recipes: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    resolutions: tuple[int, ...] = ()
    assignments: tuple[str, ...] = ()
    nodes: int | None = None
    temporal: int | None = None


def read_cells(file: Path, overrides: Overrides, site: Site) -> list[Cell]:
    """A grid file's cells: recipes x frames x resolutions, with nodes chosen where none are given.

    Raises:
        ConfigError: a cell cannot be, or fits nowhere.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    recipes = overrides.recipes or tuple(content["recipes"])
    cells = []
    for recipe in recipes:
        base = find_recipe(recipe).config
        data = base.data
        of_recipe = content | content.get(recipe.split("_")[0], {}) | content.get(recipe, {})
        frames = overrides.frames or of_recipe["frames"]
        resolutions = overrides.resolutions or of_recipe["resolutions"]
        for count, side in product(frames, resolutions):
            cell = Cell(
                name=f"{recipe}_{count}f_{side}px",
                recipe=recipe,
                assignments=(*frame_settings(base, count), *resolution_settings(data, side), *overrides.assignments),
                nodes=overrides.nodes or 1,
            )
            if overrides.temporal:
                cell = replace(cell, assignments=(*cell.assignments, f"parallel.temporal={overrides.temporal}"))
            elif site.gpus_per_node:
                cell = choose_layout(cell, site, nodes=(overrides.nodes,) if overrides.nodes else NODES)
            cells.append(cell)
    return cells


def frame_settings(config: Config, frames: int) -> tuple[str, ...]:
    """Settings for samples of so many frames that see the same stretch of video as the recipe's.

    Raises:
        ConfigError: there are none.
    """
    clip = config.recognition
    if clip is None:
        return window_settings(config.data, frames)
    if clip.sampling == "dense" and clip.frames * clip.stride % frames:
        raise ConfigError(
            f"FRAMES: {frames} does not divide {clip.frames * clip.stride}, the frames of the file that a clip covers"
        )
    stride = clip.frames * clip.stride // frames
    dense = (f"recognition.stride={stride}",) if clip.sampling == "dense" else ()
    return (f"recognition.frames={frames}", *dense)


def window_settings(data: DataConfig, frames: int) -> tuple[str, ...]:
    """Settings for windows of so many frames that see the same stretch of video as the recipe's.

    More frames lie denser in time, at the same feature length, until every frame of the file is used; then the window
    grows. Fewer than one a feature: features become fewer and lie farther apart.

    Raises:
        ConfigError: no whole number of frames a feature, or of features, gives that.
    """
    features, stride = data.window_size, data.feature_stride_frames
    if frames < features:
        apart = features // frames
        whole = features % frames == 0
        features, per_feature, stride = frames, 1, None if stride is None else stride * apart
    elif stride is not None and frames > features * stride:
        whole = frames % stride == 0
        features, per_feature = frames // stride, stride
    else:
        per_feature = frames // features
        whole = frames % features == 0 and (stride is None or stride % per_feature == 0)
    if not whole:
        raise ConfigError(
            f"FRAMES: the recipe's window of {data.window_size} features, {data.feature_stride_frames} frames of the "
            f"file apart, cannot be seen in {frames} frames; take its own count times or by a power of two"
        )
    return (
        f"data.window_size={features}",
        f"data.frames_per_feature={per_feature}",
        f"data.feature_stride_frames={'null' if stride is None else stride}",
    )


def resolution_settings(data: DataConfig, side: int) -> tuple[str, ...]:
    """Settings for frames of that side in pixels, cropped as the recipe does, of an even short side."""
    short = 2 * math.ceil(side * data.short_side_before_crop / data.resolution / 2)
    return f"data.resolution={side}", f"data.short_side_before_crop={short}"


def choose_layout(cell: Cell, site: Site, *, nodes: Sequence[int]) -> Cell:
    """The first of these numbers of nodes that a cell fits, with temporal ranks and chunks, by the memory planner.

    Raises:
        ConfigError: none.
    """
    config, kind = cell.config(), _planned_gpu(cell, site)
    if config.recognition is None:  # windows are long: one at a time, and more by accumulation
        config = replace(config, train=replace(config.train, micro_batch=config.train.micro_batch or 1))
    planner = Planner(config, read_ds_config(site.ds_config), num_classes=max(1, len(config.data.classes)))
    for count in nodes:
        found = planner.first_fit(count * site.ranks_per_node, GPUS[kind].memory_gb)
        if found is None:
            continue
        layout = found[0]
        chosen = (
            f"parallel.temporal={layout.temporal}",
            f"backbone.clips_per_chunk={layout.chunk}",
            f"train.micro_batch={config.train.micro_batch or 'null'}",
        )
        return replace(cell, nodes=count, assignments=(*cell.assignments, *chosen), on_host=layout.host)
    tried = " or ".join(map(str, nodes))
    raise ConfigError(
        f"{cell.name} fits on no {tried} nodes of {site.ranks_per_node} x {kind}, by tools/plan_memory.py; "
        "set NODES, GPU, or SET='train.global_batch=...'"
    )


def _planned_gpu(cell: Cell, site: Site) -> str:
    try:
        if not site.gpu:
            raise ConfigError("sinfo names no type of the nodes' GPUs")
        return gpu_named(site.gpu)
    except UserError as error:
        raise ConfigError(
            f"{cell.name}: how many nodes it takes depends on the GPU, and {error}. Set GPU in slurm/site.env to one "
            f"of {', '.join(GPUS)}; or NODES and TEMPORAL, which leave nothing to plan"
        ) from error


def gpu_types_in(gres: str) -> set[str]:
    """Types of a node's GPUs, by its `Gres` in sinfo: a100 of gpu:a100:4(S:0-1), none of gpu:4."""
    return set(re.findall(r"gpu:([^:,(]*[^:,(\d][^:,(]*):\d+", gres))


def gpus_in(gres: str) -> int:
    """GPUs of a node, by its `Gres` in sinfo, e.g. gpu:a100:4(S:0-1)."""
    return sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
