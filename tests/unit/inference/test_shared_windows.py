"""Models that were trained with windows shared by several ranks, used by one process, which takes whole windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adatad_ds.data.features.folder import read_description
from adatad_ds.distributed.world import World
from adatad_ds.inference.evaluation import evaluate
from adatad_ds.inference.feature_job import Job, extract, open_source
from adatad_ds.inference.trained_model import find_trained
from adatad_ds.predict import load_detector
from tests.support.exports import make_export
from tests.support.videos import write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of such a run, and a video."""
    write_video(tmp_path / "a.mp4", frames=40, fps=10, width=64, height=48)
    entry = {"subset": "validation", "duration": 4.0, "annotations": [{"segment": [1.0, 2.0], "label": "grow"}]}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"a": entry}}))
    places = {"data__annotations": tmp_path / "annotations.json", "data__videos": tmp_path}
    make_export(tmp_path / "mine.safetensors", parallel__temporal=2, **places)
    return tmp_path


def test_predicted_with(folder):
    assert load_detector(folder / "mine.safetensors").detect(folder / "a.mp4")


@pytest.mark.slow
def test_evaluated(folder):
    world = World(rank=0, size=1, device=torch.device("cpu"))
    evaluate(find_trained(folder / "mine.safetensors"), output=folder / "out", world=world)
    assert json.loads((folder / "out/detections.json").read_text())["results"]["a"]


def test_extracted_with(folder):
    source = open_source(recipe=None, checkpoint=folder / "mine.safetensors", overrides=())
    videos = {"a": folder / "a.mp4"}
    job = Job(out=folder / "features", videos=videos, snippet=None, dtype="float32", share=0, shares=1)
    assert extract(source, job, report=print, bar=False).complete
    assert set(read_description(folder / "features").videos or ()) == {"a"}
