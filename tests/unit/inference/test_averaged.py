"""Detectors averaged point by point, beside OpenTAD's own functions.

EXPECTED is what sming256/OpenTAD's `save_predictions` and `load_predictions` with a `fuse_list` of three folders, at
3dd7b03, and the selection of the best 10 gave for the outputs drawn below.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds.config.loading import override
from adatad_ds.detection.decoding import decode_segments, select_candidates
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.errors import ConfigError
from adatad_ds.inference.averaged import AveragedOutputs, check_same_points
from adatad_ds.inference.trained_model import find_trained
from adatad_ds.models.heads.actionformer import PointPredictions
from tests.support.exports import make_export

EXPECTED = {
    "segments": [
        [3.848513, 7.301012],
        [-3.984154, 3.795293],
        [5.364619, 8.346474],
        [-1.786924, 1.774944],
        [3.848513, 7.301012],
        [-0.143183, 2.909401],
        [0.293997, 8.510659],
        [-0.143183, 2.909401],
        [1.090471, 4.76651],
        [3.621821, 6.213913],
    ],
    "scores": [0.851377, 0.792325, 0.779344, 0.747682, 0.740348, 0.706933, 0.689941, 0.670401, 0.667075, 0.66408],
    "labels": [0, 2, 1, 0, 2, 1, 2, 2, 1, 1],
}
POINTS = torch.tensor([(time, 0, 99, 1) for time in range(8)] + [(time, 0, 99, 2) for time in range(0, 8, 2)]).float()


def drawn(seed: int) -> PointPredictions:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(2 * rng.normal(size=(1, 12, 3)).astype(np.float32))
    distances = torch.from_numpy(rng.uniform(0, 3, size=(1, 12, 2)).astype(np.float32))
    return PointPredictions(logits, distances, torch.ones(1, 12, dtype=torch.bool))


def test_as_opentads_fuse_list():
    outputs = AveragedOutputs([drawn(seed) for seed in (1, 2, 3)])

    def segments_of(point: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return decode_segments(POINTS[point], outputs.distances_of(torch.zeros_like(point), point, label))

    found = select_candidates(
        scores=outputs.class_logits.sigmoid()[0],
        valid=outputs.valid[0],
        segments_of=segments_of,
        grid=TimeGrid(origin_sec=0.0, step_sec=1.0, duration_sec=99.0),
        score_thresh=0.001,
        topk=10,
    )
    assert found.labels.tolist() == EXPECTED["labels"]
    np.testing.assert_allclose(found.scores, EXPECTED["scores"], atol=2e-6)
    np.testing.assert_allclose(found.segments_sec, EXPECTED["segments"], atol=2e-6)


def test_scores_of_0_and_1_stay():
    sure = drawn(1)._replace(class_logits=torch.tensor([-200.0, 200.0, 0.0]).expand(1, 12, 3))
    assert AveragedOutputs([sure, sure]).class_logits.sigmoid()[0, 0].tolist() == [0, 1, 0.5]


def test_other_points_are_refused(tmp_path: Path):
    trained = find_trained(make_export(tmp_path / "mine.safetensors"))
    check_same_points(trained, replace(trained, config=override(trained.config, ["data.workers=7", "head.width=8"])))
    longer = replace(trained, config=override(trained.config, ["data.window_size=128"]))
    with pytest.raises(ConfigError, match=r"it has data\.window_size 128, not \d+\. Fuse their candidates"):
        check_same_points(trained, longer)
    with pytest.raises(ConfigError, match=r"it has classes \('other',\), not"):
        check_same_points(trained, replace(trained, classes=("other",)))
