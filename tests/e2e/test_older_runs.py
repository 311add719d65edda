"""Runs, checkpoints and exports of older versions evaluate and resume as they did.

run_of_edad556.tar.xz was made at commit edad556, before every module moved, on the CPU: `run`, one of two epochs of a
small detector on the generated videos of `longer_videos`; `export`, its export; `detections.json`, of its evaluation;
`losses.json`, by step, of a run that went on to the end. Made anew, at that commit, when the generated videos changed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.support.launch import finish, launched, losses

ARCHIVE = Path(__file__).with_name("run_of_edad556.tar.xz")
SINCE = {"train.ema_warmup": "none"}  # settings that the version did not have


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not before Python 3.11.4
        archive.extractall(tmp_path / "older")
    return tmp_path / "older"


def options(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["run", "export.safetensors"])
def test_evaluates_as_it_did(model, older, longer_videos, tmp_path):
    places = {"data.annotations": longer_videos / "annotations.json", "data.videos": longer_videos / "videos"}
    command = ["adatad_ds/evaluate.py", str(older / model), "--output", str(tmp_path), *options(places)]
    finish(launched("pool", 1, command))
    found, expected = (json.loads((folder / "detections.json").read_text())["results"] for folder in (tmp_path, older))
    assert found.keys() == expected.keys()
    for video, records in expected.items():
        assert [record["label"] for record in found[video]] == [record["label"] for record in records]
        for record, before in zip(found[video], records, strict=True):
            assert record["segment"] == pytest.approx(before["segment"], abs=1e-3)
            assert record["score"] == pytest.approx(before["score"], rel=1e-3)


@pytest.mark.slow
def test_goes_on_as_it_would_have(older, longer_videos):
    run, expected = older / "run", json.loads((older / "losses.json").read_text())
    config = json.loads((run / "config.json").read_text())
    settings = {f"{section}.{key}": value for section, keys in config.items() for key, value in (keys or {}).items()}
    recipe = {name: json.dumps(value) for name, value in settings.items() if value is not None}
    places = {"data.annotations": longer_videos / "annotations.json", "data.videos": longer_videos / "videos"}
    changes = options(recipe | places | SINCE | {"train.stop_epoch": 2})
    command = ["adatad_ds/train.py", "--recipe", "quickstart", "--deepspeed_config", "ds_configs/zero2.json"]
    finish(launched("pool", 1, [*command, "--run-dir", str(run), "--resume", "auto", *changes]))
    assert losses(run) == pytest.approx({int(step): loss for step, loss in expected.items()}, rel=1e-4)
