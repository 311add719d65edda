"""A run killed anywhere goes on with bit-identical losses."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest

from adatad_ds.runs.checkpoint import CheckpointStore
from tests.support.launch import children_of, finish, losses, start_until, train_command

SETTINGS = {  # 6 steps; saved after 2, 3, 4 and 6
    "train__global_batch": 2,
    "train__lr_head": 1e-3,
    "train__lr_adapter": 1e-3,
    "train__schedule_epochs": 3,
    "train__stop_epoch": 3,
    "train__checkpoint_every_steps": 3,
    "train__eval_from_epoch": 3,
}


def kill_after_step(command: list[str], run, step: int) -> None:
    """Start a training and kill -9 all of it once a step is logged."""
    process = start_until(command, run, step)
    process.kill()  # at which the pool kills the ranks
    process.wait()
    time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "ds_config", "precision", "compact"), [(2, "zero3_offload", "bf16", False), (1, "zero2", "fp32", True)]
)
def test_killed_run_continues_bit_by_bit(ranks, ds_config, precision, compact, few_videos, tmp_path):
    def command(run, *, workers=0, **more):
        layout = {"ranks": ranks, "ds_config": ds_config, "train__precision": precision}
        layout |= {"train__compact_checkpoints": compact, "data__workers": workers}
        return train_command(data=few_videos, run=run, **layout, **SETTINGS, **more)

    whole = tmp_path / "whole"
    finish(command(whole))

    killed = tmp_path / "killed"
    workers = int(ranks == 1)
    kill_after_step(command(killed, workers=workers), killed, step=3)
    newest = CheckpointStore(folder=killed / "checkpoints", keep=2).latest()
    assert newest is not None
    resumed_at = json.loads((newest / "state.json").read_text())["step"]
    assert resumed_at in (2, 3, 4, 6)
    versions = json.loads((killed / "versions.json").read_text())
    versions["packages"]["numpy"] = "1.0.0"
    (killed / "versions.json").write_text(json.dumps(versions))
    output = finish(command(killed, workers=workers, resume=True))
    assert f"{resumed_at} steps done" in output
    assert "resumed under other versions" in output
    assert "numpy 1.0.0 -> " in output
    assert losses(killed) == losses(whole)  # not approximately
    evaluated = [json.loads((run / "evaluations/epoch_0003/metrics.json").read_text()) for run in (whole, killed)]
    assert evaluated[0] == evaluated[1]

    # The newest checkpoint cut short: the run goes on from the one before, and says so by its step.
    shutil.rmtree(killed / "evaluations")
    last = CheckpointStore(folder=killed / "checkpoints", keep=2).latest()
    assert last is not None
    with (last / "master.safetensors").open("r+b") as file:
        file.truncate(100)
    assert CheckpointStore(folder=killed / "checkpoints", keep=2).latest() not in (None, last)
    output = finish(command(killed, resume=True))
    assert f"skipped incomplete checkpoint {last}" in output
    assert losses(killed) == losses(whole)


@pytest.mark.slow
def test_another_number_of_ranks_and_stage(few_videos, tmp_path):
    settings = {**SETTINGS, "train__eval_from_epoch": 100}
    whole = tmp_path / "whole"
    finish(train_command(data=few_videos, run=whole, ranks=1, ds_config="zero2", **settings))
    for name in ("step_00000006", "step_00000004"):
        assert (whole / "checkpoints" / name).is_dir()
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    shutil.rmtree(other / "checkpoints" / "step_00000006")
    finish(train_command(data=few_videos, run=other, ranks=2, ds_config="zero3", resume=True, **settings))
    assert losses(other) == pytest.approx(losses(whole), rel=1e-5)

    # And back: from two ranks and ZeRO-3 to one and ZeRO-2.
    two = tmp_path / "two"
    finish(train_command(data=few_videos, run=two, ranks=2, ds_config="zero3", **settings))
    shutil.rmtree(two / "checkpoints" / "step_00000006")
    finish(train_command(data=few_videos, run=two, ranks=1, ds_config="zero2", resume=True, **settings))
    assert losses(two) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_and_ends_all(few_videos, tmp_path):
    """The scheduler's warning: the run goes on at the very step, bit by bit."""

    def command(run, **more):
        settings = SETTINGS | {"train__checkpoint_every_steps": 0, "train__eval_from_epoch": 100}
        return train_command(data=few_videos, run=run, ranks=2, ds_config="zero2", **settings, **more)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(command(whole))
    process = start_until(command(stopped, launcher="torchrun"), stopped, step=2)
    ranks = children_of(process.pid, "adatad_ds/train.py")
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGUSR1)
    assert process.wait(timeout=120) == 0
    assert (stopped / "interrupted").exists()
    saved = max(losses(stopped)) + 1
    assert saved < len(losses(whole))
    output = finish(command(stopped, resume=True))
    assert f"{saved} steps done" in output
    assert not (stopped / "interrupted").exists()
    assert losses(stopped) == losses(whole)
