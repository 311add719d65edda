"""Submissions against hand-made ones and against pairs joined in loops."""

from __future__ import annotations

import json
import math
import zipfile

import numpy as np
import pytest

from adatad_ds.cli.commands import main
from adatad_ds.errors import DataError
from adatad_ds.evaluation.detections_file import write_results
from adatad_ds.evaluation.submissions import ActionPairing, ego4d_submission, epic_submission, read_class_ids
from tests.support.oracles import suppress, tiou

LEVELS = {"sls_pt": 2, "sls_tl": 3, "sls_td": 3}


def record(start: float, end: float, score: float, label: str) -> dict:
    return {"segment": [start, end], "label": label, "score": score}


def epic(verbs: dict, nouns: dict, *, verb_ids=(), noun_ids=(), levels=LEVELS, **pairing) -> dict:
    return epic_submission(
        verbs,
        nouns,
        verb_ids=dict(verb_ids),
        noun_ids=dict(noun_ids),
        pairing=ActionPairing(**pairing),
        **levels,
    )


def test_epic_by_hand():
    verbs = {"P01_11": [record(0, 10, 0.64, "verb_3"), record(50, 60, 0.9, "verb_96")], "P01_12": []}
    nouns = {
        "P01_11": [record(0, 8, 0.25, "id_012"), record(1, 10, 0.36, "299"), record(48, 50, 0.9, "noun_0")],
        "P01_12": [record(0, 8, 0.5, "1")],
    }
    submission = epic(verbs, nouns)
    assert {name: submission[name] for name in submission if name != "results"} == {
        "version": "0.2",
        "challenge": "action_detection",
        **LEVELS,
    }
    assert submission["results"] == {
        "P01_11": [
            {"verb": 3, "noun": 299, "action": "3,299", "score": 0.48, "segment": [0.5, 10.0]},
            {"verb": 3, "noun": 12, "action": "3,12", "score": 0.4, "segment": [0.0, 9.0]},
        ],
        "P01_12": [],
    }
    json.dumps(submission)
    assert len(epic(verbs, nouns, nouns_per_verb=1)["results"]["P01_11"]) == 1
    assert epic(verbs, nouns, verb_weight=1.0)["results"]["P01_11"][0]["score"] == 0.64


def test_epic_pair_by_pair():
    rng = np.random.default_rng(0)

    def detections(classes: int) -> list[dict]:
        starts = rng.uniform(0, 40, 30)
        return [
            record(float(s), float(s + rng.uniform(1, 10)), float(rng.random()), str(rng.integers(classes)))
            for s in starts
        ]

    verbs, nouns = detections(4), detections(5)
    rows = []
    for verb in verbs:
        near = [noun for noun in nouns if tiou(verb["segment"], noun["segment"]) >= 0.3]
        for noun in sorted(near, key=lambda record: -record["score"])[:3]:
            segment = [(a + b) / 2 for a, b in zip(verb["segment"], noun["segment"], strict=True)]
            label = int(verb["label"]) * 300 + int(noun["label"])
            rows.append((*segment, math.sqrt(verb["score"] * noun["score"]), label))
    expected = suppress(rows, method="gaussian", sigma=0.4, threshold=0, min_score=0.001, per_class=True)
    actual = epic({"v": verbs}, {"v": nouns}, tiou=0.3, nouns_per_verb=3)["results"]["v"]
    assert [entry["verb"] * 300 + entry["noun"] for entry in actual] == [row[3] for row in expected]
    np.testing.assert_allclose([entry["score"] for entry in actual], [row[2] for row in expected], atol=1e-4)
    np.testing.assert_allclose([entry["segment"] for entry in actual], [row[:2] for row in expected], atol=6e-3)


def test_epic_class_names(tmp_path):
    path = tmp_path / "EPIC_100_verb_classes.csv"
    path.write_text("id,key,instances\n0,take,\"['collect', 'take']\"\n7,put-on,[]\n")
    assert read_class_ids(path) == {"take": 0, "put-on": 7}
    submission = epic(
        {"v": [record(0, 1, 0.5, "put-on")]}, {"v": [record(0, 1, 0.5, "2")]}, verb_ids=read_class_ids(path)
    )
    assert submission["results"]["v"][0]["action"] == "7,2"
    path.write_text("name\ntake\n")
    with pytest.raises(DataError, match="columns id and key"):
        read_class_ids(path)


@pytest.mark.parametrize(
    ("verbs", "nouns", "levels", "message"),
    [
        ({"v": []}, {"w": []}, LEVELS, "different videos; only one file has v; w"),
        (
            {"v": [record(0, 1, 1, "wash")]},
            {"v": []},
            LEVELS,
            "1 labels of the verb .* 0 to 96: wash. .*--verb-classes",
        ),
        ({"v": []}, {"v": [record(0, 1, 1, "300")]}, LEVELS, "noun detections are not class ids from 0 to 299: 300"),
        ({"v": []}, {"v": []}, LEVELS | {"sls_td": 6}, "levels must be 0 to 5, not sls_td = 6"),
    ],
)
def test_epic_faults(verbs, nouns, levels, message):
    with pytest.raises(DataError, match=message):
        epic(verbs, nouns, levels=levels)


def test_ego4d_by_hand():
    detections = {"clip": [record(0, 1, 0.2, "wash_hands"), record(2, 3, 0.7, "cook")]}
    retrievals = {"clip": [record(0, 1, 0.1, "wash_hands")]}
    submission = ego4d_submission(detections, retrievals)
    assert submission == {
        "version": "1.0",
        "challenge": "ego4d_moment_queries",
        "detect_results": {"clip": detections["clip"][::-1]},  # the best first
        "retrieve_results": retrievals,
    }
    with pytest.raises(DataError, match="only one file has other"):
        ego4d_submission(detections, retrievals | {"other": []})


def test_a_submission_is_of_the_official_test_videos(tmp_path, capsys):
    test_file = tmp_path / "EPIC_100_test_timestamps.csv"
    test_file.write_text("narration_id,video_id\nP01_11_0,P01_11\nP01_11_1,P01_11\nP02_09_0,P02_09\n")
    for kind in ("verb", "noun"):
        write_results(tmp_path / f"{kind}.json", {"P01_11.MP4": [record(0, 1, 0.5, "1")]})
    files = [f"--verb={tmp_path}/verb.json", f"--noun={tmp_path}/noun.json", f"--output={tmp_path}/test.json"]
    assert main(["submission", "epic", *files, f"--test-file={test_file}"]) == 0
    results = json.loads((tmp_path / "test.json").read_text())["results"]
    assert {video: len(records) for video, records in results.items()} == {"P01_11": 1, "P02_09": 0}
    assert "noun.json lacks 1 of 2 test videos, which get none: P02_09" in capsys.readouterr().out
    write_results(tmp_path / "noun.json", {"P01_11": [], "P03_01": []})
    assert main(["submission", "epic", *files, f"--test-file={test_file}"]) == 2
    assert "1 of 2 videos with detections are not in the challenge's test file: P03_01" in capsys.readouterr().err
    write_results(tmp_path / "noun.json", {"P01_11": [], "P01_11.MP4": []})
    assert main(["submission", "epic", *files, f"--test-file={test_file}"]) == 2
    assert "the detections name these videos in two ways: P01_11" in capsys.readouterr().err

    clip = {
        "clip_uid": "c",
        "video_start_sec": 0.0,
        "video_end_sec": 8.0,
        "video_start_frame": 0,
        "video_end_frame": 240,
    }
    moments = tmp_path / "moments_test_unannotated.json"
    moments.write_text(json.dumps({"videos": [{"video_uid": "u", "split": "test", "clips": [clip]}]}))
    write_results(tmp_path / "mq.json", {"c": [record(0, 1, 0.5, "cook")]})
    words = [f"--detections={tmp_path}/mq.json", f"--output={tmp_path}/mq_out.json", f"--test-file={moments}"]
    assert main(["submission", "ego4d", *words]) == 0
    assert list(json.loads((tmp_path / "mq_out.json").read_text())["detect_results"]) == ["c"]


def test_command_line(tmp_path, capsys):
    for kind, label in (("verb", "1"), ("noun", "22"), ("both", "cook")):
        write_results(tmp_path / f"{kind}.json", {"v": [record(0, 1, 0.5, label)]})
    files = [f"--verb={tmp_path}/verb.json", f"--noun={tmp_path}/noun.json", f"--output={tmp_path}/sub/my.zip"]
    assert main(["submission", "epic", *files]) == 0
    assert "1 records of 1 videos" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "sub" / "my.zip") as archive:
        assert archive.namelist() == ["test.json"]
        assert json.loads(archive.read("test.json"))["results"]["v"][0]["action"] == "1,22"
    assert main(["submission", "ego4d", f"--detections={tmp_path}/both.json", f"--output={tmp_path}/ego4d.json"]) == 0
    content = json.loads((tmp_path / "ego4d.json").read_text())
    assert content["detect_results"] == content["retrieve_results"] == {"v": [record(0, 1, 0.5, "cook")]}
    assert main(["submission", "ego4d", f"--detections={tmp_path}/none.json", f"--output={tmp_path}/x"]) == 2
    assert "error: cannot read the detections" in capsys.readouterr().err
