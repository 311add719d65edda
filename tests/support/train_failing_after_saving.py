"""Trains as adatad_ds/train.py does, but checkpoints take time to write, and the second step's loss is not finite."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from adatad_ds import train
from adatad_ds.distributed.process import run_process
from adatad_ds.errors import TrainingError
from adatad_ds.runs.checkpoint import CheckpointStore
from adatad_ds.training import trainer

WRITING_SEC = 3
_save = CheckpointStore.save


def _save_slowly(self: CheckpointStore, **what: Any) -> list[str]:
    time.sleep(WRITING_SEC)
    return _save(self, **what)


def _fail(*, step: int, losses: Mapping[str, float]) -> None:
    if step == 1:
        raise TrainingError("the loss is not finite")


if __name__ == "__main__":
    CheckpointStore.save = _save_slowly
    trainer.check_finite = _fail
    run_process(train.main)
