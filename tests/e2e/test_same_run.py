"""A run's folder belongs to one run, and to one training at a time; training that trains nothing is stopped."""

from __future__ import annotations

import json
import shutil

import psutil
import pytest

from tests.support.launch import finish, losses, start, start_until, train_command

SETTINGS = {
    "ranks": 1,
    "ds_config": "zero2",
    "train__checkpoint_every_steps": 1,
    "train__eval_from_epoch": 100,
    "train__schedule_epochs": 100,
}


def refusal(command: list[str]) -> str:
    """The error that a command ends with."""
    done = start(command)
    assert done.returncode == 2, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_folder_belongs_to_one_run_and_one_training(small_videos, tmp_path):
    run = tmp_path / "run"

    def command(**changes):
        return train_command(data=small_videos, run=run, **(SETTINGS | {"train__stop_epoch": 100} | changes))

    first = start_until(command(launcher="python"), run, step=2)
    before, lock = (run / "config.json").read_bytes(), (run / "lock").read_bytes()
    try:
        said = refusal(command(train__seed=1))
        assert f"another training runs in {run}: process {first.pid} on " in said
        said = refusal(command(resume=True))
        assert f"process {first.pid} on " in said
        assert psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE
    finally:
        first.kill()
        first.wait()

    said = refusal(command(resume=True, backbone__adapter_ratio=0.5, head__width=64, train__seed=1))
    for change in ("backbone.adapter_ratio 0.25 -> 0.5", "head.width 32 -> 64", "train.seed 0 -> 1"):
        assert change in said
    annotations = json.loads((small_videos / "annotations.json").read_text())
    video = next(video for video in annotations["database"].values() if video["subset"] == "training")
    video["annotations"][0]["segment"][1] -= 0.01
    other = tmp_path / "annotations.json"
    other.write_text(json.dumps(annotations))
    assert "the training data are not those that this run began with (8 videos" in refusal(
        command(resume=True, data__annotations=other)
    )
    assert (run / "config.json").read_bytes() == before
    reached = max(losses(run))

    shutil.copy(small_videos / "annotations.json", other)  # the same in another place
    steps = json.loads(max((run / "checkpoints").glob("step_*/state.json")).read_text())["step"]
    (run / "lock").write_bytes(lock)  # as the kill had left it; the refused ones took it over, and gave it back
    output = finish(command(resume=True, data__annotations=other, train__stop_epoch=steps // 2 + 1))
    assert f"the lock of {run} was taken over from process {first.pid} on " in output
    assert f"train.stop_epoch 100 -> {steps // 2 + 1}" in output
    assert steps <= reached + 1 <= max(losses(run)) + 1
    assert not (run / "lock").exists()


@pytest.mark.slow
def test_steps_that_train_nothing_end_the_run(small_videos, tmp_path):
    """Losses are finite, but so large that gradients are not."""
    run = tmp_path / "run"
    settings = SETTINGS | {"train__stop_epoch": 4, "head__reg_loss_weight": 1e37, "train__max_skipped_steps": 3}
    said = refusal(train_command(data=small_videos, run=run, **settings))
    assert "3 steps in a row were skipped, up to step 2: gradients have no finite norm (" in said
    assert "backbone.adapters.4.up_proj.weight" in said
    assert all(loss < float("inf") for loss in losses(run).values())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["train/skipped_steps"] for line in lines if "train/skipped_steps" in line] == [1, 2]
    said = refusal(train_command(data=small_videos, run=run, resume=True, **settings))
    assert "3 steps in a row were skipped, up to step 2: " in said  # with the two before
