"""Trains as adatad_ds/train.py does, but for the first checkpoint: it is written once the next step has been logged."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from adatad_ds import train
from adatad_ds.distributed.process import run_process
from adatad_ds.runs.checkpoint import CheckpointStore

PATIENCE_SEC = 120
_save = CheckpointStore.save


def _save_slowly(self: CheckpointStore, *, step: int, **rest: Any) -> list[str]:
    log, end = self.folder.parent / "log.jsonl", time.monotonic() + PATIENCE_SEC
    while step == 1 and '"step": 1, "loss' not in log.read_text(encoding="utf-8"):
        if time.monotonic() > end:
            raise TimeoutError("training did not go on while a checkpoint was written")
        time.sleep(0.01)
    return _save(self, step=step, **rest)


if __name__ == "__main__":
    CheckpointStore.save = _save_slowly
    run_process(train.main)
