"""Every way to adapt, on equal terms: train each on generated videos for the same steps, print the table, draw it.

    python tools/ablate_tuning.py

The quickstart's tiny transformer and head, one rank, two epochs of 80 steps of 2 windows; a row that has finished is
not trained again. About 30 CPU minutes.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.evaluation.plots.figures import PALETTE, PlainFigure, plain_axis
from adatad_ds.evaluation.run_report.facts import LOG_FILE
from adatad_ds.planning.memory import make_plan
from adatad_ds.runs.folder import RunFolder
from adatad_ds.system.utf8 import use_utf8
from tools.ablation import Took, generate, make_parser, markdown, train, trainable_parameters

VIDEOS = "data/quickstart"
RECIPE = "quickstart"
EPOCHS = 2
BUDGET = (
    f"train.schedule_epochs={EPOCHS}",
    f"train.stop_epoch={EPOCHS}",
    f"train.eval_from_epoch={EPOCHS}",
    "train.global_batch=2",
    "train.warmup_epochs=0.25",
)
ROWS: dict[str, tuple[str, ...]] = {
    "frozen": (),
    "bitfit": (),
    "norm": (),
    "lora": (),
    "lora_dora": ("backbone.tuning=lora", "backbone.lora_dora=true"),
    "side": (),
    "ladder": (),
    "plain": (),
    "tia": (),
    "tia+lora": (),
    "full": ("train.lr_backbone=1e-4",),
}
COLUMNS = (
    "`tuning`",
    "trainable, k",
    "average mAP, %",
    "activations, MB",
    "peak, GB",
    "s a step",
    "CPU s in all",
    "checkpoint, MB",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a way to adapt reached, and what it took.

    Attributes:
        name: a key of `ROWS`.
        trainable: parameters, the detector's own included.
        score: average mAP, a share of 1.
        activations: planned peak bytes of the backbone's.
        peak_gb: of a rank, in GB: allocated on a GPU; of the whole process on a CPU.
        step_sec: median of the logged steps.
        checkpoint: bytes of the last one.
        took: the whole training.
    """

    name: str
    trainable: int
    score: float
    activations: int
    peak_gb: float
    step_sec: float
    checkpoint: int
    took: Took


def main() -> int:
    """Make videos, train, print, draw."""
    parser = make_parser(__doc__, rows=ROWS)
    parser.add_argument("--plot", type=Path, default=Path("runs/ablate_tuning.png"), help="the picture's file")
    parser.set_defaults(ranks=1, ds_config="ds_configs/zero2.json")
    arguments = parser.parse_args()
    generate("videos", VIDEOS, "--train", "160", "--test", "32", "--seed", "1")
    rows = []
    for name in arguments.rows:
        run = arguments.runs / f"tuning_{name}"
        sets = (f"backbone.tuning={name.partition('_')[0]}", *ROWS[name], *BUDGET)
        took = train(arguments, RECIPE, run=run, stop_epoch=EPOCHS, sets=sets)
        rows.append(measure(run, name=name, took=took, ranks=arguments.ranks, ds_config=arguments.ds_config))
    print(markdown(COLUMNS, [cells(row) for row in rows]))
    draw(rows, arguments.plot)
    return 0


def measure(run: Path, *, name: str, took: Took, ranks: int, ds_config: str) -> Row:
    """Of the last evaluation and checkpoint."""
    folder = RunFolder(run)
    config, classes = folder.read()
    log = [json.loads(line) for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    steps = [line for line in log if "time/step_sec" in line]
    last = folder.checkpoints(keep=1).latest()
    assert last is not None
    plan = make_plan(config, ds_config=read_ds_config(ds_config), ranks=ranks, num_classes=len(classes), cuda=False)
    return Row(
        name=name,
        trainable=trainable_parameters(config, num_classes=len(classes)),
        score=folder.scores()[1][EPOCHS],
        activations=plan.activations.peak_bytes,
        peak_gb=max(value for line in steps for key, value in line.items() if key.startswith("memory/peak")),
        step_sec=statistics.median(line["time/step_sec"] for line in steps[1:]),
        checkpoint=sum(file.stat().st_size for file in last.rglob("*") if file.is_file()),
        took=took,
    )


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        f"`{row.name.replace('_', '`, `lora_')}`",
        f"{row.trainable / 1e3:.0f}",
        f"{100 * row.score:.1f}",
        f"{row.activations / 1e6:.0f}",
        f"{row.peak_gb:.2f}",
        f"{row.step_sec:.2f}",
        f"{row.took.cpu_seconds:.0f}",
        f"{row.checkpoint / 1e6:.1f}",
    ]


def draw(rows: list[Row], path: Path) -> None:
    """mAP against the backbone's activations; areas are the trainable parameters beyond the detector's."""
    least = min(row.trainable for row in rows)
    figure = PlainFigure(8, 5)
    axis = figure.add_subplot()
    for row, color in zip(rows, (*PALETTE, *PALETTE), strict=False):
        x, y = row.activations / 1e6, 100 * row.score
        axis.scatter(x, y, s=30 + (row.trainable - least) / 2e3, color=color, alpha=0.8, edgecolors="none")
        axis.annotate(row.name, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axis.set_xlabel("activations of the backbone, MB (planned)")
    axis.set_ylabel("average mAP, %")
    plain_axis(axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
