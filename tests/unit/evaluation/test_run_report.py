"""adatad-ds report and compare --page on runs' folders: what the pages say, in Chromium at desk and phone widths."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adatad_ds.cli.commands import main
from adatad_ds.data.annotations import load_annotations
from adatad_ds.evaluation.diagnosis.diagnosis import diagnose
from adatad_ds.evaluation.run_report import page
from adatad_ds.evaluation.run_report.charts import decades, line_chart, thinned, ticks
from adatad_ds.evaluation.run_report.facts import read_run
from adatad_ds.evaluation.run_report.videos import score_videos
from tests.support.browser import loaded
from tests.support.videos import write_video

TIOU = (0.3, 0.5, 0.7)
chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


def detection(start: float, end: float, label: str, score: float) -> dict[str, Any]:
    return {"segment": [start, end], "label": label, "score": score}


# v0: two right; v1: one right, one wrong label; v2: missed, with a sure false positive; v3: background alone
TRUTHS = {
    "v0": [(0.5, 1.5, "jump <b>"), (2.0, 3.0, "run")],
    "v1": [(0.5, 1.5, "run"), (2.0, 3.0, "run")],
    "v2": [(1.0, 3.5, "jump <b>")],
    "v3": [],
}
FOUND = {
    "v0": [detection(0.5, 1.5, "jump <b>", 0.9), detection(2.0, 3.1, "run", 0.8)],
    "v1": [detection(0.5, 1.4, "run", 0.7), detection(2.0, 3.0, "jump <b>", 0.6)],
    "v2": [detection(0.0, 0.4, "run", 0.95)],
    "v3": [],
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def make_run(folder: Path, data: Path, *, rate: float = 0.001, factor: float = 1.0, evaluated: bool = True) -> Path:
    """A run's folder as train and evaluate leave it."""
    config = {
        "data": {"annotations": str(data / "a.json"), "videos": str(data / "videos"), "test_subset": "validation"},
        "backbone": {"name": "tiny"},
        "train": {"lr": rate, "global_batch": 4},
        "recognition": None,
    }
    write(folder / "config.json", config)
    steps = [
        {
            **{"step": step, "loss/total": 2.0 / (step + 1), "loss/classification": 1.0, "lr/head": rate},
            **{"train/gradient_norm": 3.0, "train/epoch": (step + 1) / 5, "time/step_sec": 9.0 if step == 0 else 2.0},
            **{"time/data_wait_sec": 0.5, "time/frames_per_sec": 64.0, "memory/peak_gb": 1.0 + step / 100},
        }
        for step in range(10)
    ]
    lines = [json.dumps(line) for line in [*steps, {"step": 9, "time/checkpoint_sec": 0.25}]]
    write(folder / "log.jsonl", "\n".join(lines) + '\n{"step": 10, "loss/to')
    for epoch in (1, 2):
        metrics = {"average_mAP": 0.2 * epoch * factor} | {f"mAP@{tiou}": 0.3 * epoch * factor for tiou in TIOU}
        write(folder / f"evaluations/epoch_{epoch:04d}/metrics.json", metrics)
    if evaluated:
        labelled = {name: list(actions) for name, actions in TRUTHS.items()}
        measured = diagnose(FOUND, load(data), average_tiou=TIOU).metrics
        assert set(labelled) == set(FOUND)
        write(folder / "evaluate/metrics.json", {k: v * factor for k, v in measured.to_dict().items()})
        write(folder / "evaluate/detections.json", {"version": "x", "results": FOUND, "external_data": {}})
        rows = [f"{row['class']},{row['ground_truth']},{row['average_AP'] * factor}" for row in measured.per_class()]
        write(folder / "evaluate/per_class.csv", "\n".join(["class,ground_truth,average_AP", *rows]) + "\n")
    command = ["adatad_ds/train.py", "--local_rank=0", "--recipe", "quickstart", "--set", f"train.lr={rate}"]
    command += ["--set", "head.arch=[2, 1, 3]", "--run-dir", str(folder)]
    environment = {"WORLD_SIZE": "2"}
    write(folder / "versions.json", {"command": command, "environment": environment, "git": "abc", "packages": {}})
    return folder


def load(data: Path):
    return load_annotations(data / "a.json", subset="validation", as_published=True)[0].videos


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    for name in TRUTHS:
        write_video(folder / f"videos/{name}.mp4", frames=40, width=48, height=32)
    database = {
        name: {
            "subset": "validation",
            "duration": 4.0,
            "annotations": [{"segment": [start, end], "label": label} for start, end, label in actions],
        }
        for name, actions in TRUTHS.items()
    }
    write(folder / "a.json", {"database": database})
    return folder


def cells(dom: str, heading: str) -> list[list[str]]:
    """Texts of the first table below a heading."""
    part = dom[dom.index(f">{heading}<") :]
    body = part[part.index("<tbody>") : part.index("</tbody>")]
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
        for row in body.split("</tr>")[:-1]
    ]


@pytest.mark.slow
@chromium
def test_a_report(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "my run", data)
    assert main(["report", str(run), "--show", "2"]) == 0
    assert f"open in a browser: {run / 'report/report.html'}" in capsys.readouterr().out
    dom = loaded(run / "report/report.html")
    evaluated = json.loads((run / "evaluate/metrics.json").read_text())
    average = f"{100 * evaluated['average_mAP']:.2f}"
    assert f"<b>{average} %</b>average mAP, evaluated" in dom
    assert "<b>40.00 %</b>average mAP, best in training (epoch 2)" in dom
    assert [row[:3] for row in cells(dom, "Metrics (%)")][:2] == [
        ["epoch 1", "20.00", "30.00"],
        ["epoch 2 (best)", "40.00", "60.00"],
    ]
    for chart in ("Losses", "Metrics in training (%)", "Learning rates", "Gradient norm", "Time of a step (s)"):
        assert f"<figcaption>{chart}</figcaption>" in dom
    assert cells(dom, "The best") == [["v0", "100", "2", "0", "0", "0.85"], ["v1", "67", "1", "0", "1", "0.70"]]
    assert cells(dom, "The worst") == [["v2", "0", "0", "1", "1", "-"]]  # v3 has nothing to find, and nothing is found
    assert cells(dom, "The most confident mistakes")[0] == ["v2", "0:00.00", "0:00.40", "run", "background", "0.95"]
    assert ["v2", "0:01.00", "0:03.50", "jump &lt;b&gt;", "missed", ""] in cells(dom, "The longest missed segments")
    costs = dict(cells(dom, "Time and memory"))
    assert costs["epoch"] == "10 s (5 steps)"  # 2 s a step: the first one does not count
    assert costs["epoch, all ranks together"] == "20 s"
    assert costs["peak memory of a rank"] == "1.09 GB"
    assert ["train.lr", "0.001"] in cells(dom, "Settings")
    assert "deepspeed --num_gpus 2 adatad_ds/train.py --recipe quickstart \\" in dom
    assert "--set 'head.arch=[2, 1, 3]' --run-dir" in dom
    assert "http" not in dom.replace("http://www.w3.org/2000/svg", "")
    player = loaded(run / "report/videos/v1.html", "#t=2.5&score=0.5")
    assert ">2 of 2 detections<" in player
    assert 'href="../report.html">report</a>' in player
    assert "run (annotated)" in player
    assert player.count('class="playing"') == 2  # the wrong label, and what is annotated


@pytest.mark.slow
@chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_window(tmp_path: Path, data: Path, width: int):
    """Nothing but tables and code may be wider, and those scroll by themselves: seen from inside a frame this wide."""
    run = make_run(tmp_path / ("long_name_" * 9), data)
    main(["report", str(run)])
    main(["compare", str(run), str(make_run(tmp_path / "b", data, factor=0.5)), "--page", str(run / "report/c.html")])
    pages = ("report.html", "c.html", "videos/v0.html")
    frames = "".join(f'<iframe src="{page}" width="{width}" height="900"></iframe>' for page in pages)
    script = """addEventListener("load", () => { for (const frame of document.querySelectorAll("iframe"))
      document.body.append(`@${frame.contentDocument.documentElement.scrollWidth}@`); });"""
    frame = run / "report/frame.html"
    frame.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frames}<script>{script}</script>', encoding="utf-8")
    dom = loaded(frame, flags=("--allow-file-access-from-files",))
    found = [int(number) for number in re.findall(r"@(\d+)@", dom)]
    assert len(found) == 3
    assert max(found) <= width


@pytest.mark.slow
@chromium
def test_a_comparison(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    first, second = make_run(tmp_path / "one", data), make_run(tmp_path / "two", data, rate=0.002, factor=0.5)
    assert main(["compare", str(first), str(second), "--page", str(tmp_path / "c/page.html")]) == 0
    dom = loaded(tmp_path / "c/page.html")
    average = 100 * json.loads((first / "evaluate/metrics.json").read_text())["average_mAP"]
    rows = cells(dom, "Metrics (%)")
    assert rows[0][:3] == ["one", "adatad-ds evaluate", f"{average:.2f}"]
    assert rows[1][:3] == ["two", "adatad-ds evaluate", f"{average / 2:.2f} {-average / 2:+.2f}"]
    assert cells(dom, "Settings that differ") == [["train.lr", "0.001", "0.002"]]
    assert len(cells(dom, "Average AP of each class (%)")) == 2
    assert dom.count("<polyline") == 3 * 2
    assert main(["compare", str(first), "--page", str(tmp_path / "x.html")]) == 2
    assert "--page compares two runs or more" in capsys.readouterr().err


def test_what_is_missing_is_said(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    """Not evaluated; without annotations; without videos; no run at all."""
    run = make_run(tmp_path / "run", data, evaluated=False)
    assert main(["report", str(run)]) == 0
    assert (
        "without the sections on errors and videos: there are no detections yet: adatad-ds evaluate"
        in capsys.readouterr().out
    )
    run = make_run(tmp_path / "other", data)
    (tmp_path / "no_videos").mkdir()
    assert main(["report", str(run), "--videos", str(tmp_path / "no_videos")]) == 0
    assert "without a player: " in capsys.readouterr().out
    assert "<a href=" not in (run / "report/report.html").read_text(encoding="utf-8")
    assert main(["report", str(run), "--annotations", str(tmp_path / "nowhere.json")]) == 0
    assert "does not exist here: add --annotations FILE" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run's folder: it has no config.json" in capsys.readouterr().err


def test_a_subset_other_than_the_trainings_is_named(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", data)
    config = json.loads((run / "config.json").read_text())
    config["data"]["test_subset"] = "held out"
    write(run / "config.json", config)
    assert main(["report", str(run)]) == 0
    assert "Give one of these as --subset" in capsys.readouterr().out
    assert main(["report", str(run), "--subset", "validation"]) == 0
    assert "without the sections" not in capsys.readouterr().out
    assert "<h2>Errors</h2>" in (run / "report/report.html").read_text()


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path, data: Path):
    run = make_run(tmp_path / os.fsdecode(b"caf\xe9"), data)
    assert main(["report", str(run)]) == 0
    assert "<h1>caf\\udce9</h1>" in (run / "report/report.html").read_text(encoding="utf-8")
    assert main(["diagnose", str(run / "evaluate/detections.json"), str(data / "a.json")]) == 0
    assert "caf\\udce9" in (run / "evaluate/errors/report.html").read_text(encoding="utf-8")


def test_a_class_agnostic_run_is_held_against_any_action(tmp_path: Path, data: Path):
    run = make_run(tmp_path / "run", data)
    alike = {name: [found | {"label": "action"} for found in records] for name, records in FOUND.items()}
    write(run / "evaluate/detections.json", {"results": alike})
    assert main(["report", str(run)]) == 0
    text = (run / "report/report.html").read_text(encoding="utf-8")
    assert "they are held against any action" in text
    assert [row[:2] for row in cells(text, "Classes")] == [["action", "5"]]
    assert "jump \\u003cb> (annotated)" in (run / "report/videos/v0.html").read_text(encoding="utf-8")


def test_a_copied_report_stands_alone(tmp_path: Path, data: Path):
    run = make_run(tmp_path / "run", data)
    assert main(["report", str(run), "--out", str(tmp_path / "out"), "--copy", "--show", "1"]) == 0
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    text = (tmp_path / "elsewhere/videos/v0.html").read_text(encoding="utf-8")
    assert '"video": "../media/v0.mp4"' in text
    assert (tmp_path / "elsewhere/media/v0.mp4").is_file()


def test_scores_of_videos_are_those_of_counting(data: Path):
    """Against counting by hand: detections from a score on, matched by decreasing score."""
    diagnosis = diagnose(FOUND, load(data), average_tiou=TIOU)
    scores = {score.name: score for score in score_videos(diagnosis, load(data), least=0.65)}
    assert (scores["v1"].right, scores["v1"].wrong, scores["v1"].missed) == (1, 0, 1)
    assert scores["v1"].f1 == pytest.approx(2 / 3)
    assert (scores["v2"].right, scores["v2"].wrong, scores["v2"].missed) == (0, 1, 1)
    assert "v3" not in scores


def test_a_run_without_times_or_ranks(tmp_path: Path):
    """Older runs log less."""
    write(tmp_path / "config.json", {"train": {"lr": 1}})
    write(tmp_path / "log.jsonl", '{"step": 0, "loss/total": 1.0}\n')
    run = read_run(tmp_path)
    assert run.costs() == {}
    assert run.command() == run.recipe() == run.headline() == ""
    assert main(["report", str(tmp_path)]) == 0
    one = replace(run, versions={"command": ["train.py", "--recipe=a", "--set=x.y=1 2"], "environment": {}})
    assert (one.recipe(), one.changed_settings()) == ("a", [("x.y", "1 2")])
    assert one.command() == "adatad-ds train --recipe=a '--set=x.y=1 2'"
    installed = replace(run, versions={"command": ["/usr/bin/adatad-ds", "train", "--recipe", "a"]})
    assert installed.command() == "adatad-ds train --recipe a"


def test_axes():
    """Round numbers that hold all values, whatever their size and sign."""
    for low, high in ((0, 1), (0, 0), (-3, 5), (1e-6, 9e-6), (15, 15), (0, 1e7), (2, 2.0001)):
        marks = ticks(low, high)
        assert marks[0] <= low + 1e-9
        assert marks[-1] >= high - 1e-9
        assert 2 <= len(marks) <= 9
        assert np.allclose(np.diff(marks), marks[1] - marks[0])
    assert decades([(0, 0.02), (1, 30)]) == pytest.approx([0.01, 0.1, 1, 10, 100])
    points = [(float(x), 0.0) for x in range(1001)]
    assert len(thinned(points)) <= 402
    assert thinned(points)[-1] == points[-1]
    assert len(set(thinned(points))) == len(thinned(points))


def test_charts_of_odd_numbers():
    """Infinities and NaN are left out; a logarithmic axis needs values above 0; a linear one begins at 0."""
    chart = line_chart("x", {"a": [(0, 5.0), (1, math.inf), (2, math.nan), (3, 8.0)]}, along="step", log=True)
    assert chart.count("<circle") == 2
    assert line_chart("x", {"a": [(0, math.nan)]}, along="step") == ""
    linear = line_chart("x", {"a": [(0, 5.0), (3, 8.0)]}, along="step")
    assert 'text-anchor="end">0</text>' in linear
    assert 'text-anchor="end">0</text>' not in chart
    assert line_chart("x", {"a": [(0, 0.0), (3, 8.0)]}, along="step", log=True).count("<circle") == 2


def test_times_in_words():
    assert (page.clock(65.5), page.clock(3725.5)) == ("1:05.50", "1:02:05.50")
    assert (page.duration(100 * 60), page.duration(7500)) == ("100 min", "2 h 05 min")


def test_costs_are_of_steady_steps(tmp_path: Path):
    """Without the first one, which compiles; checkpoints wherever they are logged; steps of no time do not wait."""
    steps = [
        {"time/step_sec": 9.0, "time/data_wait_sec": 9.0, "time/frames_per_sec": 1.0, "time/checkpoint_sec": 0.5},
        {"time/step_sec": 2.0, "time/data_wait_sec": 1.0, "time/frames_per_sec": 8.0},
        {"time/step_sec": 0.0, "time/data_wait_sec": 0.0, "time/frames_per_sec": 10.0},
    ]
    write(tmp_path / "config.json", {})
    write(tmp_path / "log.jsonl", "\n".join(json.dumps({"step": step} | line) for step, line in enumerate(steps)))
    wanted = {"steps": 3, "sec_per_step": 1, "frames_per_sec": 9, "checkpoint_sec": 0.5, "waiting": 0.5}
    assert read_run(tmp_path).costs() == wanted
    for epoch in (1, 2):
        write(tmp_path / f"evaluations/epoch_000{epoch}/metrics.json", {"average_mAP": 0.5})
    assert read_run(tmp_path).best_epoch() == 1


def test_a_report_of_what_training_found(tmp_path: Path, data: Path):
    """Of the best epoch where nothing else was evaluated; without what was left out; of an interrupted run."""
    run, texts = make_run(tmp_path / "run", data, evaluated=False), []
    write(run / "evaluations/epoch_0002/detections.json", {"results": FOUND})
    (run / "interrupted").touch()
    config = json.loads((run / "config.json").read_text())
    write(tmp_path / "list.txt", "v2\n")
    for left_out in ({}, {"exclude": ["v2"]}, {"exclude_file": str(tmp_path / "list.txt")}):
        write(run / "config.json", config | {"data": config["data"] | left_out})
        assert main(["report", str(run)]) == 0
        texts.append((run / "report/report.html").read_text(encoding="utf-8"))
    assert all("; it was interrupted, and can be resumed" in text for text in texts)
    assert [row[0] for row in cells(texts[0], "The best") + cells(texts[0], "The worst")] == ["v0", "v1", "v2"]
    assert len(cells(texts[0], "The best")) == 2  # of three: no video is among both
    for text in texts[1:]:
        assert [row[0] for row in cells(text, "The best") + cells(text, "The worst")] == ["v0", "v1"]
    assert [row[0] for row in cells(texts[0], "The longest missed segments")] == ["v2", "v1"]
    write(run / "config.json", config)
    shutil.rmtree(run / "evaluations/epoch_0001")
    assert main(["report", str(run), "--show", "1"]) == 0
    text = (run / "report/report.html").read_text(encoding="utf-8")
    assert [row[0] for row in cells(text, "The worst")] == ["v2"]
    assert "Metrics in training" in texts[0]
    assert "Metrics in training" not in text  # of one epoch: the table has them


@pytest.mark.slow
def test_videos_that_browsers_do_not_play_and_that_nothing_reads(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    """Of the former the annotated copy, which no copy of the file takes the place of; the latter are named."""
    run, videos = make_run(tmp_path / "run", data), tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "v0.mkv", frames=40, width=48, height=32)
    (videos / "v1.mp4").write_text("no video")
    (videos / "v2.mp4").symlink_to(data / "videos/v2.mp4")
    assert main(["report", str(run), "--videos", str(videos), "--copy"]) == 0
    assert '"video": "../copies/v0.mkv.mp4"' in (run / "report/videos/v0.html").read_text(encoding="utf-8")
    assert [file.name for file in (run / "report/media").iterdir()] == ["v2.mp4"]
    assert f"without a player: {videos}/v1.mp4: " in capsys.readouterr().out


def test_a_run_whose_config_is_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "config.json", [1])
    assert main(["report", str(tmp_path)]) == 2
    assert "config.json must hold an object at its top level" in capsys.readouterr().err


def test_a_comparison_in_words(tmp_path: Path, data: Path):
    """The greatest differences first, of classes that all have; and where not all numbers are of one kind."""
    runs = [make_run(tmp_path / name, data) for name in "abc"]
    for run, aps in zip(runs, ((0.5, 0.5, 0.5, 0.5), (0.5, 0.4, 0.9), (0.5, 0.5, 0.5, 0.1)), strict=True):
        rows = [f"{name},1,{ap}" for name, ap in zip("wxyz", aps, strict=False)]
        write(run / "evaluate/per_class.csv", "\n".join(["class,ground_truth,average_AP", *rows]) + "\n")
    shutil.rmtree(runs[2] / "evaluate")
    (runs[1] / "versions.json").unlink()
    paths = [str(run) for run in runs[:2]]
    assert main(["compare", *paths, "--page", str(tmp_path / "two.html")]) == 0
    assert main(["compare", *paths, str(runs[2]), "--page", str(tmp_path / "three.html")]) == 0
    two, three = ((tmp_path / name).read_text(encoding="utf-8") for name in ("two.html", "three.html"))
    assert cells(two, "Average AP of each class (%)") == [
        ["y", "50.00", "90.00 +40.00"],
        ["x", "50.00", "40.00 -10.00"],
        ["w", "50.00", "50.00 +0.00"],
    ]
    assert '40.00 <span class="worse">-10.00</span>' in two
    assert '90.00 <span class="better">+40.00</span>' in two
    assert "# a\n" in two
    assert "# b\n" not in two  # its folder does not say how it was started
    said = "The metrics are not all from the same kind of run."
    assert said not in two
    assert said in three
    assert "Average AP of each class" not in three
