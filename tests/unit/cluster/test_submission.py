"""Submission, with stand-ins of Slurm's commands: what is kept, and what is refused before anything is queued."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adatad_ds.cluster import submission
from adatad_ds.cluster.cells import Overrides, read_cells
from adatad_ds.cluster.grid import Cell, Grid
from adatad_ds.cluster.submission import one_run, submit, submit_new
from adatad_ds.errors import ConfigError
from tests.support.site import SITE, executable

ON_CPUS = replace(SITE, gpus_per_node=0)


@pytest.fixture
def grid(tmp_path, monkeypatch) -> Grid:
    """Of one cell, whose data are there; sbatch answers with a number."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin", "sbatch", "17")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(submission, "check", lambda grid, chosen: None)
    monkeypatch.setattr(submission, "make_quickstart_data", lambda configs, *, report: None)
    return Grid(tmp_path / "grid", ON_CPUS, (Cell(name="run", recipe="quickstart", assignments=(), nodes=1),))


def test_a_run_that_is_there_already_is_kept(grid, tmp_path):
    """Though Slurm refuses: what was made for the grid is removed then."""
    (tmp_path / "bin/sbatch").write_text('#!/bin/sh\n[ "$1" = --test-only ] || { echo "too many jobs" >&2; exit 1; }\n')
    checkpoint = tmp_path / "grid/checkpoints/step_00000010"
    checkpoint.mkdir(parents=True)
    with pytest.raises(ConfigError, match="exists and holds no submitted grid; --name NAME makes another"):
        submit_new(grid, rename="--name ", dry_run=False, report=print)
    assert checkpoint.exists()
    shutil.rmtree(checkpoint.parent)  # an empty folder may be taken
    with pytest.raises(ConfigError, match="Slurm refuses: too many jobs"):
        submit_new(grid, rename="--name ", dry_run=False, report=print)
    assert not grid.folder.exists()


def test_a_grid_that_was_moved_continues_where_it_is(grid, tmp_path):
    submit_new(grid, rename="GRID=", dry_run=False, report=print)
    grid.folder.rename(tmp_path / "moved")
    moved = Grid.read(tmp_path / "moved")
    submit(moved, chosen=[0], dry_run=False, report=print)
    assert (tmp_path / "moved/cells/0.run").read_text() == f"{tmp_path}/moved/run\n"
    words = (tmp_path / "moved/cells/0.args").read_text().splitlines()
    assert words[words.index("--run-dir") + 1] == f"{tmp_path}/moved/run"
    assert Path(words[words.index("--deepspeed_config") + 1]).exists()


@pytest.mark.parametrize("option", [["--run-dir", "/scratch/mine"], ["--run-dir=/scratch/mine"], ["--resume", "never"]])
def test_options_by_which_a_job_would_lose_its_run_are_refused(option):
    with pytest.raises(ConfigError, match=rf"^{option[0].split('=')[0]}.*: a job sets it itself.*runs/NAME/run"):
        one_run("quickstart", name="mine", assignments=(), ds_config=None, extra=("--profile", "1:2", *option))


def test_what_is_named_twice_is_one_cell():
    """Two would train in the same folder."""
    overrides = Overrides(recipes=("quickstart",) * 2, frames=(32, 64, 32), resolutions=(64, 64))
    cells = read_cells(Path("slurm/frames.json"), overrides, ON_CPUS)
    assert [cell.name for cell in cells] == ["quickstart_32f_64px", "quickstart_64f_64px"]
