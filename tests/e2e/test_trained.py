"""What a run has trainable, taken elsewhere: exported, evaluated, published, fine-tuned."""

from __future__ import annotations

import gzip
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adatad_ds.evaluation.candidates_file import read_candidates
from adatad_ds.inference.trained_model import find_trained, load_model
from adatad_ds.runs.checkpoint import read_operating_point
from adatad_ds.runs.folder import RunFolder
from tests.support.generated import generated
from tests.support.launch import finish, launched, start, train_command
from tests.support.published import published

SETTINGS = {  # with which two epochs find something
    "ranks": 1,
    "ds_config": "zero2",
    "train__ema_decay": 0.5,
    "backbone__adapter_blocks": "null",
    "head__arch": "[1,1,2]",
    "head__regression_range": "[[0,4],[4,8],[8,10000]]",
}
OUTPUT = "output.txt"  # what the training printed


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Long enough for a detector of two epochs to find something."""
    return generated("videos", tmp_path_factory.mktemp("videos") / "data", "--seconds", "12", "16", train=8, test=3)


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A run whose labels are no formulas, markup or ASCII, in a folder whose name is not, either."""
    run = tmp_path_factory.mktemp("trained") / "été 数据" / "run"
    content = json.loads((videos / "annotations.json").read_text())
    for video in content["database"].values():
        for action in video["annotations"]:
            action["label"] = f"=$跳_{{x^ <b>{action['label']} $"
    annotations = run.parent / "annotations.json"
    annotations.parent.mkdir()
    annotations.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    changes = {"data__annotations": annotations, "train__eval_from_epoch": 1, "train__eval_pictures": "true"}
    command = train_command(data=videos, run=run, **SETTINGS, **changes)
    output = finish([*command, "--profile", "2:4"])
    (run / OUTPUT).write_text(output)
    return run


def tool(name: str, *arguments: object) -> list[str]:
    return launched("pool", 1, [name, *map(str, arguments)])


def adatad_ds(name: str, *arguments: object) -> list[str]:
    return launched("pool", 1, ["-m", "adatad_ds", name, *map(str, arguments)])


@pytest.mark.slow
def test_an_export_evaluates_as_its_run_does(run, tmp_path):
    finish(tool("adatad_ds/evaluate.py", run, "--output", tmp_path / "of_run"))
    export = tmp_path / "export" / "mine.safetensors"
    finish(adatad_ds("export", run, "--out", export))
    point = find_trained(run).operating_point
    assert point is not None
    assert find_trained(export).operating_point == point
    content = json.loads(export.with_suffix(".json").read_text())
    export.with_suffix(".json").write_text(json.dumps(content | {"operating_point": None}))
    output = finish(tool("adatad_ds/evaluate.py", export, "--output", tmp_path / "of_export"))
    assert find_trained(export).operating_point == point
    assert str(point) in output
    metrics = json.loads((tmp_path / "of_export" / "metrics.json").read_text())
    assert metrics["best_F1_threshold@0.5"] == point.score
    assert "mine.safetensors on 3 videos" in output
    results = [json.loads((tmp_path / of / "detections.json").read_text()) for of in ("of_run", "of_export")]
    assert results[0] == results[1]
    description = json.loads(export.with_suffix(".json").read_text())
    epoch = RunFolder(run).best_epoch()
    assert description["metrics"] == RunFolder(run).evaluations()[epoch or 0]
    evaluated = json.loads((tmp_path / "of_run" / "metrics.json").read_text())
    assert evaluated == pytest.approx(description["metrics"], abs=1e-6)  # in training, with the average's weights, too
    assert description["backbone"] == {"name": "tiny", "weights": "adatad_ds/weights/tiny.safetensors"}
    assert not any(".vit." in name for name in load_file(export))


@pytest.mark.slow
def test_a_crash_before_the_best_was_marked(run, videos, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "best").unlink()
    metrics = again / "evaluations" / "epoch_0002" / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"average_mAP": 1.0}))
    changes = {"data__annotations": run.parent / "annotations.json", "train__eval_from_epoch": 1}
    finish(train_command(data=videos, run=again, resume=True, **SETTINGS, **changes))
    assert (again / "checkpoints" / "best").read_text() == "step_00000004\n"


@pytest.mark.slow
def test_training_marks_the_best_and_keeps_its_score(run):
    folder = RunFolder(run)
    best = folder.best_epoch()
    assert best is not None
    checkpoint = folder.checkpoints(keep=1).best()
    assert checkpoint is not None
    assert checkpoint.name == f"step_{2 * best:08d}"
    point = read_operating_point(checkpoint, kind="average")
    assert point is not None
    assert (run / "evaluations" / f"epoch_{best:04d}" / "metrics.json").exists()
    assert "could not be drawn" not in (run / OUTPUT).read_text()
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("memory/peak_resident_gb" in line for line in logged)
    assert not any("memory/peak_gb" in line for line in logged)  # which a GPU's allocator counts


@pytest.mark.slow
def test_candidates_are_kept_before_anything_can_fail(run, tmp_path):
    code = """
import sys
from adatad_ds import evaluate
from adatad_ds.inference import evaluation

def fail(*arguments, **options):
    raise RuntimeError("suppression failed")

evaluation.finish = fail
evaluate.main(sys.argv[1:])
"""
    done = start([sys.executable, "-c", code, str(run), "--output", str(tmp_path), "--save-candidates"])
    assert "suppression failed" in done.stderr
    assert len(read_candidates(tmp_path / "raw.npz").videos) == 3


@pytest.mark.slow
def test_the_last_and_the_best_epoch_are_named(run):
    folder = RunFolder(run)
    scores = {epoch: metrics["average_mAP"] for epoch, metrics in folder.evaluations().items()}
    assert set(scores) == {1, 2}
    summary = folder.summary()
    assert summary is not None
    assert summary in (run / OUTPUT).read_text().splitlines()
    events = EventAccumulator(str(run)).Reload()
    evaluated = [event.value for event in events.Scalars("evaluation/epoch")]
    assert evaluated == [1, 2]
    assert [event.value for event in events.Scalars("evaluation/average_mAP")] == pytest.approx(list(scores.values()))
    assert [event.value for event in events.Scalars("evaluation/best_epoch")] == [1, folder.best_epoch()]
    assert events.Scalars("evaluation/best_average_mAP")[-1].value == pytest.approx(max(scores.values()))


@pytest.mark.slow
def test_tensorboard_shows_it_and_a_profile_was_taken(run):
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    pictures = {"pictures/timelines", "pictures/precision_recall", "pictures/class_ap"}
    assert pictures <= set(tags["images"])
    last_steps = [1, 3]  # of the two epochs
    for name in pictures:
        assert [image.step for image in events.Images(name)] == last_steps
    assert {"updates/gamma", "updates/adapter_log10", "updates/head_log10"} <= set(tags["histograms"])
    assert {"config/text_summary", "evaluation/table/text_summary"} <= set(tags["tensors"])
    assert [event.step for event in events.Scalars("updates/adapter_median")] == last_steps
    trace = json.loads(gzip.decompress((run / "profile/rank0.pt.trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"ProfilerStep#2", "ProfilerStep#3", "data", "forward", "backward", "step"} <= names
    assert "ProfilerStep#1" not in names


@pytest.mark.slow
def test_kept_candidates_evaluate_as_their_run_does(run, tmp_path):
    output = finish(tool("adatad_ds/evaluate.py", run, "--output", tmp_path, "--save-candidates", "--per-class"))
    assert "ground truth" in output
    output = finish(tool("adatad_ds/evaluate.py", tmp_path / "raw.npz", "--output", tmp_path / "again"))
    assert "on 3 videos of subset validation" in output
    for name in ("detections.json", "metrics.json", "per_class.csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.slow
def test_a_wrong_backbone_under_a_right_adapter(run, tmp_path):
    export = tmp_path / "mine.safetensors"
    finish(adatad_ds("export", run, "--out", export, "--no-ema"))
    weights = load_file("adatad_ds/weights/tiny.safetensors")
    weights["blocks.3.mlp.fc1.weight"] += 0.01
    save_file(weights, tmp_path / "other.safetensors")
    other = ["--set", f"backbone.weights={tmp_path}/other.safetensors"]
    done = start([*tool("adatad_ds/evaluate.py", export), *other])
    assert done.returncode == 2
    assert "mine.safetensors was trained with other frozen weights" in done.stderr
    assert "1 of 74 tensors differ (blocks.3.mlp.fc1.weight)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_published_checkpoint_evaluates_and_fine_tunes(run, videos, tmp_path):
    trained, raw = find_trained(run), find_trained(run, averaged=False)
    states = [published(load_model(each, num_classes=5), beside=False) for each in (raw, trained)]
    content = {"epoch": 2, "state_dict": states[0], "state_dict_ema": states[1]}
    torch.save(content, tmp_path / "published.pth")
    finish(adatad_ds("convert", tmp_path / "published.pth", "--out", tmp_path / "converted.safetensors"))

    finish(tool("adatad_ds/evaluate.py", run, "--output", tmp_path / "of_run"))
    changes = [
        f"--set={section}.{key}={value}"
        for section, values in trained.config.to_dict().items()
        for key, value in values.items()
    ]
    names = list(trained.classes)
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for name in ("published.pth", "converted.safetensors"):
        output = tmp_path / f"of_{name}"
        command = [
            *tool("adatad_ds/evaluate.py", tmp_path / name, "--recipe", "quickstart", "--output", output),
            *changes,
        ]
        done = start(command)
        assert done.returncode == 2
        assert "with --classes FILE" in done.stderr
        printed = finish([*command, "--classes", str(tmp_path / "classes.txt")])
        assert f"class logits: 0 {names[0]}, 1 {names[1]}, " in printed
        results = [json.loads((folder / "detections.json").read_text()) for folder in (tmp_path / "of_run", output)]
        assert results[0] == results[1], name

    # Fine-tuning starts where the training ended: a step of rate 0 later, the same detections.
    again = tmp_path / "fine_tuned"
    still = {"train__lr_head": 0.0, "train__lr_adapter": 0.0, "train__weight_decay": 0.0, "train__stop_epoch": 1}
    settings = SETTINGS | still | {"backbone__weights": tmp_path / "published.pth", "ranks": 2, "ds_config": "zero3"}
    settings |= {"train__ema_decay": 1 - 1e-9, "data__classes": names}
    settings |= {"data__annotations": run.parent / "annotations.json"}  # of its odd labels
    printed = finish(train_command(data=videos, run=again, **settings))
    assert f"class logits: 0 {names[0]}, 1 {names[1]}, " in printed
    finish(tool("adatad_ds/evaluate.py", again, "--output", tmp_path / "of_fine_tuned"))
    fine_tuned = json.loads((tmp_path / "of_fine_tuned" / "detections.json").read_text())["results"]
    expected = json.loads((tmp_path / "of_run" / "detections.json").read_text())["results"]
    assert fine_tuned.keys() == expected.keys()
    for video, records in expected.items():
        scores = [record["score"] for record in records[:20]]
        assert [record["score"] for record in fine_tuned[video][:20]] == pytest.approx(scores, abs=1e-5)

    # Another number of classes is refused, unless the class logits are to start anew.
    fewer = [{k: v[:2] if ".cls_head." in k else v for k, v in state.items()} for state in states]
    torch.save({"state_dict": fewer[0], "state_dict_ema": fewer[1]}, tmp_path / "fewer.pth")
    settings["backbone__weights"] = tmp_path / "fewer.pth"
    done = start(train_command(data=videos, run=tmp_path / "fewer", **settings))
    assert done.returncode != 0
    assert "was trained for 2 classes, the data have" in done.stderr
    output = finish(train_command(data=videos, run=tmp_path / "fewer", head__reset_classifier=True, **settings))
    assert "newly initialised: head.cls_head.weight, head.cls_head.bias" in output
