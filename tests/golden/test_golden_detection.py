"""Points, targets, suppression and metrics reproduce the reference implementation's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import HeadConfig
from adatad_ds.data.annotations import load_annotations
from adatad_ds.detection.decoding import clip_to_video, select_candidates
from adatad_ds.detection.points import assign_targets, make_points
from adatad_ds.detection.suppression import suppress
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.evaluation.detections_file import read_results, to_records
from adatad_ds.evaluation.metrics import evaluate_detections
from tests.support.golden import GOLDEN, needs_golden

pytestmark = needs_golden

SUPPRESSION = {
    "soft_multiclass": {
        "method": "gaussian",
        "sigma": 0.7,
        "min_score": 1e-3,
        "max_per_video": 200,
        "per_class": True,
        "voting_thresh": 0.0,
    },
    "hard_agnostic_vote": {
        "method": "hard",
        "sigma": 1.0,
        "min_score": 0.0,
        "max_per_video": 100,
        "per_class": False,
        "voting_thresh": 0.7,
    },
    "soft_agnostic_vote": {
        "method": "gaussian",
        "sigma": 0.5,
        "min_score": 0.0,
        "max_per_video": 100,
        "per_class": False,
        "voting_thresh": 0.9,
    },
}


def load(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return json.loads((GOLDEN / f"{case}.json").read_text()), dict(file)


@pytest.mark.parametrize("case", ["tia", "side"])
def test_points_and_targets(case):
    settings, golden = load(case)
    head = HeadConfig(arch=(2, 2, settings["config"]["levels"] - 1))
    points = make_points(
        level_lengths=[settings["config"]["T"] // stride for stride in head.strides],
        strides=head.strides,
        regression_ranges=((0, 4), (4, 8), (8, 16), (16, 10000)),
        point_offset=False,
        device=torch.device("cpu"),
    )
    assert (points.numpy() == golden["points"]).all()
    targets = assign_targets(
        points=points,
        valid=torch.from_numpy(np.concatenate([golden[f"fpn_mask{level}"] for level in range(4)], axis=1)),
        segments=[torch.from_numpy(golden[f"gt_segments{window}"]) for window in (0, 1)],
        labels=[torch.from_numpy(golden[f"gt_labels{window}"]) for window in (0, 1)],
        num_classes=settings["config"]["classes"],
        center_radius=1.5,
        filter_similar_gt=True,
    )
    assert (targets.classes.numpy() == golden["target_cls"]).all()
    background = golden["target_cls"].sum(-1) == 0  # where the reference leaves distances to whatever segment
    expected = np.where(background[..., None], 0, golden["target_reg"])
    np.testing.assert_allclose(targets.distances.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", SUPPRESSION)
@pytest.mark.parametrize("case", ["tia", "side"])
def test_detections(case, setting):
    settings, golden = load(case)
    classes = [f"class{index}" for index in range(settings["config"]["classes"])]
    for window, meta in enumerate(settings["metas"]):
        proposals = torch.from_numpy(golden[f"proposals{window}"])
        start_frame = meta["window_start_frame"] + meta["offset_frames"]
        candidates = select_candidates(
            scores=torch.from_numpy(golden[f"scores{window}"]),
            segments_of=lambda point, label, proposals=proposals: proposals[point],
            valid=torch.ones(len(proposals), dtype=torch.bool),
            grid=TimeGrid(
                origin_sec=start_frame / meta["fps"],
                step_sec=meta["snippet_stride"] / meta["fps"],
                duration_sec=meta["duration"],
            ),
            score_thresh=1e-3,
            topk=2000,
        )
        kept = clip_to_video(suppress(candidates, tiou=0.5, **SUPPRESSION[setting]), duration_sec=meta["duration"])
        records = to_records(kept, classes)
        expected = settings["detections"][setting][meta["video_name"]]
        assert [record["label"] for record in records] == [record["label"] for record in expected]
        for ours, theirs in zip(records, expected, strict=True):
            assert ours["segment"] == pytest.approx(theirs["segment"], abs=0.0101)  # one unit of the last digit
            assert ours["score"] == pytest.approx(theirs["score"], abs=0.000101)


@pytest.mark.parametrize(
    ("protocol", "thresholds"),
    [
        ("thumos", (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("anet", (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        ("epic", (0.1, 0.2, 0.3, 0.4, 0.5)),
    ],
)
def test_mean_average_precision_and_recall(protocol, thresholds):
    annotations, _ = load_annotations(GOLDEN.parent / "data" / "thumos14.json", subset="validation", as_published=True)
    truth = {
        video.name: [(action.start_sec, action.end_sec, action.label) for action in video.actions]
        for video in annotations.videos
    }
    results = read_results(GOLDEN / "map_predictions.json")
    actual = evaluate_detections(results, truth, tiou=thresholds, recall_topk=(1, 5)).to_dict()
    expected = json.loads((GOLDEN / "map_expected.json").read_text())[protocol]
    ours_alone = ("instance_recall", "best_F1")
    assert len([name for name in actual if not name.startswith(ours_alone)]) == len(expected)
    for name, value in expected.items():
        kind, *rest = name.split("@")
        ours = "@".join([kind, f"{float(rest[0]):g}", *rest[1:]]) if rest else kind
        assert actual[ours] == pytest.approx(value, abs=1e-4), name
