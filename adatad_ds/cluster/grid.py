"""Grids of runs on a Slurm cluster: their cells, and the folder in which one lies.

A grid's folder, runs/GRID, holds `cells.json`; of each cell `cells/INDEX.args` and `.run`, which slurm/job.sh reads,
`.job`, the array task that Slurm made of it, and `.out`, its output; `code/`, a snapshot, so that what is queued does
not change with the clone; and a run's folder for each cell.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from adatad_ds.cluster.site import Site
from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.planning.layouts import POLICIES
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.folder import REVISION_FILE, revision
from adatad_ds.system.clone import CLONE
from adatad_ds.system.json_text import write_json

SNAPSHOT = ("adatad_ds", "ds_configs", "slurm")
FAILED_FILE = "failed"  # in a run's folder, written by slurm/job.sh


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
        ds_config: path of the engine's policy; "": the site's.
    """

    name: str
    recipe: str
    assignments: tuple[str, ...]
    nodes: int
    on_host: bool = False
    extra: tuple[str, ...] = ()
    ds_config: str = ""

    def config(self) -> Config:
        """As train.py will see it.

        Raises:
            ConfigError: unknown recipe or key, impossible value.
        """
        return override(find_recipe(self.recipe).config, self.assignments)

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

    def ds_config_of(self, cell: Cell) -> str:
        """Path of the engine's policy for a cell."""
        return cell.ds_config or self.site.ds_config or POLICIES[0]

    def write(self) -> None:
        """Make its folder, with the snapshot."""
        folder = self.folder.resolve()
        (folder / "cells").mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for part in SNAPSHOT:
            shutil.copytree(CLONE / part, folder / "code" / part, ignore=ignored)
        for path, on_host in {(self.ds_config_of(cell), cell.on_host) for cell in self.cells}:
            ds_config = dict(read_ds_config(Path(path)))
            if on_host:
                section = ds_config.get("activation_checkpointing", {})
                ds_config["activation_checkpointing"] = section | {"cpu_checkpointing": True}
            copied = _snapshot_of(path, folder, on_host=on_host)
            copied.write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")
        write_json(folder / "code" / REVISION_FILE, revision())
        self.write_arguments(range(len(self.cells)))
        content = {"site": asdict(self.site), "cells": [asdict(cell) for cell in self.cells]}
        write_json(folder / "cells.json", content)

    def write_arguments(self, indices: Iterable[int]) -> None:
        """What slurm/job.sh reads of these cells, with paths of where the grid's folder is now."""
        folder = self.folder.resolve()
        for index in indices:
            cell = self.cells[index]
            words = cell.arguments(folder, self.ds_config_of(cell))
            (folder / f"cells/{index}.args").write_text("\n".join(words) + "\n", encoding="utf-8")
            (folder / f"cells/{index}.run").write_text(f"{folder / cell.name}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Grid:
        """One that was submitted.

        Raises:
            ConfigError: this is not a grid's folder.
        """
        try:
            content = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
            site = Site(**content["site"])
            tuples = ("assignments", "extra")
            cells = [Cell(**{**cell, **{name: tuple(cell[name]) for name in tuples}}) for cell in content["cells"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} is not a grid's folder: {error}") from error
        return cls(folder, site, tuple(cells))

    def submitted(self, index: int, job: str) -> None:
        """Note the array task that a cell became; it has not failed yet."""
        (self.folder / f"cells/{index}.job").write_text(f"{job}_{index}\n", encoding="utf-8")
        (self.folder / self.cells[index].name / FAILED_FILE).unlink(missing_ok=True)

    def slurm_states(self) -> dict[int, str] | None:
        """What Slurm says of each cell that it has, e.g. RUNNING, PENDING (Resources); None where there is no Slurm."""
        if shutil.which("squeue") is None:
            return None
        asked = ["squeue", "--noheader", "--array", "--format=%i %T %r"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        states = {job: state if reason == "None" else f"{state} ({reason})" for job, state, reason in lines}
        files = ((index, self.folder / f"cells/{index}.job") for index in range(len(self.cells)))
        jobs = {index: file.read_text(encoding="utf-8").strip() for index, file in files if file.exists()}
        return {index: states[job] for index, job in jobs.items() if job in states}

    def failed(self, index: int) -> bool:
        """Whether a cell's last job ended with an error."""
        return (self.folder / self.cells[index].name / FAILED_FILE).exists()


def _snapshot_of(ds_config: str, grid: Path, *, on_host: bool) -> Path:
    path = Path(ds_config)
    return grid.resolve() / "code/ds_configs" / f"{path.stem}{'_host' if on_host else ''}.json"
