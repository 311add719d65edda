"""From what each dataset's owners publish to a trained step: generated videos under the owners' names and layout,
adatad-ds prepare-data, then the dataset's recipe for two steps. Real commands, real decoding; a tiny backbone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.recipes.catalog import find_recipe
from tests.support.launch import finish, launched, losses

TINY = {
    "backbone.name": "tiny",
    "backbone.weights": "adatad_ds/weights/tiny.safetensors",
    "backbone.adapter_blocks": "null",
    "data.window_size": 64,
    "data.resolution": 32,
    "data.short_side_before_crop": 36,
    "data.workers": 0,
    "head.width": 32,
    "train.global_batch": 1,
    "train.precision": "fp32",
    "train.warmup_epochs": 0,
    "train.schedule_epochs": 1,
    "train.stop_epoch": 1,
    "train.eval_from_epoch": 1,
    "train.eval_pictures": "false",
    "train.log_every_steps": 1,
}


@dataclass(frozen=True)
class Source:
    """A generated video: where it lies, and its annotation."""

    file: Path
    training: bool
    duration: float
    actions: list[tuple[float, float, str]]


Writer = Callable[[Path, Sequence[Source]], list[str]]  # owners' files into a folder; the videos' names there


def thumos14(folder: Path, sources: Sequence[Source]) -> list[str]:
    names = [f"video_{'validation' if one.training else 'test'}_{index:07}" for index, one in enumerate(sources)]
    for ending, training in (("val", True), ("test", False)):
        _class_files(
            folder,
            [(name, one) for name, one in zip(names, sources, strict=True) if one.training == training],
            f"_{ending}",
        )
    return names


def multithumos(folder: Path, sources: Sequence[Source]) -> list[str]:
    names = [f"video_{'validation' if one.training else 'test'}_{index:07}" for index, one in enumerate(sources)]
    _class_files(folder / "annotations", list(zip(names, sources, strict=True)), "")
    return names


def _class_files(folder: Path, named: Sequence[tuple[str, Source]], ending: str) -> None:
    folder.mkdir(exist_ok=True)
    for label in {label for _, one in named for _, _, label in one.actions}:
        lines = [f"{name} {s:.1f} {e:.1f}" for name, one in named for s, e, found in one.actions if found == label]
        (folder / f"{label}{ending}.txt").write_text("\n".join(lines) + "\n")


def activitynet_form(file: str, prefix: str) -> Writer:
    def write(folder: Path, sources: Sequence[Source]) -> list[str]:
        names = [f"video{index}" for index in range(len(sources))]
        database = {
            name: {
                "subset": "training" if one.training else "validation",
                "duration": one.duration,
                "annotations": [{"segment": [start, end], "label": label} for start, end, label in one.actions],
            }
            for name, one in zip(names, sources, strict=True)
        }
        (folder / file).write_text(json.dumps({"version": "VERSION 1.3", "database": database}))
        return [f"{prefix}{name}" for name in names]

    return write


def epic(folder: Path, sources: Sequence[Source]) -> list[str]:
    names = [f"P01_{index:02}" for index in range(len(sources))]
    labels = sorted({label for one in sources for _, _, label in one.actions})
    rows = [f"{name},{one.duration},50,256x456" for name, one in zip(names, sources, strict=True)]
    (folder / "EPIC_100_video_info.csv").write_text("\n".join(["video_id,duration,fps,resolution", *rows]) + "\n")
    for kind in ("verb", "noun"):
        classes = [f"{index},{label}" for index, label in enumerate(labels)]
        (folder / f"EPIC_100_{kind}_classes.csv").write_text("\n".join(["id,key", *classes]) + "\n")
    for file, training in (("train", True), ("validation", False)):
        rows = ["video_id,start_timestamp,stop_timestamp,verb_class,noun_class"]
        for name, one in zip(names, sources, strict=True):
            for start, end, label in one.actions if one.training == training else ():
                times = ",".join(f"00:{int(t // 60):02}:{t % 60:06.3f}" for t in (start, end))
                rows.append(f"{name},{times},{labels.index(label)},{labels.index(label)}")
        (folder / f"EPIC_100_{file}.csv").write_text("\n".join(rows) + "\n")
    return names


def ego4d(folder: Path, sources: Sequence[Source]) -> list[str]:
    for file, training in (("train", True), ("val", False)):
        clips = [
            {
                "clip_uid": f"clip{index}",
                "video_start_sec": 10.0,
                "video_end_sec": 10.0 + one.duration,
                "video_start_frame": 300,
                "video_end_frame": 300 + round(30 * one.duration),
                "annotations": [
                    {
                        "labels": [
                            {
                                "primary": True,
                                "label": label,
                                "video_start_time": 10 + start,
                                "video_end_time": 10 + end,
                            }
                            for start, end, label in one.actions
                        ]
                    }
                ],
            }
            for index, one in enumerate(sources)
            if one.training == training
        ]
        content = {"videos": [{"video_uid": "video", "clips": clips}]}
        (folder / f"moments_{file}.json").write_text(json.dumps(content))
    return [f"clip{index}" for index in range(len(sources))]


def charades(folder: Path, sources: Sequence[Source]) -> list[str]:
    labels = sorted({label for one in sources for _, _, label in one.actions})
    (folder / "Charades_v1_classes.txt").write_text("".join(f"c{i:03} {label}\n" for i, label in enumerate(labels)))
    names = [f"VIDEO{index}" for index in range(len(sources))]
    for file, training in (("train", True), ("test", False)):
        rows = ["id,subject,actions,length"]
        for name, one in zip(names, sources, strict=True):
            if one.training == training:
                actions = ";".join(f"c{labels.index(label):03} {s:.2f} {e:.2f}" for s, e, label in one.actions)
                rows.append(f"{name},S1,{actions},{one.duration}")
        (folder / f"Charades_v1_{file}.csv").write_text("\n".join(rows) + "\n")
    return names


DATASETS: dict[str, tuple[str, Writer, dict[str, object]]] = {
    "thumos14": ("thumos14_videomae_b", thumos14, {}),
    "multithumos": ("multithumos_videomae_s", multithumos, {}),
    "activitynet": ("activitynet_videomae_b", activitynet_form("activity_net.v1-3.min.json", "v_"), {}),
    "hacs": ("hacs_videomae_b", activitynet_form("HACS_segments_v1.1.1.json", ""), {"test.external_scores": ""}),
    "fineaction": ("fineaction_videomae_b", activitynet_form("annotations_gt.json", ""), {}),
    "epic_verb": ("epic_verb_videomae_l", epic, {}),
    "ego4d_mq": ("ego4d_mq_videomae_l", ego4d, {"data.window_size": 100, "head.max_len": 512}),
    "charades": ("charades_videomae_s", charades, {"data.window_size": 128}),
}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
def test_from_the_owners_files_to_a_step(dataset, small_videos, tmp_path):
    recipe, write, changes = DATASETS[dataset]
    assert find_recipe(recipe).dataset == dataset
    sources = chosen(small_videos)
    (tmp_path / "owners").mkdir()
    (tmp_path / "videos").mkdir()
    for name, one in zip(write(tmp_path / "owners", sources), sources, strict=True):
        (tmp_path / f"videos/{name}.mp4").hardlink_to(one.file)

    places = {"data.annotations": tmp_path / "annotations.json", "data.videos": tmp_path / "videos"}
    prepare = [dataset, "--source", tmp_path / "owners", "--out", places["data.annotations"]]
    assert main(["prepare-data", *map(str, [*prepare, "--videos", places["data.videos"]])]) == 0

    if dataset == "activitynet":  # segments of any action, classes by a classifier of whole videos
        labels = sorted({label for one in sources for _, _, label in one.actions})
        scores = {f"video{index}": [1 / len(labels)] * len(labels) for index in range(len(sources))}
        places["test.external_scores"] = tmp_path / "classifier.json"
        places["test.external_scores"].write_text(json.dumps({"results": scores, "class": labels}))

    run = tmp_path / "run"
    command = launched("pool", 1, ["adatad_ds/train.py", "--recipe", recipe, "--run-dir", str(run)])
    command += ["--deepspeed_config", "ds_configs/zero2.json"]
    for name, value in (TINY | places | changes).items():
        command += ["--set", f"{name}={value}"]
    output = finish(command)
    assert sorted(losses(run)) == [0, 1]
    metrics = json.loads((run / "evaluations/epoch_0001/metrics.json").read_text())
    assert 0 <= metrics["average_mAP"] <= 1, output
    detections = json.loads((run / "evaluations/epoch_0001/detections.json").read_text())["results"]
    found = {record["label"] for records in detections.values() for record in records}
    assert ("action" in found) == (dataset == "hacs")
    thresholds = [name for name in metrics if name.startswith("mAP@")]
    assert len(thresholds) == len(find_recipe(recipe).config.test.tiou)


def chosen(data: Path) -> list[Source]:
    """Two training videos and a test video."""
    database = json.loads((data / "annotations.json").read_text())["database"]
    by_subset = {"training": 2, "validation": 1}
    names = [name for subset, count in by_subset.items() for name in _first(database, subset, count)]
    return [
        Source(
            file=data / f"videos/{name}.mp4",
            training=database[name]["subset"] == "training",
            duration=database[name]["duration"],
            actions=[(*action["segment"], action["label"]) for action in database[name]["annotations"]],
        )
        for name in names
    ]


def _first(database: dict, subset: str, count: int) -> list[str]:
    return [name for name, entry in database.items() if entry["subset"] == subset and entry["annotations"]][:count]
