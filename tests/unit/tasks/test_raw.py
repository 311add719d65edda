"""Kept candidates: the same ones come back, and the same detections come of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from adatad_ds.config.loading import from_dict, override
from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.detection.decoding import Candidates
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.evaluate import main, make_parser, run
from adatad_ds.evaluation.candidates_file import SavedCandidates, VideoCandidates, read_candidates, write_candidates
from adatad_ds.evaluation.ensemble import describe_fusion, fuse_candidates
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


@pytest.mark.parametrize(
    ("data", "overlap"),
    [({"test_whole_videos": False}, 1.0), ({"test_whole_videos": True}, 10 / 50), ({"sampling": "resize"}, 10 / 50)],
    ids=str,
)
def test_sliding_windows_are_clipped_before_suppression(data, overlap):
    """Two candidates that are alike inside the video only: one action to sliding windows, two to whole videos."""
    segments = torch.tensor([[40.0, 50.0], [40.0, 90.0]])
    found = Candidates(segments_sec=segments, scores=torch.tensor([0.9, 0.8]), labels=torch.zeros(2, dtype=torch.int64))
    config = from_dict({"data": data, "test": {"suppression": "gaussian", "sigma": 0.7}})
    candidates = {"v": VideoCandidates(found, duration_sec=50.0)}
    kept = finish(candidates, videos=["v"], classes=["run"], config=config, world=WORLD)["v"]
    assert [record["segment"] for record in kept] == [[40.0, 50.0], [40.0, 50.0]]
    assert kept[1]["score"] == pytest.approx(0.8 * np.exp(-(overlap**2) / 0.7), abs=1e-4)


@pytest.mark.slow
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


def test_other_annotations_have_the_detectors_classes(raw, tmp_path):
    """In any form of Unicode; labels that it does not know are an error, as they are where it is run itself."""
    about_height = replace(raw, classes=("h\u00f6her", "a, b"))
    scores = []
    for label in ("h\u00f6her", "ho\u0308her"):
        path = tmp_path / "named.json"
        path.write_text((tmp_path / "annotations.json").read_text().replace('"run"', json.dumps(label)))
        changed = [f"data.annotations={path}"]
        evaluate_again(about_height, overrides=changed, output=tmp_path / "out", world=WORLD)
        scores.append(json.loads((tmp_path / "out" / "metrics.json").read_text()))
    assert scores[0] == scores[1]
    with pytest.raises(DataError, match=r"'ho.*her' is not in data\.classes"):
        evaluate_again(raw, overrides=changed, output=tmp_path / "out", world=WORLD)


@pytest.mark.parametrize(
    "assignment",
    [
        *("test.batch=2", "test.pre_nms_thresh=0.1", "test.pre_nms_topk=9"),
        *("test.topk_per_level=true", "test.min_duration_steps=2", "data.window_size=64", "train.seed=1"),
    ],
)
def test_what_needs_the_detector_cannot_be_changed(raw, assignment, tmp_path):
    with pytest.raises(ConfigError, match="as the candidates are already computed"):
        evaluate_again(raw, overrides=[assignment], output=tmp_path, world=WORLD)


def test_other_files(raw, tmp_path, capsys):
    path = tmp_path / "raw.npz"
    np.savez(path, about=np.array(json.dumps({"format": "another"})))
    with pytest.raises(DataError, match="format is 'another'"):
        read_candidates(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="holds no candidates"):
        read_candidates(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    write_candidates(path, raw)
    damaged = bytearray(path.read_bytes())
    damaged[500:600] = bytes(100)
    for content in (b"", (tmp_path / "array.npy").read_bytes(), bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"raw\.npz holds no candidates of .*: ."):
            read_candidates(path)
    path.write_text("no archive")
    assert main([str(path)]) == 2
    assert "error: " in capsys.readouterr().err


def renamed(saved: SavedCandidates, name: str, **changes) -> SavedCandidates:
    return replace(saved, name=name, **changes)


@pytest.mark.slow
def test_an_ensemble_suppresses_the_candidates_of_all_at_once(raw, tmp_path):
    """By hand: each video's candidates one after another, the second's classes in the first's order, weighed."""
    videos = {"v": video(9, seed=2), "w": video(5, seed=3), "new": video(4, seed=5)}
    other = renamed(raw, "another", classes=("a, b", "run"), videos=videos)
    for name, saved in (("a.npz", raw), ("b.npz", other)):
        write_candidates(tmp_path / name, saved)
    files = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]
    changes = ["--weights", "1", "0.5", "--output", str(tmp_path / "out"), "--set", "test.sigma=0.3"]
    run(make_parser().parse_args([*files, *changes]), world=WORLD)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["results"]
    ours, theirs = raw.videos["w"].candidates, other.videos["w"].candidates
    together = Candidates(
        segments_sec=torch.cat([ours.segments_sec, theirs.segments_sec]),
        scores=torch.cat([ours.scores, theirs.scores * 0.5]),
        labels=torch.cat([ours.labels, 1 - theirs.labels]),
    )
    by_hand = raw.videos | {"w": replace(raw.videos["w"], candidates=together), "v": other.videos["v"]}
    by_hand["v"] = VideoCandidates(
        replace(
            other.videos["v"].candidates,
            scores=other.videos["v"].candidates.scores * 0.5,
            labels=1 - other.videos["v"].candidates.labels,
        ),
        duration_sec=raw.videos["v"].duration_sec,
    )
    config = override(from_dict(raw.config), ["test.sigma=0.3"])
    names = ["two words", "v", "silent", "w"]
    assert written == finish(by_hand, videos=names, classes=raw.classes, config=config, world=WORLD)
    assert len(written["v"]) == 9


def test_an_ensemble_of_one_twice_is_the_one(raw):
    """Of two equal candidates, hard suppression drops one."""
    names = ["two words", "v", "silent", "w"]
    config = override(from_dict(raw.config), ["test.suppression=hard", "test.tiou_suppression=0.9"])
    found = [
        finish(saved.videos, videos=names, classes=raw.classes, config=config, world=WORLD)
        for saved in (raw, fuse_candidates([raw, renamed(raw, "again")]))
    ]
    assert found[0] == found[1]


def test_classes_in_another_form_of_unicode_are_fused(raw):
    ours, theirs = (renamed(raw, form, classes=("run", form)) for form in ("h\u00f6her", "ho\u0308her"))
    fused = fuse_candidates([ours, theirs])
    assert fused.classes == ours.classes
    assert all(torch.equal(*found.candidates.labels.view(2, -1)) for found in fused.videos.values())


def test_what_cannot_be_fused(raw, tmp_path):
    with pytest.raises(DataError, match="different classes: jump"):
        fuse_candidates([raw, renamed(raw, "nouns", classes=("run", "a, b", "jump"))])
    with pytest.raises(DataError, match="no video in common"):
        fuse_candidates([raw, renamed(raw, "others", videos={"x": video(3, seed=1)})])
    longer = {"w": VideoCandidates(raw.videos["w"].candidates, duration_sec=70.0)}
    with pytest.raises(DataError, match=r"w lasts 51\.0 s for a run, step 3, but 70\.0 s for longer"):
        fuse_candidates([raw, renamed(raw, "longer", videos=longer)])
    write_candidates(tmp_path / "a.npz", raw)
    for arguments, said in (
        (["a.npz", "run"], "consists only of raw.npz files"),
        (["a.json", "b.json"], "or only of models"),
        (["run", "other", "--output", "x", "--weights", "1", "1"], "for each of several raw.npz"),
        (["a.npz", "a.npz"], "needs --output FOLDER"),
        (["a.npz", "a.npz", "--output", "x", "--weights", "1"], "got 1 for 2"),
        (["a.npz", "--weights", "1"], "got 1 for 1"),
        *[
            (["a.npz", "a.npz", "--output", "x", "--weights", "1", weight], f"positive numbers, not {weight};")
            for weight in ("nan", "inf", "-1", "0")
        ],
    ):
        with pytest.raises(ConfigError, match=said):
            run(make_parser().parse_args([str(tmp_path / arguments[0]), *arguments[1:]]), world=WORLD)


def test_videos_that_one_lacks_are_told(raw):
    fewer = renamed(raw, "fewer", videos={"w": raw.videos["w"]})
    assert describe_fusion([raw, fewer]) == ["a run, step 3 has 2 videos that not all others have: two words, v"]
    assert describe_fusion([raw, raw]) == []
