"""Other heads end to end: trained on frames, pictures drawn, evaluated, exported, and used on files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.launch import SMALL, finish, launched, train_command


def tool(*words: object) -> str:
    return finish(launched("pool", 1, [str(word) for word in words]))


def results_of(folder: Path, name: str = "detections.json") -> dict[str, list[dict[str, Any]]]:
    return json.loads((folder / name).read_text())["results"]


def assert_same(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> None:
    assert list(found) == list(expected)
    for name, records in expected.items():
        assert len(found[name]) == len(records) > 20
        assert [record["label"] for record in found[name]] == [record["label"] for record in records]
        ours, theirs = ([[*each["segment"], each["score"]] for each in part] for part in (found[name], records))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arch"), [("tridet", "[1,1,2]"), ("temporalmaxer", "[1,0,2]")])
def test_a_run_and_its_export_detect_the_same(name, arch, few_videos, tmp_path):
    """Evaluation of the run, prediction of its export on the files, and the run averaged with itself."""
    run, export = tmp_path / "run", tmp_path / "export.safetensors"
    settings = SMALL | {"head.name": name, "head.arch": arch, "train.stop_epoch": 1, "train.eval_from_epoch": 1}
    settings |= {"head.regression_range": "[[0,4],[4,8],[8,10000]]", "train.eval_pictures": "true"}
    # One window at a time: what shares a batch changes the last bits.
    settings |= {"test.batch": 1}
    finish(train_command(data=few_videos, run=run, ranks=1, ds_config="zero2", settings=settings))
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert {"pictures/timelines", "pictures/precision_recall"} <= set(events.Tags()["images"])

    tool("adatad_ds/evaluate.py", run, "--output", tmp_path / "evaluated")
    expected = results_of(tmp_path / "evaluated")
    assert (tmp_path / "evaluated" / "detections.png").stat().st_size > 1000
    tool("-m", "adatad_ds", "export", run, "--out", export)
    files = [few_videos / "videos" / f"{video}.mp4" for video in expected]
    predicted = tmp_path / "predicted"
    tool("adatad_ds/predict.py", *files, "--checkpoint", export, "-o", predicted, "--html", "--score", 0)
    assert_same(results_of(predicted, "results.json"), expected)
    assert {path.suffix for path in predicted.rglob("*")} >= {".csv", ".png", ".srt", ".vtt", ".html"}

    twice = tool("adatad_ds/evaluate.py", run, export, "--output", tmp_path / "twice")
    assert "step_00000001 + export.safetensors on 2 videos" in twice
    assert_same(results_of(tmp_path / "twice"), expected)
