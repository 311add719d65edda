"""AIM's ablation in miniature: train every row on generated clips, and print the table.

    python tools/ablate_aim.py

The clips' classes are twins that differ in the direction of time alone. What sees frames one by one cannot tell twins
apart, however much of it learns; what sees them together can. A row that has finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from adatad_ds.data.generated.clips import TWINS
from adatad_ds.evaluation.accuracy import PREDICTIONS_FILE
from adatad_ds.models.factory import build_model
from adatad_ds.recipes.aim import ABLATION, ablation_recipe
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.folder import METRICS_FILE, RunFolder
from adatad_ds.system.launch import gpu_count
from adatad_ds.system.utf8 import use_utf8

CLIPS = "data/quickstart_clips"
SECONDS_FILE = "seconds.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row reached, in shares of 1, and what it took."""

    what: str
    learning: int
    top1: float
    pairs: float  # videos taken for their own class or its twin
    within: float  # of these, those taken for their own
    seconds: float


def main() -> int:
    """Make clips, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--ds_config", default="ds_configs/zero3_offload.json")
    parser.add_argument("--rows", nargs="+", choices=ABLATION, default=list(ABLATION))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change every row")
    arguments = parser.parse_args()
    if not Path(CLIPS, "complete.json").exists():
        subprocess.run([sys.executable, "-m", "adatad_ds", "generate", "clips", "--out", CLIPS], check=True)
    rows = []
    for row in arguments.rows:
        recipe = ablation_recipe(row)
        train(arguments, recipe)
        rows.append(measure(arguments.runs / recipe, recipe, row))
    print(table(rows))
    return 0


def train(arguments: argparse.Namespace, recipe: str) -> None:
    """One row, as a user would; nothing where it has finished."""
    run = arguments.runs / recipe
    stop_epoch = find_recipe(recipe).config.train.stop_epoch
    if (run / SECONDS_FILE).exists() and stop_epoch in RunFolder(run).evaluations():
        return
    launch = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(arguments.ranks)]
    command = ["adatad_ds/train.py", "--recipe", recipe, "--deepspeed_config", arguments.ds_config]
    sets = [word for assignment in arguments.set for word in ("--set", assignment)]
    threads = max(1, (os.cpu_count() or 1) // arguments.ranks)  # of each rank
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if not gpu_count():
        environment["DS_ACCELERATOR"] = "cpu"
    began = time.monotonic()
    subprocess.run([*launch, *command, *sets, "--run-dir", str(run), "--resume", "auto"], check=True, env=environment)
    (run / SECONDS_FILE).write_text(json.dumps(time.monotonic() - began), encoding="utf-8")


def measure(run: Path, recipe: str, row: str) -> Row:
    """Of the last evaluation."""
    folder = RunFolder(run)
    config, classes = folder.read()
    last = run / f"evaluations/epoch_{max(folder.evaluations()):04d}"
    twin = {name: other for pair in TWINS for name, other in (pair, pair[::-1])}
    results = json.loads((last / PREDICTIONS_FILE).read_text(encoding="utf-8"))["results"].values()
    taken = [(each["label"], each["predictions"][0]["label"]) for each in results]
    right = sum(label == found for label, found in taken)
    in_pair = sum(found in (label, twin[label]) for label, found in taken)
    with torch.device("meta"):
        model = build_model(config, num_classes=len(classes))
    tuning, adapters = ABLATION[row]
    what = {"frozen": "frozen", "full": "full fine-tuning"}.get(tuning, "adapters")
    return Row(
        what=f"{what}: {' + '.join(adapters)}" if adapters else what,
        learning=sum(p.numel() for p in model.parameters() if p.requires_grad),
        top1=json.loads((last / METRICS_FILE).read_text(encoding="utf-8"))["top1"],
        pairs=in_pair / len(taken),
        within=right / max(1, in_pair),
        seconds=json.loads((run / SECONDS_FILE).read_text(encoding="utf-8")),
    )


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| trained with final norm and classifier | trainable, k | top-1 % | right pair % | direction % | s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{100 * share:.1f}" for share in (row.top1, row.pairs, row.within))
        lines.append(f"| {row.what} | {row.learning / 1e3:.0f} | {shares} | {row.seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
