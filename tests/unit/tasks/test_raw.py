"""Kept candidates: the same ones come back, and the same detections come of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from adatad_ds.config.loading import from_dict
from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.detection.decoding import Candidates
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.evaluate import main
from adatad_ds.evaluation.candidates_file import SavedCandidates, VideoCandidates, read_candidates, write_candidates
from adatad_ds.inference.evaluation import evaluate_again
from adatad_ds.tasks.detection_pipeline import finish

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def video(count: int, *, seed: int) -> VideoCandidates:
    rng = np.random.default_rng(seed)
    start = rng.uniform(-1, 50, count)
    segments = np.stack([start, start + rng.uniform(0, 9, count)], axis=1)
    return VideoCandidates(
        Candidates(
            segments_sec=torch.from_numpy(segments).float(),
            scores=torch.from_numpy(rng.random(count)).float(),
            labels=torch.from_numpy(rng.integers(2, size=count)),
        ),
        duration_sec=50.0 + seed / 3,
    )


@pytest.fixture
def raw(tmp_path):
    database = {
        name: {
            "subset": "validation",
            "duration": 55,
            "annotations": [{"segment": [3, 9], "label": "run"}, {"segment": [20, 29], "label": "a, b"}],
        }
        for name in ("two words", "v", "silent", "w")
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    config = Config(data=DataConfig(annotations=str(tmp_path / "annotations.json")))
    return SavedCandidates(
        name="a run, step 3",
        config=config.to_dict(),
        classes=("run", "a, b"),
        videos={"two words": video(80, seed=1), "v": video(0, seed=2), "w": video(33, seed=3)},
    )


@pytest.mark.parametrize("count", [0, 3])
def test_what_was_written_is_read(raw, count, tmp_path):
    raw = SavedCandidates(
        name=raw.name, config=raw.config, classes=raw.classes, videos=dict(list(raw.videos.items())[:count])
    )
    write_candidates(tmp_path / "raw.npz", raw)
    again = read_candidates(tmp_path / "raw.npz")
    assert (again.name, again.config, again.classes) == (raw.name, raw.config, raw.classes)
    assert list(again.videos) == list(raw.videos)
    for name, found in raw.videos.items():
        other = again.videos[name]
        assert other.duration_sec == found.duration_sec
        for field in ("segments_sec", "scores", "labels"):
            ours, theirs = getattr(found.candidates, field), getattr(other.candidates, field)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("sampling", "overlap"), [("random_trunc", 1.0), ("resize", 10 / 50)])
def test_sliding_windows_are_clipped_before_suppression(sampling, overlap):
    """Two candidates that are alike inside the video only: one action to sliding windows, two to whole videos."""
    segments = torch.tensor([[40.0, 50.0], [40.0, 90.0]])
    found = Candidates(segments_sec=segments, scores=torch.tensor([0.9, 0.8]), labels=torch.zeros(2, dtype=torch.int64))
    config = from_dict({"data": {"sampling": sampling}, "test": {"suppression": "gaussian", "sigma": 0.7}})
    candidates = {"v": VideoCandidates(found, duration_sec=50.0)}
    kept = finish(candidates, videos=["v"], classes=["run"], config=config, world=WORLD)["v"]
    assert [record["segment"] for record in kept] == [[40.0, 50.0], [40.0, 50.0]]
    assert kept[1]["score"] == pytest.approx(0.8 * np.exp(-(overlap**2) / 0.7), abs=1e-4)


def test_the_same_settings_give_the_same_detections(raw, tmp_path):
    names = ["two words", "v", "silent", "w"]
    config = from_dict(raw.config)
    expected = finish(raw.videos, videos=names, classes=raw.classes, config=config, world=WORLD)
    write_candidates(tmp_path / "raw.npz", raw)
    evaluate_again(read_candidates(tmp_path / "raw.npz"), overrides=(), output=tmp_path / "out", world=WORLD)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["results"]
    assert written == expected
    assert written["silent"] == []
    assert (tmp_path / "out" / "per_class.csv").read_text().startswith("class,ground_truth,AP@0.3")

    overrides = ["test.sigma=0.1", "test.max_per_video=7", "test.tiou=(0.1,)"]
    evaluate_again(read_candidates(tmp_path / "raw.npz"), overrides=overrides, output=tmp_path / "other", world=WORLD)
    written = json.loads((tmp_path / "other" / "detections.json").read_text())["results"]
    assert len(written["two words"]) == 7
    metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert {name for name in metrics if not name.startswith("best_F1")} == {"average_mAP", "mAP@0.1"}


def test_videos_without_annotations_are_detected_in(raw, tmp_path, capsys):
    """As those of a challenge; and of a part of the videos."""
    database = {name: {"subset": "validation", "duration": 55, "annotations": []} for name in ("w", "new")}
    path = tmp_path / "unlabelled.json"
    path.write_text(json.dumps({"database": database}))
    evaluate_again(raw, overrides=[f"data.annotations={path}"], output=tmp_path / "out", world=WORLD)
    assert "no action is annotated" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["results"]
    assert len(written["w"]) == 33
    assert written["new"] == []
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("assignment", ["test.pre_nms_topk=9", "data.window_size=64", "train.seed=1"])
def test_what_needs_the_detector_cannot_be_changed(raw, assignment, tmp_path):
    with pytest.raises(ConfigError, match="as the candidates are already computed"):
        evaluate_again(raw, overrides=[assignment], output=tmp_path, world=WORLD)


def test_other_files(tmp_path, capsys):
    path = tmp_path / "raw.npz"
    np.savez(path, about=np.array(json.dumps({"format": "another"})))
    with pytest.raises(DataError, match="format is 'another'"):
        read_candidates(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="holds no candidates"):
        read_candidates(path)
    path.write_text("no archive")
    assert main([str(path)]) == 2
    assert "error: " in capsys.readouterr().err
