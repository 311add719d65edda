"""Trains as adatad_ds/train.py does, but no checkpoint can be written, and each step ends once that is known."""

from __future__ import annotations

import sys
from concurrent.futures import wait
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from adatad_ds import train
from adatad_ds.distributed.process import run_process
from adatad_ds.errors import WriteError
from adatad_ds.runs.checkpoint import CheckpointStore
from adatad_ds.training.trainer import Trainer

_step = Trainer.step


def _save_in_vain(self: CheckpointStore, *, step: int, **rest: Any) -> list[str]:
    raise WriteError(f"the checkpoint of step {step} could not be written")


def _step_and_wait(self: Trainer, micro_batches: Any) -> Any:
    result = _step(self, micro_batches)
    wait([self.writing] if self.writing else [])
    return result


if __name__ == "__main__":
    CheckpointStore.save = _save_in_vain
    Trainer.step = _step_and_wait
    run_process(train.main)
