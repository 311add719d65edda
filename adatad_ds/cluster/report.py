"""A grid's cells, finished, running and failed, gathered into a table, plots and TensorBoard's hparams."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from adatad_ds.cluster.grid import Grid
from adatad_ds.cluster.site import Site
from adatad_ds.config.schema import Config
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.run_report.facts import LOG_FILE, MEMORY, read_log
from adatad_ds.evaluation.tables import write_table
from adatad_ds.models.factory import build_model
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.gpus import GPUS, gpu_named
from adatad_ds.planning.memory import step_flop
from adatad_ds.runs.folder import INTERRUPTED_FILE, RunFolder

WATCH_SEC = 30
SILENT_SEC = 900  # where Slurm cannot be asked: a log older than this belongs to no running job
WORDS = ("cell", "state", "steps", "frames", "px", "ranks")
NUMBERS = {  # column: of a row, in what units, digits
    "params M": ("parameters", 1e-6, 1),
    "tunable M": ("tunable", 1e-6, 2),
    "GB a rank": ("memory_gb", 1, 2),
    "s/step": ("sec_per_step", 1, 2),
    "frames/s": ("frames_per_sec", 1, 0),
    "MFU %": ("mfu", 100, 1),
    "mAP or top-1 %": ("score", 100, 2),
}
ENDED = ("finished", "failed", "gone")


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
    score: float | None = None


def watch(grid: Path, *, again: bool, report: Callable[[str], None]) -> None:
    """Report once, or every half a minute until all cells have ended; then write what is in the grid's folder.

    Args:
        grid: the folder.
        again: until all cells have ended.
        report: is given each table.

    Raises:
        ConfigError: this is not a grid's folder.
    """
    while True:
        rows = read_rows(grid)
        report(table(rows))
        if not again or all(row.state in ENDED for row in rows):
            break
        time.sleep(WATCH_SEC)
        report("")
    write(grid, rows)


def read_rows(grid: Path) -> list[Row]:
    """One row a cell.

    Raises:
        ConfigError: this is not a grid's folder.
    """
    found = Grid.read(grid)
    states = found.slurm_states()
    return [_row(found, index, states) for index in range(len(found.cells))]


def _row(grid: Grid, index: int, states: dict[int, str] | None) -> Row:
    cell, site = grid.cells[index], grid.site
    run = grid.folder / cell.name
    config, ranks = cell.config(), cell.nodes * site.ranks_per_node
    steps = [line for line in read_log(run / LOG_FILE) if "time/step_sec" in line]
    seconds = median([line["time/step_sec"] for line in steps[1:] or steps]) if steps else None
    evaluations = RunFolder(run).evaluations()
    total, tunable = _parameters(run, config)
    mfu = None
    kind = _gpu(run, site) if site.gpus_per_node else None
    if seconds and kind:
        peak = ranks * GPUS[kind].tflop_per_sec * 1e12
        mfu = config.train.global_batch * step_flop(config) / seconds / peak
    return Row(
        cell=cell.name,
        state=_state(grid, index, config.train.stop_epoch in evaluations, states),
        model=config.backbone.name,
        tuning=config.backbone.tuning,
        frames=config.sample_frames,
        resolution=config.data.resolution,
        ranks=ranks,
        parameters=total,
        tunable=tunable,
        steps=f"{steps[-1]['step'] + 1}, epoch {steps[-1]['train/epoch']:.1f} of {config.train.stop_epoch}"
        if steps
        else "",
        memory_gb=max((line[name] for line in steps for name in MEMORY if name in line), default=None),
        sec_per_step=seconds,
        frames_per_sec=config.train.global_batch * config.sample_frames / seconds if seconds else None,
        mfu=mfu,
        score=max(RunFolder(run).scores()[1].values(), default=None),
    )


def _gpu(run: Path, site: Site) -> str | None:
    """The kind that the run found itself on; before it has begun, and of older runs, what the site says."""
    found = RunFolder(run).gpu()
    try:
        return gpu_named(found["name"], memory_gb=found["memory_gb"]) if found else gpu_named(site.gpu)
    except ConfigError:
        return None


def _state(grid: Grid, index: int, finished: bool, states: dict[int, str] | None) -> str:
    """By what lies in the run's folder, then by what Slurm says ("gone": nothing), else by the log's age."""
    run = grid.folder / grid.cells[index].name
    if grid.failed(index):
        return "failed"
    if finished:
        return "finished"
    interrupted = (run / INTERRUPTED_FILE).exists()
    if states is not None:
        state, *reason = states.get(index, "gone").split(" ", 1)
        told = " ".join((state.lower(), *reason))
        return f"interrupted, {told}" if interrupted and state == "PENDING" else told
    if interrupted:
        return "interrupted"
    if not (run / LOG_FILE).exists():
        return "pending"
    silent = time.time() - (run / LOG_FILE).stat().st_mtime
    return "running" if silent < SILENT_SEC else f"silent for {silent / 60:.0f} min"


def _parameters(run: Path, config: Config) -> tuple[int, int]:
    """All, and those that learn; of the run's classes where it has begun, else of the recipe's."""
    try:
        classes = RunFolder(run).read()[1]
    except (CheckpointError, ConfigError):  # it has not begun
        classes = config.data.classes
    with shapes_only():
        model = build_model(config, num_classes=max(1, len(classes)))
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [(*WORDS, *NUMBERS), ("---",) * (len(WORDS) + len(NUMBERS))]
    for row in rows:
        numbers = [_show(getattr(row, name), scale, digits) for name, scale, digits in NUMBERS.values()]
        lines.append((row.cell, row.state, row.steps, str(row.frames), str(row.resolution), str(row.ranks), *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _show(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def write(grid: Path, rows: Sequence[Row]) -> None:
    """report.md, report.csv, report.png, hparams/ in the grid's folder."""
    from torch.utils.tensorboard import SummaryWriter

    (grid / "report.md").write_text(table(rows) + "\n", encoding="utf-8")
    write_table(grid / "report.csv", map(asdict, rows), columns=[field.name for field in fields(Row)])
    for row in rows:
        settings = {
            name: getattr(row, name) for name in ("model", "tuning", "frames", "resolution", "ranks", "parameters")
        }
        measured = {
            f"hparam/{name}": float(value)
            for name in ("score", "memory_gb", "sec_per_step", "frames_per_sec")
            if (value := getattr(row, name)) is not None
        }
        with SummaryWriter(log_dir=str(grid / "hparams" / row.cell)) as board:
            board.add_hparams(settings, measured, run_name=".")
    path = grid / "report.png"
    try_to_draw(str(path), lambda: plot(path, rows), report=print)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """mAP (or top-1) and memory against what the grid varies: frames, or parameters."""
    from adatad_ds.evaluation.plots.figures import PlainFigure, save_figure

    by_size = len({row.model for row in rows}) > 1
    figure = PlainFigure(10, 4)
    for axes, name, label in zip(
        figure.subplots(1, 2), ("score", "memory_gb"), ("average mAP, or top-1 (%)", "peak GB a rank"), strict=True
    ):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if (value := getattr(row, name)) is not None:
                along = (row.parameters or 0) / 1e6 if by_size else row.frames
                key = f"{row.resolution} px" if by_size else f"{row.model}, {row.resolution} px"
                curves.setdefault(key, []).append((along, 100 * value if name == "score" else value))
        for key, points in sorted(curves.items()):
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=key)
        axes.set_xlabel("parameters (M)" if by_size else "frames")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        along_all = sorted({along for points in curves.values() for along, _ in points})
        axes.set_xticks(along_all, [f"{along:.0f}" for along in along_all])
        axes.minorticks_off()
        if name == "memory_gb":
            axes.set_ylim(bottom=0)
        if curves:
            axes.legend()
    save_figure(figure, path)
