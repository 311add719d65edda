"""Ranks that see different files, as on nodes without a shared folder, say so at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY, finish, launched, start, train_command

SETTINGS = {
    "ranks": 1,
    "ds_config": str(REPOSITORY / "ds_configs/zero2.json"),
    "train__checkpoint_every_steps": 1,
    "train__stop_epoch": 1,
    "train__eval_from_epoch": 100,
}


def on_nodes(folder: Path, script: str, *arguments: str) -> list[str]:
    each = str(REPOSITORY / "tests/support/count_nodes.py")
    return launched("pool", 2, [each, str(folder), str(REPOSITORY / script), *arguments])


@pytest.mark.slow
def test_ranks_that_see_other_checkpoints(small_videos, tmp_path):
    run = tmp_path / "node0/run"
    command = train_command(data=small_videos, run=run, **SETTINGS)
    finish(command)
    shutil.copytree(run, tmp_path / "node1/run")
    newest = tmp_path / "node1/run/checkpoints/step_00000002"
    with (newest / "master.safetensors").open("r+b") as file:  # as many bytes, but for one the same
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))

    arguments = command[command.index("adatad_ds/train.py") + 1 :]
    arguments[arguments.index(str(run))] = "run"
    arguments += ["--resume", "auto", "--set", "train.stop_epoch=2"]
    done = start(on_nodes(tmp_path, "adatad_ds/train.py", *arguments))
    assert done.returncode != 0
    assert "step_00000002 that rank 0 resumes from is missing or incomplete on " in done.stderr

    shutil.rmtree(newest)
    (run / "checkpoints/best").write_text("step_00000002\n")
    done = start(on_nodes(tmp_path, "adatad_ds/evaluate.py", "run"))
    assert done.returncode != 0  # not: the newest that each rank sees
    assert "there is no run/checkpoints/step_00000002" in done.stderr
