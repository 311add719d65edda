"""Detectors averaged point by point, beside OpenTAD's own functions, and by hand where they read different files.

EXPECTED is what sming256/OpenTAD's `save_predictions` and `load_predictions` with a `fuse_list` of three folders, at
3dd7b03, and the selection of the best 10 gave for the outputs drawn below.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adatad_ds.config.loading import override
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.detection.decoding import Candidates, decode_segments, select_candidates
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.candidates_file import VideoCandidates, read_candidates
from adatad_ds.inference.averaged import AlignedWindows, AveragedOutputs, check_same_points
from adatad_ds.inference.evaluation import evaluate
from adatad_ds.inference.trained_model import find_trained, load_model
from adatad_ds.models.detector import detector_points
from adatad_ds.models.heads.actionformer import PointPredictions
from adatad_ds.tasks.detection import open_test_windows
from adatad_ds.tasks.detection_pipeline import finish
from tests.support.exports import make_export
from tests.support.launch import SMALL

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
    for change in ("data.window_size=128", "head.max_len=128", "head.point_offset=true"):
        key, _, value = change.partition("=")
        other = replace(trained, config=override(trained.config, [change]))
        with pytest.raises(ConfigError, match=rf"it has {re.escape(key)} {value.title()}, not \w+\. Fuse their cand"):
            check_same_points(trained, other)
    windows = replace(trained, config=override(trained.config, ["head.attn_window=127"]))
    check_same_points(trained, windows)  # of whole videos alone it decides the padding
    trained, windows = (
        replace(each, config=replace(each.config, data=replace(each.config.data, test_whole_videos=True)))
        for each in (trained, windows)
    )
    with pytest.raises(ConfigError, match=r"it has padding of whole videos \d+, not \d+\. Fuse their candidates"):
        check_same_points(trained, windows)
    with pytest.raises(ConfigError, match=r"it has classes \('other',\), not"):
        check_same_points(trained, replace(trained, classes=("other",)))


FPS, STRIDE, WINDOW = 25.0, 5, 32
STEPS = {"long": 100, "short": 20, "window": 33}
Cut = tuple[list[torch.Tensor], torch.Tensor, TimeGrid]  # each model's input, valid steps, times of a window
WORLD = World(rank=0, size=1, device=torch.device("cpu"))
OF_FRAMES = ("data.resolution", "data.short_side_before_crop", "backbone.drop_path")
OF_FEATURES = {key: value for key, value in SMALL.items() if key not in OF_FRAMES}


def annotated(folder: Path) -> Path:
    """Videos as long as their features, without actions."""
    database = {
        name: {"subset": "validation", "duration": steps * STRIDE / FPS, "fps": FPS, "annotations": []}
        for name, steps in STEPS.items()
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    return path


def features(folder: Path, *, channels: int, more: Mapping[str, int] | None = None) -> Path:
    """Noise; of some videos, `more` steps than the annotation says."""
    folder.mkdir()
    for name, steps in STEPS.items():
        rng = np.random.default_rng([channels, steps])
        np.save(folder / f"{name}.npy", rng.normal(size=(steps + (more or {}).get(name, 0), channels)))
    return folder


def on_features(path: Path, *, annotation_file: Path, folder: Path, channels: int, **changes: object) -> Path:
    settings = {
        "annotations": annotation_file,
        "features": folder,
        "window_size": WINDOW,
        "feature_stride_frames": STRIDE,
    }
    small = OF_FEATURES | {f"data.{key}": value for key, value in settings.items()}
    small["backbone.feature_channels"] = channels
    return make_export(path, classes=("a", "b", "c"), recipe="quickstart_features", small=small, **changes)


@pytest.fixture
def annotation_file(tmp_path: Path) -> Path:
    return annotated(tmp_path)


@pytest.fixture
def pair(annotation_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Detectors with other heads on other features, which differ by a step in two videos; named alike."""
    ours = features(tmp_path / "ours", channels=6, more={"long": 1})
    theirs = features(tmp_path / "theirs", channels=9, more={"short": -1})
    (tmp_path / "second").mkdir()
    return (
        on_features(tmp_path / "one.safetensors", annotation_file=annotation_file, folder=ours, channels=6),
        on_features(
            tmp_path / "second" / "one.safetensors",
            annotation_file=annotation_file,
            folder=theirs,
            channels=9,
            head__name="tridet",
        ),
    )


def evaluated(*paths: Path, output: Path) -> tuple[dict[str, VideoCandidates], dict[str, list[dict[str, Any]]]]:
    """Candidates and detections of models that are averaged."""
    first, *others = map(find_trained, paths)
    evaluate(first, others=others, output=output, world=WORLD, save_candidates=True)
    results = json.loads((output / "detections.json").read_text())["results"]
    return dict(read_candidates(output / "raw.npz").videos), results


def averaged_by_hand(paths: Sequence[Path], windows: Mapping[str, Sequence[Cut]]) -> dict[str, VideoCandidates]:
    """Outputs of each model on its own input, averaged and decoded at every point."""
    models = [find_trained(path) for path in paths]
    classes = len(models[0].classes)
    detectors = [load_model(trained, num_classes=classes) for trained in models]
    points = detector_points(models[0].config, device=WORLD.device)
    place, label = (
        each.flatten() for each in torch.meshgrid(*map(torch.arange, (len(points), classes)), indexing="ij")
    )
    time, stride = points[place][:, 0], points[place][:, 3]
    found = {}
    for name, cuts in windows.items():
        rows = []
        for inputs, valid, grid in cuts:
            outputs = [detector(each[None], valid[None]) for detector, each in zip(detectors, inputs, strict=True)]
            score = torch.stack([each.class_logits[0].sigmoid().flatten() for each in outputs]).mean(dim=0)
            distances = torch.stack([each.distances_of(0 * place, place, label) for each in outputs])
            left, right = distances.mean(dim=0).T
            ends = (grid.to_sec(end) for end in (time - left * stride, time + right * stride))
            inside = outputs[0].valid[0, place] & (score > 0.001)
            rows.append(torch.stack([*ends, score, label], dim=1)[inside])
        segments, scores, labels = torch.cat(rows).split([2, 1, 1], dim=1)
        candidates = Candidates(segments_sec=segments, scores=scores[:, 0], labels=labels[:, 0].long())
        found[name] = VideoCandidates(candidates, duration_sec=cuts[0][2].duration_sec)
    return found


def cut_by_hand(folders: Sequence[Path]) -> dict[str, list[Cut]]:
    """Windows of each video's features, which ends where the shorter ones do."""
    windows = {}
    for name, annotated_steps in STEPS.items():
        arrays = [torch.from_numpy(np.load(folder / f"{name}.npy")).float() for folder in folders]
        steps = min(map(len, arrays))
        last = max(0, steps - WINDOW)
        windows[name] = []
        for start in [*range(0, last, WINDOW // 2), last]:
            inputs = [torch.zeros(WINDOW, array.shape[1]) for array in arrays]
            for window, array in zip(inputs, arrays, strict=True):
                cut = array[start : min(start + WINDOW, steps)]
                window[: len(cut)] = cut
            step_sec = STRIDE / FPS
            grid = TimeGrid(origin_sec=start * step_sec, step_sec=step_sec, duration_sec=annotated_steps * step_sec)
            windows[name].append((inputs, torch.arange(WINDOW) < steps - start, grid))
    return windows


def in_order(found: VideoCandidates) -> np.ndarray:
    """Candidates (N, 4) by score."""
    candidates = found.candidates
    rows = torch.cat([candidates.segments_sec, candidates.scores[:, None], candidates.labels[:, None]], dim=1).numpy()
    return rows[np.lexsort(rows.T[[0, 3, 2]])]


def assert_same(found: Mapping[str, VideoCandidates], expected: Mapping[str, VideoCandidates]) -> None:
    assert found.keys() == expected.keys()
    for name, candidates in expected.items():
        np.testing.assert_allclose(in_order(found[name]), in_order(candidates), atol=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_each_reads_its_own_features(pair, tmp_path):
    found, results = evaluated(*pair, output=tmp_path / "out")
    by_hand = averaged_by_hand(pair, cut_by_hand([tmp_path / "ours", tmp_path / "theirs"]))
    assert_same(found, by_hand)
    config = find_trained(pair[0]).config
    expected = finish(by_hand, videos=list(STEPS), classes=("a", "b", "c"), config=config, world=WORLD)
    for name, records in expected.items():
        ours, theirs = ([[*each["segment"], each["score"]] for each in part] for part in (results[name], records))
        assert len(ours) > 20
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_copy_of_the_features_changes_nothing(annotation_file, tmp_path):
    folders = [features(tmp_path / "ours", channels=6), features(tmp_path / "copy", channels=6)]
    models = [
        on_features(
            tmp_path / f"{number}.safetensors", annotation_file=annotation_file, folder=folder, channels=6, **head
        )
        for number, (folder, head) in enumerate(
            [(folders[0], {}), (folders[0], {"head__width": 16}), (folders[1], {"head__width": 16})]
        )
    ]
    once, twice = (evaluated(models[0], other, output=tmp_path / other.stem) for other in models[1:])
    assert once[1] == twice[1]
    assert_same(twice[0], once[0])


@pytest.mark.slow
def test_what_is_tested_on_is_the_first_models(annotation_file, tmp_path):
    """Another one may have been trained where annotations had other names."""
    folders = [features(tmp_path / "ours", channels=6), features(tmp_path / "copy", channels=6)]
    moved = annotation_file.rename(tmp_path / "moved.json")
    one, *others = (
        on_features(tmp_path / f"{number}.safetensors", annotation_file=file, folder=folder, channels=6, **changes)
        for number, (file, folder, changes) in enumerate(
            [
                (moved, folders[0], {}),
                (moved, folders[1], {"head__width": 16}),
                (annotation_file, folders[1], {"head__width": 16, "data__test_subset": "val", "data__exclude": ["x"]}),
            ]
        )
    )
    results = [evaluated(one, other, output=tmp_path / other.stem)[1] for other in others]
    assert results[0] == results[1]


@pytest.mark.slow
@torch.no_grad()
def test_frames_beside_features(small_videos, tmp_path):
    """Windows of frames, of 2 a step, and of features of the same steps."""
    labelled = small_videos / "annotations.json"
    folder = tmp_path / "features"
    folder.mkdir()
    for name, video in json.loads(labelled.read_text())["database"].items():
        drawn = np.random.default_rng(video["frame"]).normal(size=(-(-video["frame"] // 4), 6))
        np.save(folder / f"{name}.npy", drawn)
    of_frames = {
        "data.annotations": labelled,
        "data.videos": small_videos / "videos",
        "data.frames_per_feature": 2,
        "data.feature_stride_frames": 4,
    }
    frames = make_export(tmp_path / "frames.safetensors", small=SMALL | of_frames)
    on = {"data.annotations": labelled, "data.features": folder, "data.feature_stride_frames": 4}
    on["backbone.feature_channels"] = 6
    beside = make_export(tmp_path / "beside.safetensors", recipe="quickstart_features", small=OF_FEATURES | on)
    found, _ = evaluated(frames, beside, output=tmp_path / "out")
    models = [find_trained(path) for path in (frames, beside)]
    readings = [open_test_windows(trained.config, classes=trained.classes) for trained in models]
    windows: dict[str, list[Cut]] = {}
    for number in range(len(readings[0])):
        ours, theirs = (reading[0, number] for reading in readings)
        windows.setdefault(ours.video, []).append(([ours.frames, theirs.frames], ours.valid, ours.grid))
    assert_same(found, averaged_by_hand((frames, beside), windows))


def test_what_one_cannot_read_has_no_detections(annotation_file, tmp_path):
    configs = []
    for name in ("ours", "theirs"):
        folder = features(tmp_path / name, channels=6)
        export = on_features(
            tmp_path / f"{name}.safetensors", annotation_file=annotation_file, folder=folder, channels=6
        )
        configs.append(find_trained(export).config)
    (tmp_path / "theirs" / "long.npy").write_bytes(b"cut short")
    ours, theirs = (open_test_windows(config) for config in configs)
    aligned = pickle.loads(pickle.dumps(AlignedWindows([("ours", ours), ("theirs", theirs)])))  # as workers get it
    collate = pickle.loads(pickle.dumps(aligned.collate))
    hurt = Damage(path="long.mp4", num_frames=500, fps=FPS, missing_sec=1.0)
    samples = aligned.__getitems__([(0, number) for number in range(len(aligned))])
    samples[0] = samples[0][0], replace(samples[0][1], damage=hurt)
    batch = collate(samples)
    assert batch.videos == ["long", "short", "window", "window"]
    assert batch.valid.sum(dim=1).tolist() == [0, 20, 32, 32]
    assert "theirs/long.npy" in (batch.errors[0] or "")
    assert batch.errors[1:] == [None] * 3
    assert batch.damage == [hurt, None, None, None]


def test_other_times_are_refused(pair, tmp_path):
    one = find_trained(pair[0])

    def refused(said: str, *, folder: Path, channels: int = 9, changes: tuple[str, ...] = ()) -> None:
        settings = [f"data.features={folder}", f"backbone.feature_channels={channels}", *changes]
        ours, theirs = (
            open_test_windows(config, classes=one.classes) for config in (one.config, override(one.config, settings))
        )
        with pytest.raises(ConfigError, match=f"^other cannot be averaged with one point by point: {said}. Fuse their"):
            AlignedWindows([("one", ours), ("other", theirs)])

    theirs = tmp_path / "theirs"
    refused(
        r"in long, its steps are 0\.2 s apart from 0\.08 s on, not 0\.2 s apart from 0 s on",
        folder=theirs,
        changes=("data.offset_frames=2",),
    )
    refused(
        r"in long, its steps are 0\.202 s apart from 0 s on, not 0\.2 s apart from 0 s on",
        folder=theirs,
        changes=("data.fixed_fps=24.75",),
    )
    refused(
        r"only one of them has features of short \(data\.exclude_file leaves them out\)",
        folder=features(tmp_path / "fewer", channels=9),
        changes=("data.exclude=[short]",),
    )
    cut = features(tmp_path / "cut", channels=9, more={"long": -7})
    refused("long has 93 steps, not 101", folder=cut)
