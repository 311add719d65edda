"""A detector on features: trained on any number of ranks, resumed, evaluated, its errors told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds import predict
from adatad_ds.cli import diagnose
from adatad_ds.distributed.world import World
from adatad_ds.evaluate import make_parser
from adatad_ds.evaluate import run as run_evaluation
from tests.support.launch import SMALL, finish, launched, losses, train_command

STRIDE = 2
CHANNELS = 12
FEATURES = {
    key: value
    for key, value in SMALL.items()
    if key not in ("data.resolution", "data.short_side_before_crop", "backbone.drop_path")
}


@pytest.fixture(scope="module")
def features(small_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, with each class in a channel of its own."""
    folder = tmp_path_factory.mktemp("features")
    database = json.loads((small_videos / "annotations.json").read_text())["database"]
    labels = sorted({action["label"] for video in database.values() for action in video["annotations"]})
    for index, (name, video) in enumerate(database.items()):
        rate = video["frame"] / video["duration"] / STRIDE
        drawn = np.random.default_rng(index).normal(size=(-(-video["frame"] // STRIDE), CHANNELS))
        for action in video["annotations"]:
            start_step, end_step = (round(second * rate) for second in action["segment"])
            drawn[start_step:end_step, labels.index(action["label"])] += 4
        np.save(folder / f"{name}.npy", drawn.astype(np.float32))
    return folder


def command(features: Path, small_videos: Path, run: Path, **changes: object) -> list[str]:
    layout: dict = {"ranks": 1, "ds_config": "zero2"} | changes
    settings = FEATURES | {"data.features": features, "train.lr_head": 3e-3}
    return train_command(data=small_videos, run=run, recipe="quickstart_features", settings=settings, **layout)


@pytest.mark.slow
def test_same_losses_on_any_number_of_ranks(features, small_videos, tmp_path):
    """TriDet, with noise on its features: the same for a video on whichever rank."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    tridet = {"head__name": "tridet", "head__input_noise": 0.5}
    finish(command(features, small_videos, alone, **tridet))
    whole = {"data__test_whole_videos": True, "test__topk_per_level": True} | tridet
    finish(command(features, small_videos, together, ranks=2, ds_config="zero3_offload", data__workers=1, **whole))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_it_learns_resumes_and_is_evaluated(features, small_videos, tmp_path, capsys):
    run = tmp_path / "run"
    schedule = {"train__schedule_epochs": 30, "train__eval_from_epoch": 30}
    finish(command(features, small_videos, run, train__stop_epoch=15, **schedule))
    finish(command(features, small_videos, run, train__stop_epoch=30, resume=True, **schedule))
    assert len(losses(run)) == 60
    finish(launched("pool", 1, ["adatad_ds/evaluate.py", str(run)]))
    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    assert metrics["average_mAP"] > 0.3
    detections, annotations = run / "evaluate/detections.json", small_videos / "annotations.json"
    evaluate(detections, "--annotations", annotations)
    again = json.loads((run / "evaluate/evaluate/metrics.json").read_text())
    assert again["average_mAP"] == pytest.approx(metrics["average_mAP"], abs=1e-3), "times are rounded in the file"
    assert diagnose.main([str(detections), str(annotations)], prog="diagnose") == 0
    assert predict.main([str(small_videos), "--checkpoint", str(run)]) == 2
    assert "detects in features, not in video files" in capsys.readouterr().err


def evaluate(*arguments: object) -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    run_evaluation(make_parser().parse_args([str(argument) for argument in arguments]), world=world)


@pytest.mark.slow
def test_cached_features_give_the_losses_of_frames(small_videos, tmp_path):
    """Filled by two ranks, read by them, resumed by one; the run is then evaluated on frames."""
    resized = {"data.sampling": "resize", "data.augment": "[]", "data.short_side_before_crop": 32}
    settings = SMALL | resized | {"backbone.drop_path": 0, "train.lr_head": 3e-3, "train.eval_from_epoch": 2}
    frames, cached = tmp_path / "frames", tmp_path / "cached"
    way: dict = {"data": small_videos, "recipe": "quickstart_frozen", "settings": settings}
    finish(train_command(run=frames, ranks=1, ds_config="zero2", **way))
    way["backbone__cache_features"] = True
    output = finish(train_command(run=cached, ranks=2, ds_config="zero3", train__stop_epoch=1, **way))
    files = {path: path.stat().st_mtime_ns for path in (cached / "features").rglob("*.npy")}
    assert len(files) == 11
    assert f"cached features: 11 videos in {cached / 'features'}" in output
    assert output.count("cached features: those of the frames, and the same losses") == 1
    assert "features.json" not in output, "of the shares, only the rank that waits for them speaks"
    finish(train_command(run=cached, ranks=1, ds_config="zero2", resume=True, **way))
    assert {path: path.stat().st_mtime_ns for path in (cached / "features").rglob("*.npy")} == files
    assert losses(cached) == pytest.approx(losses(frames), rel=1e-5)
    found = [json.loads((run / "evaluations/epoch_0002/metrics.json").read_text()) for run in (frames, cached)]
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    finish(launched("pool", 1, ["adatad_ds/evaluate.py", str(cached)]))
    again = json.loads((cached / "evaluate/metrics.json").read_text())
    best = max(json.loads(file.read_text())["average_mAP"] for file in cached.glob("evaluations/*/metrics.json"))
    assert again["average_mAP"] == pytest.approx(best, abs=1e-4)


@pytest.mark.slow
def test_cached_features_of_windows_that_begin_with_a_clip(small_videos, tmp_path):
    """Windows as long as the videos, 6 s each: the losses of frames, and what holds of other windows, once."""
    tree = json.loads((small_videos / "annotations.json").read_text())
    for video in tree["database"].values():
        del video["frame"]
        video["duration"] = 6.0
        video["annotations"] = [action for action in video["annotations"] if action["segment"][1] <= 6]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(tree))
    windows = {"window_size": 48, "frames_per_feature": 2, "fixed_fps": 16, "crop_ratio": "null", "augment": "[]"}
    settings = SMALL | {f"data.{key}": value for key, value in windows.items()}
    settings |= {"data.annotations": annotations, "data.videos": small_videos / "videos"}
    settings |= {"data.short_side_before_crop": 32, "backbone.drop_path": 0, "train.stop_epoch": 1}
    frames, cached = tmp_path / "frames", tmp_path / "cached"
    way: dict = {"recipe": "quickstart_frozen", "settings": settings, "ranks": 1, "ds_config": "zero2"}
    finish(train_command(run=frames, **way))
    output = finish(train_command(run=cached, backbone__cache_features=True, **way))
    assert losses(cached) == pytest.approx(losses(frames), rel=1e-5)
    assert output.count("Windows within the video that begin with a clip have the same features; those of others") == 1
    assert output.count("Windows begin every 2 frames, not at any") == 1
