"""What the ablations share: each row is trained as a user would train it, and what that took is kept with the run."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adatad_ds.config.schema import Config
from adatad_ds.models.factory import build_model
from adatad_ds.runs.folder import RunFolder
from adatad_ds.system.launch import gpu_count

TOOK_FILE = "took.json"


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds of a whole training: by the clock, and of all its processes' work."""

    seconds: float
    cpu_seconds: float


def make_parser(doc: str | None, *, rows: Iterable[str]) -> argparse.ArgumentParser:
    """The options of every ablation."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--ds_config", default="ds_configs/zero3_offload.json")
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change every row")
    return parser


def generate(kind: str, folder: str, *options: str) -> None:
    """Make data of `adatad-ds generate`; nothing where they are complete."""
    if not Path(folder, "complete.json").exists():
        command = [sys.executable, "-m", "adatad_ds", "generate", kind, "--out", folder, *options]
        subprocess.run(command, check=True)


def train(arguments: argparse.Namespace, recipe: str, *, run: Path, stop_epoch: int, sets: Sequence[str] = ()) -> Took:
    """Train one row; a row that has finished is not trained again.

    Args:
        arguments: of `make_parser`.
        recipe: name of the recipe.
        run: the run's folder.
        stop_epoch: its last epoch, which is evaluated.
        sets: changes of the recipe, before those of the command line.
    """
    path = run / TOOK_FILE
    if not (path.exists() and stop_epoch in RunFolder(run).evaluations()):
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(arguments.ranks),
        ]
        command = ["adatad_ds/train.py", "--recipe", recipe, "--deepspeed_config", arguments.ds_config]
        changes = [word for assignment in (*sets, *arguments.set) for word in ("--set", assignment)]
        threads = max(1, (os.cpu_count() or 1) // arguments.ranks)  # of each rank
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if not gpu_count():
            environment["DS_ACCELERATOR"] = "cpu"
        words = [*launch, *command, *changes, "--run-dir", str(run), "--resume", "auto"]
        began, worked = time.monotonic(), _children_cpu_seconds()
        subprocess.run(words, check=True, env=environment)
        took = Took(seconds=time.monotonic() - began, cpu_seconds=_children_cpu_seconds() - worked)
        path.write_text(json.dumps(asdict(took)), encoding="utf-8")
    return Took(**json.loads(path.read_text(encoding="utf-8")))


def trainable_parameters(config: Config, *, num_classes: int) -> int:
    """Of a config's model."""
    with torch.device("meta"):
        model = build_model(config, num_classes=num_classes)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return "\n".join([head, f"|{'---|' * len(columns)}", *body])


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
