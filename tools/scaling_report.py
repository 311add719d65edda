"""Gather the cells of a grid, finished, running and failed, into a table, plots and TensorBoard's hparams.

    python tools/scaling_report.py runs/GRID [--watch]

Writes report.md, report.csv, report.png and hparams/ into the grid's folder, and prints the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

import torch
from torch.utils.tensorboard import SummaryWriter

from adatad_ds.config import Config, ConfigError
from adatad_ds.models.detector import build_detector
from adatad_ds.monitor import LOG_FILE
from adatad_ds.plan import step_flop
from adatad_ds.runs import INTERRUPTED_FILE, RunFolder
from tools.plan_memory import GPUS
from tools.submit import Cell, read_grid_folder

WATCH_SEC = 30
SILENT_SEC = 900  # a log older than this belongs to no running job
FAILED_FILE = "failed"  # written by slurm/job.sh


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell in the report; what is not known yet is None."""

    cell: str
    state: str
    model: str
    tuning: str
    frames: int
    resolution: int
    ranks: int
    parameters: int | None = None
    tunable: int | None = None
    steps: str = ""
    memory_gb: float | None = None
    sec_per_step: float | None = None
    frames_per_sec: float | None = None
    mfu: float | None = None
    map: float | None = None


def main() -> int:
    """Report once, or until all cells have ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_SEC} s until all cells have ended")
    arguments = parser.parse_args()
    try:
        while True:
            rows = read_rows(arguments.grid)
            print(table(rows), flush=True)
            if not arguments.watch or all(row.state in ("finished", "failed") for row in rows):
                break
            time.sleep(WATCH_SEC)
            print()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(arguments.grid, rows)
    return 0


def read_rows(grid: Path) -> list[Row]:
    """One row a cell.

    Raises:
        ConfigError: this is no grid's folder.
    """
    site, cells = read_grid_folder(grid)
    return [_row(cell, grid / cell.name, site) for cell in cells]


def _row(cell: Cell, run: Path, site: dict[str, Any]) -> Row:
    config, ranks = cell.config(), cell.nodes * int(site["ranks_per_node"])
    log = _log(run)
    steps = [line for line in log if "time/step_sec" in line]
    seconds = median([line["time/step_sec"] for line in steps[1:] or steps]) if steps else None
    evaluations = RunFolder(run).evaluations()
    total, tunable = _parameters(config)
    mfu = None
    if seconds and site["gpus_per_node"]:
        peak = ranks * GPUS[site["gpu"]].tflop_per_sec * 1e12
        mfu = config.train.global_batch * step_flop(config) / seconds / peak
    last = max((line["train/epoch"] for line in steps), default=0.0)
    return Row(
        cell=cell.name,
        state=_state(run, config, evaluations, bool(log)),
        model=config.backbone.name,
        tuning=config.backbone.tuning,
        frames=config.data.window_frames,
        resolution=config.data.resolution,
        ranks=ranks,
        parameters=total,
        tunable=tunable,
        steps=f"{steps[-1]['step'] + 1}, epoch {last:.1f} of {config.train.stop_epoch}" if steps else "",
        memory_gb=max((line["memory/peak_gb"] for line in steps), default=None),
        sec_per_step=seconds,
        frames_per_sec=config.train.global_batch * config.data.window_frames / seconds if seconds else None,
        mfu=mfu,
        map=max((metrics["average_mAP"] for metrics in evaluations.values()), default=None),
    )


def _state(run: Path, config: Config, evaluations: dict[int, dict[str, float]], started: bool) -> str:
    if (run / FAILED_FILE).exists():
        return "failed"
    if config.train.stop_epoch in evaluations:
        return "finished"
    if (run / INTERRUPTED_FILE).exists():
        return "interrupted"
    if not started:
        return "queued"
    silent = time.time() - (run / LOG_FILE).stat().st_mtime
    return "running" if silent < SILENT_SEC else f"silent for {silent / 60:.0f} min"


def _log(run: Path) -> list[dict[str, Any]]:
    lines = []
    if (run / LOG_FILE).exists():
        for text in (run / LOG_FILE).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue  # being written
    return lines


def _parameters(config: Config) -> tuple[int, int]:
    with torch.device("meta"):
        model = build_detector(config, num_classes=max(1, len(config.data.classes)))
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    head = ("cell", "state", "steps", "params M", "tunable M", "GB a rank", "s/step", "frames/s", "MFU %", "mAP %")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        numbers = (
            _show(row.parameters, 1e-6, 1),
            _show(row.tunable, 1e-6, 2),
            _show(row.memory_gb, 1, 2),
            _show(row.sec_per_step, 1, 2),
            _show(row.frames_per_sec, 1, 0),
            _show(row.mfu, 100, 1),
            _show(row.map, 100, 2),
        )
        lines.append((row.cell, row.state, row.steps, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _show(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def write(grid: Path, rows: Sequence[Row]) -> None:
    """report.md, report.csv, report.png, hparams/."""
    (grid / "report.md").write_text(table(rows) + "\n")
    with (grid / "report.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    plot(grid / "report.png", rows)
    for row in rows:
        settings = {
            name: getattr(row, name) for name in ("model", "tuning", "frames", "resolution", "ranks", "parameters")
        }
        measured = {
            f"hparam/{name}": float(value)
            for name in ("map", "memory_gb", "sec_per_step", "frames_per_sec")
            if (value := getattr(row, name)) is not None
        }
        with SummaryWriter(log_dir=str(grid / "hparams" / row.cell)) as board:
            board.add_hparams(settings, measured, run_name=".")


def plot(path: Path, rows: Sequence[Row]) -> None:
    """mAP and memory against what the grid varies: frames, or parameters."""
    from matplotlib.figure import Figure

    by_size = len({row.model for row in rows}) > 1
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("map", "memory_gb"), ("average mAP", "GB a rank"), strict=True
    ):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if (value := getattr(row, name)) is not None:
                along = (row.parameters or 0) / 1e6 if by_size else row.frames
                key = f"{row.resolution} px" if by_size else f"{row.model}, {row.resolution} px"
                curves.setdefault(key, []).append((along, value))
        for key, points in sorted(curves.items()):
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=key)
        axes.set_xlabel("parameters (M)" if by_size else "frames")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        if curves:
            axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
