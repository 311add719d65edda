"""Training that is killed while it saves, or finds the disk full, loses nothing but the steps since."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time

import pytest

from adatad_ds.runs.checkpoint import CheckpointStore
from tests.support.launch import REPOSITORY, environment, finish, losses, start, train_command

SETTINGS = {
    "ranks": 1,
    "ds_config": "zero2",
    "train__stop_epoch": 3,
    "train__warmup_epochs": 2,
    "train__schedule_epochs": 4,
    "train__checkpoint_every_steps": 1,
    "train__eval_from_epoch": 100,
}


def as_script(name: str, command: list[str]) -> list[str]:
    """The command with a script of tests/support in train.py's place."""
    return [f"tests/support/{name}.py" if word == "adatad_ds/train.py" else word for word in command]


@pytest.fixture(scope="module")
def whole(small_videos, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(train_command(data=small_videos, run=run, **SETTINGS))
    return run


@pytest.mark.slow
def test_learning_rates_are_those_of_epochs(whole):
    """Of 2 steps: 4 steps of warm-up, then the first 2 of a cosine over 4."""
    train = json.loads((whole / "config.json").read_text())["train"]
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for name in ("adapter", "head"):
        rates = [line[f"lr/{name}"] / train[f"lr_{name}"] for line in lines if f"lr/{name}" in line]
        assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 0.5 + math.sqrt(0.125)])


@pytest.mark.slow
def test_killed_while_saving(whole, small_videos, tmp_path):
    run = tmp_path / "run"
    folder = run / "checkpoints"
    process = subprocess.Popen(
        train_command(data=small_videos, run=run, launcher="python", **SETTINGS),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        saved = list(folder.glob("step_*")) if folder.is_dir() else []
        if saved and any(path.name.startswith(".writing_") for path in folder.iterdir()):
            process.kill()
            break
        time.sleep(0.0005)
    process.wait()
    left = [path.name for path in folder.iterdir() if path.name.startswith(".writing_0")]
    assert left, "it was not caught while saving"
    newest = CheckpointStore(folder=folder, keep=2).latest()
    assert newest is not None
    output = finish(train_command(data=small_videos, run=run, resume=True, **SETTINGS))
    assert f"resumed from {newest}" in output
    assert losses(run) == losses(whole)
    assert not list(folder.glob(".writing_*"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_goes_on_while_a_checkpoint_is_written(ranks, small_videos, tmp_path):
    settings = SETTINGS | {"ranks": ranks, "train__stop_epoch": 1}
    command = train_command(data=small_videos, run=tmp_path / "run", **settings)
    finish(as_script("train_saving_slowly", command))
    store = CheckpointStore(folder=tmp_path / "run" / "checkpoints", keep=2)
    assert [path.name for path in store.all()] == ["step_00000001", "step_00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_could_not_be_written_is_told_before_the_next_save(ranks, small_videos, tmp_path):
    settings = SETTINGS | {"ranks": ranks, "train__checkpoint_every_steps": 0}  # after an epoch of 2 steps
    command = train_command(data=small_videos, run=tmp_path / "run", **settings)
    done = start(as_script("train_saving_in_vain", command))
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the checkpoint of step 2 could not be written" in done.stderr
    assert 2 <= len(losses(tmp_path / "run")) <= 3  # the third may have begun before the write failed


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_error_leaves_the_checkpoint_before_it_to_be_written(ranks, small_videos, tmp_path):
    command = train_command(data=small_videos, run=tmp_path / "run", **SETTINGS | {"ranks": ranks})
    done = start(as_script("train_failing_after_saving", command))
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.count("error: the loss is not finite") == 1
    newest = CheckpointStore(folder=tmp_path / "run" / "checkpoints", keep=2).latest()
    assert newest is not None
    assert newest.name == "step_00000001"


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero2", "zero3"])
def test_an_error_of_one_rank_in_an_evaluation_ends_all(ds_config, small_videos, tmp_path):
    settings = SETTINGS | {"ranks": 2, "ds_config": ds_config, "train__eval_from_epoch": 1, "train__stop_epoch": 1}
    patience = {"train__hang_timeout_sec": 60, "data__worker_timeout_sec": 30}
    command = train_command(data=small_videos, run=tmp_path / "run", **settings, **patience)
    done = start(as_script("train_failing_in_evaluation", command))
    assert done.returncode == 1, done.stderr[-2000:]
    assert "error: rank 1: RuntimeError: no memory for a long video" in done.stderr
    assert "has waited" not in done.stderr


@pytest.mark.slow
def test_evaluations_of_a_run_whose_checkpoints_are_gone_are_set_aside(whole, small_videos, tmp_path):
    run, settings = tmp_path / "run", SETTINGS | {"train__eval_from_epoch": 1, "train__eval_every": 2}
    finish(train_command(data=small_videos, run=run, **settings))
    assert losses(run) == losses(whole)  # which was evaluated at its end alone: training goes on as if nothing had been
    shutil.rmtree(run / "checkpoints")
    marked = [run / "evaluations" / f"epoch_{epoch:04d}" / "mark" for epoch in (1, 3)]
    for mark in marked:
        mark.touch()
    output = finish(train_command(data=small_videos, run=run, **settings))
    assert "evaluations of epochs 1, 3, trained before and now again, are set aside as old_*" in output
    assert output.count("last so far") == 2
    for mark in marked:
        assert not mark.exists()
        assert mark.parent.is_dir()
        assert (mark.parent.with_name(f"old_{mark.parent.name}") / "mark").exists()
    output = finish(train_command(data=small_videos, run=run, resume=True, **settings))
    assert "set aside" not in output
    assert "last so far" not in output


@pytest.mark.slow
def test_disk_full_while_saving(whole, small_videos, tmp_path):
    run = tmp_path / "run"
    folder = run / "checkpoints"
    folder.mkdir(parents=True)
    newest = next((whole / "checkpoints").glob("step_*"))
    size = sum(path.stat().st_size for path in newest.iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * size)}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        done = start(train_command(data=small_videos, run=run, **SETTINGS))
        assert done.returncode == 2, done.stderr[-2000:]
        assert "the checkpoint of step 2 could not be written" in done.stderr
        assert "the newest complete one is step_00000001" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(folder)], check=True)
        output = finish(train_command(data=small_videos, run=run, resume=True, **SETTINGS))
        assert "1 steps done" in output
        assert losses(run) == losses(whole)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
