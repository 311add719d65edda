"""What is told of a grid's cells, on a machine with Slurm and on one without."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from adatad_ds.cluster.grid import Cell, Grid
from adatad_ds.cluster.report import read_rows, table
from adatad_ds.cluster.submission import cells_again, submit_new
from adatad_ds.errors import ConfigError
from adatad_ds.planning.memory import step_flop
from tests.support.site import SITE, executable

CELLS = ("finished", "failed", "stopped", "new", "busy", "old")
MEMORY = "memory/peak_gb"


def log(run: Path, *, steps: int = 4) -> None:
    """The first step takes long, as it compiles and allocates."""
    lines = [
        {"step": step, "train/epoch": (step + 1) / 2, "time/step_sec": [9.0, 1.0, 2.0, 6.0][step], MEMORY: 1.5 - step}
        for step in range(steps)
    ]
    lines.insert(1, {"step": 0, "time/checkpoint_sec": 99.0})
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "time/')


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """Cells in all states; those of "busy", and no others, have jobs that Slurm knows."""
    folder = tmp_path_factory.mktemp("grids") / "grid"
    cells = tuple(Cell(name=name, recipe="quickstart", assignments=("train.stop_epoch=5",), nodes=2) for name in CELLS)
    grid = Grid(folder, replace(SITE, ds_config=""), cells)
    grid.write()
    for name in CELLS:
        if name != "new":
            log(folder / name)
    for epoch, score in ((4, 0.5), (5, 0.25)):
        evaluated = folder / "finished" / "evaluations" / f"epoch_{epoch:04d}"
        evaluated.mkdir(parents=True)
        (evaluated / "metrics.json").write_text(json.dumps({"average_mAP": score}))
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_gb": 85.0}  # not what the site says
    (folder / "finished" / "versions.json").write_text(json.dumps({"gpu": gpu}))
    (folder / "failed" / "failed").touch()
    (folder / "stopped" / "interrupted").touch()
    os.utime(folder / "old" / "log.jsonl", (time.time() - 3600,) * 2)
    for index in range(len(CELLS)):
        (folder / f"cells/{index}.job").write_text(f"17_{index}\n")
    return Grid.read(folder)


def states(grid: Grid) -> dict[str, str]:
    return {row.cell: row.state for row in read_rows(grid.folder)}


def test_states_without_slurm(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert states(grid) == {
        "finished": "finished",
        "failed": "failed",
        "stopped": "interrupted",
        "new": "pending",
        "busy": "running",
        "old": "silent for 60 min",
    }


def test_states_that_slurm_tells(grid, tmp_path, monkeypatch):
    """And why a cell is pending: some can never start, such as those longer than the partition allows."""
    told = ("17_2 PENDING job requeued in held state", "17_3 PENDING PartitionTimeLimit", "17_4 RUNNING None")
    executable(tmp_path, "squeue", "\n".join((*told, "16_5 RUNNING None")))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert states(grid) == {
        "finished": "finished",
        "failed": "failed",
        "stopped": "interrupted, pending (job requeued in held state)",
        "new": "pending (PartitionTimeLimit)",
        "busy": "running",
        "old": "gone",  # the job of another grid
    }
    with pytest.raises(ConfigError, match=r"Slurm still has busy \(RUNNING\); scancel them first"):
        cells_again(grid, ["old", "busy"])
    assert cells_again(grid, []) == [1]
    assert cells_again(grid, ["old", "finished"]) == [5, 0]
    with pytest.raises(ConfigError, match="has no cell odd; it has finished, failed"):
        cells_again(grid, ["odd"])
    with pytest.raises(ConfigError, match=r"already exists; slurm/again\.sh resubmits its cells, GRID=NAME makes"):
        submit_new(grid, rename="GRID=", dry_run=True, report=print)


def test_numbers(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = {row.cell: row for row in read_rows(grid.folder)}
    config, row, new = grid.cells[0].config(), rows["finished"], rows["new"]
    assert (row.ranks, row.steps, row.memory_gb, row.score) == (16, "4, epoch 2.0 of 5", 1.5, 0.5)
    assert row.sec_per_step == 2.0
    assert row.frames_per_sec == config.train.global_batch * config.data.window_frames / 2
    flop = config.train.global_batch * step_flop(config)
    assert row.mfu == pytest.approx(flop / 2 / (16 * 989e12))
    assert rows["busy"].mfu == pytest.approx(flop / 2 / (16 * 312e12))
    assert (new.steps, new.memory_gb, new.sec_per_step, new.frames_per_sec, new.mfu, new.score) == ("", *(None,) * 5)
    assert row.tunable == new.tunable < row.parameters
    lines = table(list(rows.values())).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:4]] == ["finished", "finished", "4, epoch 2.0 of 5"]
    assert [cell.strip() for cell in lines[2].split("|")[-6:-1]][:2] == ["1.50", "2.00"]
