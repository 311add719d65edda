"""Generated videos: reproducible, annotated as they move, real files."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from adatad_ds.data.annotations import load_annotations
from adatad_ds.data.decoding import frames
from adatad_ds.data.decoding.video import probe
from adatad_ds.data.generated.folders import generate_videos
from adatad_ds.data.generated.scenery import ANGLE, HEIGHT, LIGHT, SCALE, WIDTH, X, Y
from adatad_ds.data.generated.videos import CLASSES, annotation, generator, make_video, move, random_pose, write_video
from adatad_ds.errors import ConfigError

read_frames = partial(frames.read_frames, scaling="antialias")


def test_same_seed_same_video_and_no_stream_repeats_another():
    def first(purpose, seed, index):
        return next(make_video(generator(purpose, seed, index)).frames())

    assert (first("training", 1, 0) == first("training", 1, 0)).all()
    for other in (("test", 1, 0), ("pretraining", 1, 0), ("training", 2, 0), ("training", 1, 1)):
        assert (first("training", 1, 0) != first(*other)).any()


@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="exact with AVX2 and AVX-512 only")
def test_the_same_on_every_machine():
    """Else the figures that were reached with them are of other videos; NumPy's sines in fp32 differ."""
    videos = [make_video(generator("test", 9, index)) for index in range(8)]
    shown = b"".join(frame.tobytes() for video in videos for frame in islice(video.frames(), 4))
    assert hashlib.sha256(shown).hexdigest()[:8] == "b43de46d"


def test_videos_are_untrimmed_and_cover_all_classes():
    videos = [make_video(generator("training", 3, index)) for index in range(24)]
    assert {action.label for video in videos for action in video.actions} == set(CLASSES)
    assert len({video.fps for video in videos}) > 1
    assert len({video.frame_count for video in videos}) > 12
    for video in videos:
        busy = np.zeros(video.frame_count, bool)
        for action in video.actions:
            assert 0 <= action.start_sec < action.end_sec <= video.duration_sec
            busy[round(action.start_sec * video.fps) : round(action.end_sec * video.fps)] = True
        assert not busy.all()
        assert len(video.scene.looks) > 1  # distractors


def test_actions_move_as_they_are_called():
    rng = np.random.default_rng(0)
    for kind, column, sign in (("left", X, -1), ("right", X, 1), ("up", Y, -1), ("grow", SCALE, 1)):
        path = move(rng, kind, random_pose(rng), frames=40, fps=10)
        steps = np.sign(np.diff(path[:, column]))
        assert (steps == sign).mean() > 0.8  # but for the few jumps back to where a stroke starts
        others = [other for other in (X, Y, SCALE, ANGLE, LIGHT) if other != column]
        assert (np.ptp(path[:, others], axis=0) == 0).all()


@pytest.mark.slow
def test_written_file_is_what_was_drawn(tmp_path):
    video = make_video(generator("test", 5, 0))
    path = tmp_path / "v.mp4"
    write_video(video, path)
    info = probe(path)
    assert (info.num_frames, info.width, info.height) == (video.frame_count, WIDTH, HEIGHT)
    assert info.fps == video.fps
    frames = read_frames(path, np.arange(5), short_side=HEIGHT, backend="pyav")
    drawn = [frame for frame, _ in zip(video.frames(), range(5), strict=False)]
    assert np.abs(frames.astype(float) - np.stack(drawn)).mean() < 8  # lossy, but the same picture


def test_annotations_are_accepted(tmp_path):
    database = {f"v{i}": annotation(make_video(generator("training", 1, i)), subset="training") for i in range(3)}
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    annotations, reports = load_annotations(tmp_path / "a.json", subset="training")
    assert len(annotations.videos) == 3
    assert reports == []


@pytest.mark.slow
def test_lengths_can_be_chosen(tmp_path):
    def durations():
        database = json.loads((tmp_path / "annotations.json").read_text())["database"]
        return [video["duration"] for video in database.values()]

    made = partial(generate_videos, tmp_path, train=3, test=1, seed=2, workers=1)
    made(duration_sec=(2, 3))
    assert all(1.8 <= duration <= 3 for duration in durations())  # whole frames
    (tmp_path / "labels.csv").unlink()  # as of earlier versions
    assert made(duration_sec=(2, 3)) == f"{tmp_path} is complete"
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = [(row["file"], float(row["start"]), float(row["end"]), row["label"]) for row in csv.DictReader(file)]
    database = json.loads((tmp_path / "annotations.json").read_text())["database"]
    assert rows == [
        (f"{name}.mp4", *action["segment"], action["label"])
        for name, video in database.items()
        for action in video["annotations"]
    ]
    made(duration_sec=(3, 4))  # another data set
    assert all(2.8 <= duration <= 4 for duration in durations())
    for seconds in ((1, 3), (4, 3), (3, math.inf), (math.nan, 3)):
        with pytest.raises(ConfigError, match="give the shortest and the longest video"):
            made(duration_sec=seconds)
