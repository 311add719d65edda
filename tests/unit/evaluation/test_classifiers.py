"""External classifiers: their files, and detections fused with their scores in loops."""

from __future__ import annotations

import json
import math

import pytest
import torch

from adatad_ds.config.loading import from_dict
from adatad_ds.config.schema import Config, TestConfig
from adatad_ds.data.annotations import Action, Video
from adatad_ds.detection.decoding import Candidates
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.evaluation.candidates_file import VideoCandidates
from adatad_ds.evaluation.external_classifier import fuse, read_video_scores
from adatad_ds.inference.evaluation import evaluate
from adatad_ds.inference.trained_model import find_trained
from adatad_ds.tasks.detection_pipeline import external_scores, finish, measure
from tests.support.exports import make_export
from tests.support.videos import write_video

CLASSES = ["dance", "run", "swim"]
SCORES = {"one": [0.1, 0.7, 0.2], "v_two": [0.5, 0.0, 0.5]}
VIDEOS = ("v_one", "v_two")
PLAIN = {"results": SCORES, "class": CLASSES}


def candidates(rows: list[tuple[float, float, float]]) -> Candidates:
    return Candidates(
        segments_sec=torch.tensor([row[:2] for row in rows]).reshape(-1, 2),
        scores=torch.tensor([row[2] for row in rows]),
        labels=torch.zeros(len(rows), dtype=torch.int64),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.json"


def read(path, content, *, layout="cuhk", topk=2, videos=VIDEOS, labels=("run", "swim")):
    path.write_text(json.dumps(content))
    return read_video_scores(path, layout=layout, topk=topk, videos=videos, labels=labels)


@pytest.mark.parametrize("layout", ["cuhk", "plain", "tcanet"])
def test_fused_detection_by_detection(path, layout):
    content = PLAIN
    if layout == "tcanet":
        content = {"results": {video: [scores] for video, scores in SCORES.items()}, "class": CLASSES}
    external = read(path, content, layout=layout)
    rows = [(0.0, 4.0, 0.9), (1.0, 6.0, 0.5), (2.0, 3.0, 0.125)]
    fused = fuse(candidates(rows), "v_one", external)

    scores = SCORES["one"]
    if layout == "tcanet":
        total = sum(math.exp(score) for score in scores)
        scores = [2 * math.exp(score) / total for score in scores]
    expected = []
    for start, end, score in rows:
        for label in (1, 2):  # run, swim
            product = score * scores[label]
            expected.append((start, end, math.sqrt(product) if layout == "plain" else product, label))
    expected.sort(key=lambda row: -row[2])
    assert fused.segments_sec.tolist() == [list(row[:2]) for row in expected]
    assert fused.scores.tolist() == pytest.approx([row[2] for row in expected])
    assert [external.classes[label] for label in fused.labels] == [CLASSES[row[3]] for row in expected]


def test_topk_and_ties(path):
    one = candidates([(0.0, 4.0, 0.8)])
    assert fuse(one, "v_two", read(path, PLAIN, topk=1)).labels.tolist() == [0]
    assert fuse(one, "v_two", read(path, PLAIN)).labels.tolist() == [0, 2]
    assert fuse(one, "v_two", read(path, PLAIN, topk=9)).labels.tolist() == [0, 2, 1]
    assert len(fuse(candidates([]), "v_two", read(path, PLAIN))) == 0


def test_other_plain_layouts(path):
    expected = read(path, PLAIN, layout="plain")
    records = {
        video: [{"label": label, "score": score} for label, score in zip(CLASSES, scores, strict=True) if score]
        for video, scores in SCORES.items()
    }
    contents = ({"results": SCORES, "classes": CLASSES}, {"results": records}, {"results": records, "class": CLASSES})
    for content in contents:
        other = read(path, content, layout="plain")
        assert other.classes == expected.classes
        assert {video: list(scores) for video, scores in other.scores.items()} == {
            "v_one": SCORES["one"],
            "v_two": SCORES["v_two"],
        }


def test_classes_in_another_form_of_unicode_are_the_annotated_ones(path):
    ours, theirs = "h\u00f6her", "ho\u0308her"
    records = {video: [{"label": theirs, "score": 0.5}] for video in SCORES}
    for content in ({"results": SCORES, "class": ["dance", "run", theirs]}, {"results": records, "class": [theirs]}):
        external = read(path, content, layout="plain", labels=(ours,))
        assert external.classes[-1] == ours
        assert external.scores["v_two"][-1] == 0.5


@pytest.mark.parametrize(
    ("content", "layout", "message"),
    [
        ([1], "cuhk", "must hold"),
        ({"results": {"v": 1}}, "cuhk", "must hold"),
        ({"results": SCORES}, "cuhk", "does not name its classes"),
        ({"results": SCORES, "class": "run"}, "plain", "must be a list of names"),
        (
            {"results": SCORES, "class": ["dance", "running", "swim"]},
            "cuhk",
            "1 annotated labels are not among the classes.*: run",
        ),
        ({"results": SCORES, "class": [*CLASSES, "x"]}, "cuhk", "4 numbers >= 0 per video; different in v_one; v_two"),
        ({"results": SCORES | {"one": [-1, 0, 1]}, "class": CLASSES}, "plain", "different in v_one$"),
        ({"results": SCORES | {"one": ["x", 0, 1]}, "class": CLASSES}, "cuhk", "different in v_one$"),
        (PLAIN, "tcanet", "one list of 3 numbers per video; different in v_one; v_two"),
        ({"results": {"one": [[1, 2, 3]] * 2, "two": [[1, 2, 3]]}, "class": CLASSES}, "tcanet", "different in v_one$"),
        ({"results": {"one": [1], "two": [[1, 2, 3]]}, "class": CLASSES}, "tcanet", "different in v_one$"),
    ],
)
def test_faults_of_files(path, content, layout, message):
    with pytest.raises(DataError, match=message):
        read(path, content, layout=layout)


@pytest.mark.slow
def test_the_shown_score_stays_that_of_the_detector_alone(path, tmp_path):
    """Prediction knows no classifier of other videos."""
    actions = [{"segment": [start, start + 1.0], "label": "run"} for start in range(4)]
    entry = {"subset": "validation", "duration": 4.0, "annotations": actions}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"one": entry}}))
    write_video(tmp_path / "one.mp4", frames=40, fps=10, width=64, height=48)
    places = {"data__annotations": tmp_path / "annotations.json", "data__videos": tmp_path}
    export = make_export(tmp_path / "mine.safetensors", data__class_agnostic="true", test__tiou="(0.1,)", **places)
    path.write_text(json.dumps(PLAIN))
    world = World(rank=0, size=1, device=torch.device("cpu"))
    for overrides, known in (([f"test.external_scores={path}"], False), ([], True)):
        evaluate(find_trained(export, overrides=overrides), output=tmp_path / "out", world=world)
        assert "best_F1@0.1" in json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert (find_trained(export).operating_point is not None) == known


def test_missing_videos_are_named(path):
    with pytest.raises(DataError, match=r"no scores of 12 of 14 videos: v_0; .*; v_9; and 2 more"):
        read(path, PLAIN, videos=[*VIDEOS, *(f"v_{i}" for i in range(12))])
    with pytest.raises(DataError, match="cannot read"):
        read_video_scores("nowhere.json", layout="cuhk", topk=2, videos=VIDEOS, labels=())


def test_a_class_agnostic_detector_is_measured_by_real_labels(path):
    path.write_text(json.dumps(PLAIN))
    config = Config(test=TestConfig(external_scores=str(path), tiou=(0.5,)))
    videos = [
        Video("v_one", "validation", 20.0, None, None, (Action(0.0, 4.0, "run"),)),
        Video("v_two", "validation", 20.0, None, None, (Action(5.0, 9.0, "swim"), Action(12.0, 20.0, "dance"))),
    ]
    found = {
        "v_one": VideoCandidates(candidates([(-1.0, 4.0, 0.9)]), duration_sec=20.0),
        "v_two": VideoCandidates(candidates([(5.0, 9.0, 0.8), (12.0, 22.0, 0.6)]), duration_sec=20.0),
    }
    external = external_scores(config, videos=videos, classes=("action",))
    world = World(rank=0, size=1, device=torch.device("cpu"))
    names = [video.name for video in videos]
    results = finish(found, videos=names, classes=("action",), config=config, world=world, external=external)
    assert results["v_one"] == [
        {"segment": [0.0, 4.0], "label": "run", "score": 0.63},
        {"segment": [0.0, 4.0], "label": "swim", "score": 0.18},
    ]
    assert {record["label"] for record in results["v_two"]} == {"dance", "swim"}
    metrics = measure(results, videos=videos, config=config)
    assert metrics.classes == ("dance", "run", "swim")
    assert metrics.ap[0].tolist() == [
        0.5,
        1.0,
        1.0,
    ]  # the wrong class of a video's best two costs dance its first place

    with pytest.raises(DataError, match="class-agnostic detector its classes, but this one has 3"):
        external_scores(config, videos=videos, classes=CLASSES)
    assert external_scores(Config(), videos=videos, classes=CLASSES) is None
    with pytest.raises(ConfigError, match=r"external_topk must be in \[1, inf\)"):
        from_dict({"test": {"external_topk": 0}})
