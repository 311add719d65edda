"""AIM from the command line: recognition on two ranks, checkpoints, evaluation, and as a detector's backbone."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from adatad_ds.runs.checkpoint import find_checkpoint
from adatad_ds.runs.folder import RunFolder
from tests.support.launch import finish, launched, losses, recognition_command, start, train_command
from tests.support.refusals import fails

LEARNING = {
    "backbone__drop_path": 0.3,
    "recognition__dropout": 0.3,
    "recognition__label_smoothing": 0.1,
    "train__cosine": "epoch",
    "train__eval_from_epoch": 1,
}


@pytest.fixture(scope="module")
def alone(small_clips, tmp_path_factory):
    """One process, ZeRO-1, everything kept for the backward pass."""
    run = tmp_path_factory.mktemp("alone") / "run"
    command = recognition_command(clips=small_clips, run=run, ranks=1, ds_config="zero1", **LEARNING)
    finish(command)
    assert len(losses(run)) == 4
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = [line["lr/head"] for line in logged if "lr/head" in line]
    assert rates == pytest.approx([rate * rates[0] for rate in (1, 1, 0.5, 0.5)])  # epochs of 2 steps
    return run


@pytest.mark.slow
def test_two_ranks_give_the_same_losses_and_accuracies(alone, small_clips, tmp_path):
    """ZeRO-3 with CPU offload, accumulation, clips recomputed in pieces; stopped after an epoch, and resumed."""
    layout = {
        "clips": small_clips,
        "run": tmp_path / "run",
        "ranks": 2,
        "ds_config": "zero3_offload",
        "train__micro_batch": 2,
        "backbone__activation_checkpointing": True,
        "backbone__clips_per_chunk": 1,
    }
    finish(recognition_command(**layout, **LEARNING))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    assert RunFolder(tmp_path / "run").evaluations() == RunFolder(alone).evaluations()
    newest = find_checkpoint(tmp_path / "run")
    assert newest.name != "none"

    before = losses(tmp_path / "run")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step_*")))  # the last epoch is lost
    shutil.rmtree(tmp_path / "run" / "evaluations" / "epoch_0002")
    finish(recognition_command(**layout, **LEARNING, resume=True))
    assert losses(tmp_path / "run") == before


@pytest.mark.slow
def test_evaluated_exported_and_evaluated(alone, tmp_path):
    metrics = RunFolder(alone).evaluations()[2]
    said = finish(
        launched("pool", 1, ["adatad_ds/evaluate.py", str(alone), "--output", str(tmp_path / "a"), "--per-class"])
    )
    assert f"top-1{100 * metrics['top1']:26.2f} %" in said
    best = RunFolder(alone).evaluations()[RunFolder(alone).best_epoch()]
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == pytest.approx(best)
    predictions = json.loads((tmp_path / "a" / "predictions.json").read_text())["results"]
    assert len(predictions) == 8
    first = predictions["appear/0000.mp4"]
    assert first["label"] == "appear"
    scores = [each["score"] for each in first["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 5
    assert (tmp_path / "a" / "per_class.csv").read_text().count("\n") == 9

    finish(launched("pool", 1, ["-m", "adatad_ds", "export", str(alone), "--out", str(tmp_path / "aim.safetensors")]))
    finish(
        launched(
            "pool", 1, ["adatad_ds/evaluate.py", str(tmp_path / "aim.safetensors"), "--output", str(tmp_path / "b")]
        )
    )
    assert json.loads((tmp_path / "b" / "predictions.json").read_text())["results"] == predictions


@pytest.mark.slow
def test_a_detector_over_an_image_transformer_on_shared_windows(few_videos, tmp_path):
    """Two ranks that share each window's 3 clips, ZeRO-3, recomputing: the losses of one that has it whole."""
    changes = {
        "data__window_size": 24,
        "backbone__name": "vit_tiny_generated",
        "backbone__weights": "adatad_ds/weights/tiny_image.safetensors",
        "backbone__tuning": "aim",
        "data__resolution": 64,
        "data__short_side_before_crop": 64,
        "train__global_batch": 2,
        "train__stop_epoch": 1,
        "train__schedule_epochs": 1,
    }
    one = {"ranks": 1, "ds_config": "zero2", "backbone__clips_per_chunk": 0}
    two = {
        "ranks": 2,
        "ds_config": "zero3",
        "parallel__temporal": 2,
        "backbone__activation_checkpointing": True,
        "backbone__clips_per_chunk": 1,
    }
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, layout in zip(runs, (one, two), strict=True):
        finish(train_command(data=few_videos, run=run, **(changes | layout)))
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    first, second = (RunFolder(run).evaluations()[1] for run in runs)
    assert first == pytest.approx(second, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["label", "empty class", "patch", "frames", "transformer"])
def test_bad_input(fault, small_clips, tmp_path):
    clips, changes = tmp_path / "clips", {}
    shutil.copytree(small_clips, clips)
    if fault == "label":
        (tmp_path / "test.txt").write_text("appear/0000.mp4 appear\ndown/0000.mp4 downwards\n")
        changes = {"recognition__test_list": tmp_path / "test.txt", "data__videos": clips / "test"}
        said = ["1 unknown labels: downwards", "appear, down, grow"]
    elif fault == "empty class":
        (clips / "train" / "waiting").mkdir()
        said = ["no video", "waiting"]
    elif fault == "patch":
        weights = load_file("adatad_ds/weights/tiny_image.safetensors")
        weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"][..., :8, :8].contiguous()
        save_file(weights, tmp_path / "patch8.safetensors")
        changes = {"backbone__weights": tmp_path / "patch8.safetensors"}
        said = ["of another transformer", "patches of 8 px", "patches of 16 px"]
    elif fault == "frames":
        changes = {"backbone__clip_frames": 3}
        said = ["recognition.frames = 4 is not a multiple of 3"]
    else:
        changes = {"backbone__name": "vit_tiny_patch16_of_ours"}
        said = ["timm has no plain vision transformer named vit_tiny_patch16_of_ours"]
    fails(
        recognition_command(clips=clips, run=tmp_path / "run", ranks=1, ds_config="zero3", **changes),
        *said,
    )


@pytest.mark.slow
def test_dry_run_plans_recognition():
    policy = ["--deepspeed_config", "ds_configs/zero3.json", "--set", "train.micro_batch=8"]
    recipe = ["--recipe", "kinetics400_clip_b16_8", "--dry-run"]
    done = start(launched("pool", 1, ["adatad_ds/train.py", *recipe, *policy]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "head, trainable" in done.stdout
    assert "peak" in done.stdout
