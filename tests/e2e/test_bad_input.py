"""What a user gets wrong ends in one paragraph on the terminal: no hang, no traceback from deep inside."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import pytest

from tests.support.launch import finish, losses, start, train_command
from tests.support.refusals import fails

LAYOUT = {"ranks": 2, "ds_config": "zero3"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head__wdith": 64}, ["head has no key 'wdith'", "did you mean 'width'"]),
        ({"train__global_batch": 1}, ["1 windows cannot be spread evenly over 2 ranks"]),
        ({"data__videos": "/nowhere"}, ["/nowhere"]),
        ({"data__annotations": "/nowhere.json"}, ["/nowhere.json"]),
        ({"data__classes": "['jump']"}, ["is not in data.classes"]),
        ({"data__train_subset": "trainign"}, ["trainign", "training"]),
        ({"backbone__weights": "/nowhere.pth"}, ["no weights file /nowhere.pth"]),
        ({"train__global_batch": 64}, ["64"]),
    ],
)
def test_settings(changes, said, small_videos, tmp_path):
    settings = {"data": small_videos, "run": tmp_path / "run", **LAYOUT}
    fails(train_command(**settings, **changes), *said)


@pytest.mark.slow
def test_nothing_to_measure_by_is_told_before_training(small_videos, tmp_path):
    """As the test videos of a challenge, whose actions are kept back."""
    tree = json.loads((small_videos / "annotations.json").read_text())
    for video in tree["database"].values():
        video["annotations"] = [] if video["subset"] == "validation" else video["annotations"]
    (tmp_path / "held_back.json").write_text(json.dumps(tree))
    changes = {"data__annotations": tmp_path / "held_back.json", "train__eval_from_epoch": 100}
    command = train_command(data=small_videos, run=tmp_path / "run", **LAYOUT, **changes)
    fails(command, "no action is annotated in the", "subset 'validation'", "data.test_subset=NAME")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_contradicting_ds_config(small_videos, tmp_path):
    command = train_command(data=small_videos, run=tmp_path / "run", **LAYOUT)
    policy = tmp_path / "bad.json"
    policy.write_text(
        json.dumps(
            {
                "train_batch_size": 16,
                "bf16": {"enabled": True},
                "optimizer": {"type": "Adam"},
                "zero_optimization": {"stage": 0},
            }
        )
    )
    command[command.index("ds_configs/zero3.json")] = str(policy)
    fails(command, "train_batch_size is 16", "bf16.enabled is True", "'optimizer'", "stage is 0")


@pytest.mark.slow
def test_unknown_recipe_under_the_deepspeed_launcher(small_videos, tmp_path):
    command = train_command(data=small_videos, run=tmp_path / "run", ranks=2, ds_config="zero3", launcher="deepspeed")
    command[command.index("quickstart")] = "quikstart"
    done = start(command)
    assert done.returncode != 0
    assert done.stderr.count("error: there is no recipe 'quikstart'; did you mean quickstart") == 1


@pytest.mark.slow
def test_the_error_is_heard_where_rank_0_is_the_last(tmp_path):
    """A launcher ends all ranks when the first one exits."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time; sys.path[0] = '.'; from adatad_ds.train import main;"
        "from adatad_ds.distributed.process import *;"
        "time.sleep(6 if os.environ['RANK'] == '0' else 0); run_process(main)"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["--deepspeed_config", "ds_configs/zero3.json", "--recipe", "quikstart"]
    done = start([*torchrun, str(script), *arguments])
    assert done.returncode != 0
    assert done.stderr.count("error: there is no recipe 'quikstart'; did you mean quickstart") == 1


@pytest.mark.slow
@pytest.mark.parametrize("below", ["", "run"])
def test_a_run_folder_that_cannot_be(below, small_videos, tmp_path):
    (tmp_path / "file").write_text("x")
    layout = {"ranks": 1, "ds_config": "zero2"}
    fails(train_command(data=small_videos, run=tmp_path / "file" / below, **layout), f"--run-dir {tmp_path}/file")


@pytest.mark.slow
def test_another_program_has_the_port(small_videos, tmp_path):
    command = train_command(data=small_videos, run=tmp_path / "run", ranks=2, ds_config="zero3", launcher="deepspeed")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command[command.index("--master_port") + 1] = port
        fails(command, f"listens on port {port}", "--master_port")


@pytest.mark.slow
def test_a_run_is_not_overwritten(small_videos, tmp_path):
    settings = {"train__stop_epoch": 1, "train__eval_from_epoch": 100}
    command = train_command(data=small_videos, run=tmp_path / "run", ranks=1, ds_config="zero2", **settings)
    finish(command)
    fails(command, "already holds a run", "--resume auto")


@pytest.mark.slow
def test_bad_videos_and_annotations_are_counted_and_trained_around(small_videos, tmp_path):
    """Unreadable, truncated and unannotated videos, and annotations that cannot be: reported, and training goes on."""
    data = tmp_path / "data"
    shutil.copytree(small_videos, data)
    annotations = json.loads((data / "annotations.json").read_text())
    training = [name for name, video in annotations["database"].items() if video["subset"] == "training"]
    unreadable, truncated, empty, faulty = training[:4]
    (data / "videos" / f"{unreadable}.mp4").write_text("<html>404</html>")
    whole = (data / "videos" / f"{truncated}.mp4").read_bytes()
    (data / "videos" / f"{truncated}.mp4").write_bytes(whole[: len(whole) // 2])
    annotations["database"][empty]["annotations"] = []
    entries = annotations["database"][faulty]["annotations"]
    label, duration = entries[0]["label"], annotations["database"][faulty]["duration"]
    for segment in ([3, 2], [duration + 1, duration + 2], [duration - 1, duration + 5], entries[0]["segment"]):
        entries.append({"segment": segment, "label": label})
    (data / "annotations.json").write_text(json.dumps(annotations))
    run = tmp_path / "run"
    short = {
        "ranks": 2,
        "ds_config": "zero2",
        "train__repeats": 2,
        "train__stop_epoch": 1,
        "train__eval_from_epoch": 100,
    }
    output = finish(train_command(data=data, run=run, **short))
    assert output.count(f"replaced by other samples: {data}/videos/{unreadable}.mp4") == 1
    for words in ("end <= start", "duplicate", "clipped"):
        assert words in output, output[-3000:]
    assert len(losses(run)) > 0
    output = finish(train_command(data=data, run=run, resume=True, **(short | {"train__stop_epoch": 2})))
    assert "replaced by other samples" not in output  # counted and told before

    limited = train_command(data=data, run=tmp_path / "limited", **short, data__max_failed_videos=0)
    fails(limited, "data.max_failed_videos=0")


@pytest.mark.slow
def test_batches_without_any_positive_train_on(small_videos, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "videos").symlink_to(small_videos / "videos")
    annotations = json.loads((small_videos / "annotations.json").read_text())
    for video in annotations["database"].values():
        if video["subset"] == "training":
            label = video["annotations"][0]["label"]
            video["annotations"] = [{"segment": [0.001, 0.002], "label": label}]  # too short for any point
    (data / "annotations.json").write_text(json.dumps(annotations))
    run = tmp_path / "run"
    short = {"ranks": 2, "ds_config": "zero2", "train__stop_epoch": 1, "train__eval_from_epoch": 100}
    finish(train_command(data=data, run=run, **short))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    regression = [line["loss/regression"] for line in lines if "loss/regression" in line]
    assert regression
    assert all(value == 0 for value in regression)
    assert all(value > 0 for value in losses(run).values())
