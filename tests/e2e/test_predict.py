"""One's own video files: what predict.py finds in them, writes of them, and says of what it cannot use."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from adatad_ds import predict
from adatad_ds.config import loading
from adatad_ds.data.decoding.video import probe
from adatad_ds.inference import prediction
from adatad_ds.models.factory import build_detector
from adatad_ds.predict import load_detector
from adatad_ds.recipes.catalog import find_recipe
from tests.support.browser import loaded
from tests.support.cues import cues
from tests.support.exports import CLASSES, make_export
from tests.support.launch import REPOSITORY, SMALL, environment, finish, launched
from tests.support.published import published
from tests.support.videos import cut, write_late, write_video

FRAMES = 90
UNEVEN = np.cumsum([0.05 + 0.1 * (i // 30 % 2) for i in range(FRAMES)]).tolist()
FILES = ("csv", "json", "png", "srt", "vtt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "mine.safetensors")


def with_sound(source: Path, path: Path, *, rotation: int = 0) -> Path:
    """A copy with a tone, and turned by a display matrix, as a phone writes it."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(container.streams.video[0])
        if rotation:
            video.set_display_rotation(rotation)
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        samples = np.arange(int(48_000 * probe(source).duration_sec))
        tone = np.sin(samples * 2 * np.pi * 440 / 48_000).astype(np.float32)
        for begin in range(0, len(tone) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, begin : begin + 1024], format="fltp", layout="mono")
            frame.rate, frame.pts = 48_000, begin
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """The same pictures in several containers and codecs."""
    folder = tmp_path_factory.mktemp("videos")
    silent = write_video(folder / "silent.mp4", frames=FRAMES)
    return {
        "silent": silent,
        "sound": with_sound(silent, folder / "sound.mp4"),
        "phone": with_sound(silent, folder / "phone.mov", rotation=90),
        "vp9": write_video(folder / "vp9.webm", frames=FRAMES, codec="libvpx-vp9", b_frames=0),
        "old": write_video(folder / "old.avi", frames=FRAMES, codec="mpeg4", b_frames=0),
        "uneven": write_video(folder / "uneven.mkv", frames=FRAMES, times=UNEVEN, b_frames=0),
    }


def results_of(folder: Path) -> dict[str, list[dict]]:
    return json.loads((folder / "results.json").read_text())["results"]


def run(*arguments: object) -> int:
    return predict.main([str(argument) for argument in arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__test_window_overlap": 0.6},
        {"data__sampling": "resize", "data__feature_stride_frames": None},
        {"data__class_agnostic": True, "data__reader": "pyav"},
    ],
    ids=["sliding", "resize", "class_agnostic"],
)
def test_the_detections_are_those_of_evaluation(changes, few_videos, tmp_path):
    # One window at a time: what shares a batch changes the last bits, and with them now and then a rounded digit.
    changes = changes | {"test__batch": 1}
    data = {"data__annotations": few_videos / "annotations.json", "data__videos": few_videos / "videos"}
    checkpoint = make_export(tmp_path / "mine.safetensors", **data, **changes)
    finish(launched("pool", 1, ["adatad_ds/evaluate.py", str(checkpoint), "--output", str(tmp_path / "evaluated")]))
    expected = json.loads((tmp_path / "evaluated" / "detections.json").read_text())["results"]
    assert len(expected) == 2
    paths = [few_videos / "videos" / f"{name}.mp4" for name in expected]
    command = launched(
        "pool", 1, ["adatad_ds/predict.py", *paths, "--checkpoint", checkpoint, "-o", tmp_path / "predicted"]
    )
    finish([str(word) for word in command])
    found = results_of(tmp_path / "predicted")
    assert list(found) == list(expected)
    for name, records in expected.items():
        assert len(found[name]) == len(records) > 20
        assert [record["label"] for record in found[name]] == [record["label"] for record in records]
        np.testing.assert_allclose(
            [[*record["segment"], record["score"]] for record in found[name]],
            [[*record["segment"], record["score"]] for record in records],
            atol=1e-5,
        )
    labels = {record["label"] for records in found.values() for record in records}
    assert labels == ({"action"} if "data__class_agnostic" in changes else set(CLASSES))


def test_an_export_scales_as_its_recipe_did(videos, tmp_path):
    found = {}
    for way in ("bilinear", "antialias"):
        export_of = make_export(tmp_path / f"{way}.safetensors", data__scaling=way)
        found[way] = load_detector(export_of).detect(videos["silent"])
    assert found["bilinear"] != found["antialias"]
    other = load_detector(tmp_path / "bilinear.safetensors", overrides=["data.scaling=antialias"])
    assert other.detect(videos["silent"]) == found["antialias"]


def test_what_is_missing_is_in_the_results(videos, checkpoint, tmp_path, capsys):
    path = cut(videos["silent"], tmp_path / "cut.mp4", share=0.6)
    assert run(path, "--checkpoint", checkpoint, "-o", tmp_path / "out") == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(said) == 1
    for name in ("results", "cut"):
        (damage,) = json.loads((tmp_path / "out" / f"{name}.json").read_text())["damaged"].values()
        assert damage in said[0]
        assert "ends early" in damage


def test_a_name_as_long_as_they_may_be(videos, checkpoint, tmp_path):
    path = tmp_path / f"{'あ' * 83}.mp4"
    shutil.copy(videos["silent"], path)
    assert run(path, "--checkpoint", checkpoint, "-o", tmp_path / "out", "--html", "--annotated") == 0
    (name,) = results_of(tmp_path / "out")
    assert name.startswith("あ" * 70)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.{kind}" for kind in (*FILES, "html", "annotated.mp4")} | {"results.json"}


@pytest.mark.slow
def test_a_name_that_is_not_utf8(videos, checkpoint, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(videos["silent"], path)
    command = [sys.executable, "-m", "adatad_ds", "predict", path, "--checkpoint", checkpoint, "-o", tmp_path / "out"]
    strict = environment() | {"PYTHONIOENCODING": "utf-8:strict"}  # as under en_US.UTF-8
    done = subprocess.run([*command, "--html"], cwd=REPOSITORY, env=strict, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf\\udce9: ")
    assert "warning" not in done.stderr
    assert list(results_of(tmp_path / "out")) == [path.stem]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{path.stem}.{kind}" for kind in (*FILES, "html")} | {"results.json"}


def test_late_pictures_are_late_in_every_file(checkpoint, tmp_path):
    """Sound first, pictures three seconds later: detections, and the annotated copy, are on a player's clock."""
    late = write_late(tmp_path / "late.ts", frames=FRAMES, late_sec=3.0)
    assert run(late, "--checkpoint", checkpoint, "-o", tmp_path / "out", "--annotated") == 0
    records = results_of(tmp_path / "out")["late"]
    assert min(record["segment"][0] for record in records) > 2
    assert max(record["segment"][1] for record in records) > 9
    with av.open(str(tmp_path / "out" / "late.annotated.mp4")) as container:
        zero = (container.start_time or 0) / 1e6
        first = next(container.decode(video=0))
        assert float(first.time or 0) - zero == pytest.approx(3.0, abs=0.1)


@pytest.fixture(scope="module")
def predicted(videos, checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predicted") / "deep" / "out"
    arguments = [*videos.values(), "--checkpoint", checkpoint, "-o", folder, "--annotated", "--html", "--score", 0.5]
    assert run(*arguments) == 0
    return folder


def test_every_kind_of_file(videos, predicted):
    found = results_of(predicted)
    assert list(found) == list(videos)
    for name, path in videos.items():
        assert len(found[name]) > 20, name
        duration_sec = probe(path).duration_sec
        assert all(0 <= r["segment"][0] <= r["segment"][1] <= duration_sec + 0.01 for r in found[name])
        scores = [record["score"] for record in found[name]]
        assert scores == sorted(scores, reverse=True)
    assert found["sound"] == found["silent"]
    assert found["phone"] != found["silent"]  # seen upright
    assert max(record["segment"][1] for record in found["uneven"]) > UNEVEN[-1] - UNEVEN[0] - 1


def test_what_is_written(videos, predicted):
    found = results_of(predicted)
    names = {f"{name}.{kind}" for name in videos for kind in (*FILES, "html", "annotated.mp4")}
    assert {path.name for path in predicted.iterdir()} == names | {"results.json"}
    for name, records in found.items():
        assert results_of_one(predicted / f"{name}.json", name) == records
        shown = sorted((*r["segment"], f"{r['label']} {r['score']:.2f}") for r in records if r["score"] >= 0.5)
        assert 0 < len(shown) < len(records)
        for kind in ("vtt", "srt"):
            found_cues = cues((predicted / f"{name}.{kind}").read_text())
            assert sorted((round(start, 2), round(end, 2), text) for start, end, text in found_cues) == shown
        with (predicted / f"{name}.csv").open(newline="") as file:
            rows = [(float(r["start_sec"]), float(r["end_sec"]), r["label"]) for r in csv.DictReader(file)]
        assert sorted(rows) == sorted((*record["segment"], record["label"]) for record in records)


def test_the_score_of_the_best_f1_is_shown_from(videos, checkpoint, tmp_path, capsys):
    evaluated = tmp_path / "evaluated.safetensors"
    shutil.copy(checkpoint, evaluated)
    content = json.loads(checkpoint.with_suffix(".json").read_text())
    content["operating_point"] = {"score": 0.6, "f1": 0.45, "precision": 0.5, "recall": 0.4, "tiou": 0.5}
    evaluated.with_suffix(".json").write_text(json.dumps(content))
    assert run(videos["silent"], "--checkpoint", evaluated, "-o", tmp_path / "out", "--html") == 0
    records = results_of(tmp_path / "out")["silent"]
    count = sum(record["score"] >= 0.6 for record in records)
    assert 0 < count < len(records)
    assert len(cues((tmp_path / "out" / "silent.vtt").read_text())) == count
    assert (
        '"min_score": 0.6, "reason": "the best F1 in its evaluation, 45 %"'
        in (tmp_path / "out" / "silent.html").read_text()
    )
    assert f"{count} of score 0.6 or more (the best F1 in its evaluation, 45 %)" in capsys.readouterr().out
    assert run(videos["silent"], "--checkpoint", evaluated, "-o", tmp_path / "out", "--score", 0.9999) == 0
    best = records[0]["score"]
    assert f"0 of score 0.9999 or more (as requested); the best has {best:g}" in capsys.readouterr().out


def test_what_was_found_is_kept_where_drawing_fails(videos, checkpoint, tmp_path, capsys, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr(prediction, "draw_detections", fail)
    arguments = ["--checkpoint", checkpoint, "-o", tmp_path / "out"]
    assert run(videos["silent"], *arguments) == 0  # a picture is an extra
    assert "silent.png could not be drawn: ValueError: no such glyph" in capsys.readouterr().err
    monkeypatch.setattr(prediction, "write_annotated", fail)
    assert run(videos["silent"], videos["old"], *arguments, "--annotated") == 1  # which was asked for
    assert set(results_of(tmp_path / "out")) == {"silent", "old"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("silent", "old") for kind in ("csv", "json", "srt", "vtt")} | {
        "results.json"
    }


def test_the_annotated_copy(videos, predicted):
    for name, source in videos.items():
        with av.open(str(predicted / f"{name}.annotated.mp4")) as container:
            stream = container.streams.video[0]
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
            assert stream.codec_context.name == "h264"
            assert len(container.streams.audio) == (name in ("sound", "phone")), name
            if container.streams.audio:
                assert (container.duration or 0) / 1e6 == pytest.approx(9.0, abs=0.2)
        times = np.array([time for time, _ in frames])
        expected = UNEVEN if name == "uneven" else np.arange(FRAMES) / 10
        np.testing.assert_allclose(times - times[0], np.array(expected) - expected[0], atol=2e-3)
        height, width = frames[0][1].shape[:2]
        info = probe(source)
        assert width == 320
        strip = height - round(320 * info.height / info.width)
        assert 0 < strip < height / 2
        assert (info.height > info.width) == (name == "phone")
        # the line at the moment goes through the strip below the picture from its left to its right
        lines = [int(frame[-3].astype(int).sum(axis=1).argmax()) for _, frame in frames[:: FRAMES - 1]]
        assert lines[0] < 10
        assert lines[1] > 305


def results_of_one(path: Path, name: str) -> list[dict]:
    content = json.loads(path.read_text())["results"]
    assert list(content) == [name]
    return content[name]


@pytest.fixture(scope="module")
def page(predicted) -> Path:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    return predicted


def visible_rows(dom: str) -> int:
    body = dom[dom.index('<tbody id="body">') : dom.index("</tbody>")]
    return sum(
        'class="hidden"' not in row and 'class="playing hidden"' not in row for row in re.findall("<tr[^>]*>", body)
    )


def plays(page: Path) -> bool:
    return '<p id="problem" class="hidden"></p>' in loaded(page)


def test_the_page_filters(page):
    records = results_of(page)["sound"]
    surest = records[0]["label"]
    for fragment, expected in (
        ("", [r for r in records if r["score"] >= 0.5]),
        ("#score=0", records),
        ("#score=0.62", [r for r in records if r["score"] >= 0.62]),
        (f"#score=0.1&class={surest}", [r for r in records if r["score"] >= 0.1 and r["label"] == surest]),
        ("#score=0&class=", []),
    ):
        dom = loaded(page / "sound.html", fragment)
        assert f">{len(expected)} of {len(records)} detections<" in dom, fragment
        assert visible_rows(dom) == len(expected), fragment
        bars = re.findall('<rect[^>]*class="hidden"', dom)
        assert len(bars) == len(records) - len(expected), fragment


def test_the_page_is_in_step_with_the_video(page):
    records = results_of(page)["sound"]
    for at in (3.05, 6.55):
        dom = loaded(page / "sound.html", f"#score=0.5&t={at}")
        playing = [r for r in records if r["score"] >= 0.5 and r["segment"][0] <= at < r["segment"][1]]
        assert len(re.findall('<tr[^>]*class="playing"', dom)) == len(playing) > 0
        now = re.search('<div id="now">(.*?)</div>', dom)
        assert now
        assert now[1].count("<span") == min(6, len(playing))


def test_what_the_page_plays(page, videos, checkpoint, tmp_path):
    for name, kind in (("sound", "mp4"), ("vp9", "webm"), ("old", "mp4"), ("uneven", "mp4")):
        data = (page / f"{name}.html").read_text()
        assert f'"video": "data:video/{kind};base64,' in data, name
        assert plays(page / f"{name}.html"), name
    source = tmp_path / "a b#1.mp4"
    shutil.copy(videos["sound"], source)
    shutil.copy(videos["old"], tmp_path / "old.avi")
    arguments = ["--checkpoint", checkpoint, "-o", tmp_path / "out", "--html", "--embed-mb", 0]
    assert run(source, tmp_path / "old.avi", *arguments) == 0
    assert '"video": "../a%20b%231.mp4"' in (tmp_path / "out" / "a b#1.html").read_text()
    assert '"video": "old.annotated.mp4"' in (tmp_path / "out" / "old.html").read_text()
    for name in ("a b#1", "old"):
        assert plays(tmp_path / "out" / f"{name}.html"), name
    source.unlink()
    assert not plays(tmp_path / "out" / "a b#1.html")


def test_what_cannot_be_used_does_not_stop_the_others(videos, checkpoint, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux([*stream.encode(sound), *stream.encode(None)])
    with av.open(str(tmp_path / "no_frames.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    cut(videos["sound"], tmp_path / "without_index.mp4", share=0.8)
    cut(videos["silent"], tmp_path / "cut.mp4", share=0.6)
    shutil.copy(videos["vp9"], tmp_path / "zz_good.webm")
    said = {
        "text.mp4": "Invalid data",
        "empty.mp4": "empty",
        "song.m4a": "no video stream",
        "no_frames.avi": "",
        "without_index.mp4": "Invalid data",
        "cut.mp4": "ends early",
        "/nowhere.mp4": "there is no file",
    }
    arguments = [tmp_path, tmp_path / "song.m4a", "/nowhere.mp4", "--checkpoint", checkpoint, "-o", tmp_path / "out"]
    assert run(*arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line or "warning: " in line]
    assert len(errors) == len(said), errors
    for name, words in said.items():
        (own,) = [line for line in errors if name in line]
        assert words in own
    assert sorted(results_of(tmp_path / "out")) == ["cut", "zz_good"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.{kind}" for name in ("cut", "zz_good") for kind in FILES} | {"results.json"}


def fails(capsys, *arguments: object) -> str:
    """The one line of an error that nothing could be started with."""
    capsys.readouterr()
    assert run(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line


def test_nothing_can_be_started(videos, checkpoint, tmp_path, capsys):
    out = ["-o", tmp_path / "out"]
    good = videos["silent"]
    assert "there is no file /nowhere.mp4" in fails(capsys, "/nowhere.mp4", "--checkpoint", checkpoint, *out)
    (tmp_path / "folder").mkdir()
    assert "holds no video" in fails(capsys, tmp_path / "folder", "--checkpoint", checkpoint, *out)
    assert "there is no /nowhere" in fails(capsys, good, "--checkpoint", "/nowhere", *out)
    assert "folder" in fails(capsys, good, "--checkpoint", tmp_path / "folder", *out)
    assert "does not say how it was trained" in fails(capsys, good, "--checkpoint", good, *out)
    backbone = REPOSITORY / "adatad_ds" / "weights" / "tiny.safetensors"
    arguments = ["--checkpoint", backbone, "--recipe", "quickstart", *out]
    assert "a transformer alone, without a trained model" in fails(capsys, good, *arguments)
    absent = make_export(tmp_path / "absent.safetensors", backbone__name="tiny")
    description = absent.with_suffix(".json")
    content = json.loads(description.read_text())
    content["config"]["backbone"] |= {"name": "videomae_b", "weights": "/weights/videomae_b.safetensors"}
    description.write_text(json.dumps(content))
    line = fails(capsys, good, "--checkpoint", absent, *out)
    assert "there is no weights file /weights/videomae_b.safetensors" in line
    assert "MCG-NJU/videomae-base-finetuned-kinetics" in line
    content = json.loads(checkpoint.with_suffix(".json").read_text())
    content["config"] = find_recipe("quickstart_aim").config.to_dict()
    (tmp_path / "recogniser.json").write_text(json.dumps(content))
    shutil.copy(checkpoint, tmp_path / "recogniser.safetensors")
    line = fails(capsys, good, "--checkpoint", tmp_path / "recogniser.safetensors", *out)
    assert "is a recognition model" in line
    assert "no key 'sigmaa'" in fails(capsys, good, "--checkpoint", checkpoint, "--set", "test.sigmaa=1", *out)
    assert "GPUs here" in fails(capsys, good, "--checkpoint", checkpoint, "--device", "cuda:99", *out)
    assert "--device warp: invalid device" in fails(capsys, good, "--checkpoint", checkpoint, "--device", "warp", *out)
    (tmp_path / "taken").write_text("a file")
    assert "taken" in fails(capsys, good, "--checkpoint", checkpoint, "-o", tmp_path / "taken")


def test_files_that_no_prediction_wrote_are_left_alone(videos, checkpoint, tmp_path, capsys):
    (tmp_path / "silent.srt").write_text("by hand")
    arguments = [videos["silent"], "--checkpoint", checkpoint, "-o", tmp_path]
    assert "silent.srt. Give another -o FOLDER" in fails(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["silent.srt"]
    assert (tmp_path / "silent.srt").read_text() == "by hand"


def test_a_published_checkpoint_needs_class_names(videos, tmp_path, capsys):
    overrides = [f"{name}={value}" for name, value in SMALL.items()]
    config = loading.override(find_recipe("quickstart").config, overrides)
    detector = build_detector(replace(config, backbone=replace(config.backbone, weights=None)), num_classes=2)
    state = published(detector, beside=False)
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "published.pth")
    arguments = [videos["silent"], "--checkpoint", tmp_path / "published.pth", "--recipe", "quickstart"]
    arguments += ["-o", tmp_path / "out", "--set", "test.min_score=0"]
    arguments += [word for change in overrides for word in ("--set", change)]
    assert "--classes FILE" in fails(capsys, *arguments)
    (tmp_path / "names.txt").write_text("dive\nserve\n")
    assert run(*arguments, "--classes", tmp_path / "names.txt") == 0
    assert {record["label"] for record in results_of(tmp_path / "out")["silent"]} == {"dive", "serve"}
    assert run(*arguments, "--set", "data.classes=['run','jump']") == 0
    assert {record["label"] for record in results_of(tmp_path / "out")["silent"]} == {"run", "jump"}


def test_from_python(videos, checkpoint, predicted):
    detector = load_detector(checkpoint)
    assert detector.classes == CLASSES
    shares: list[float] = []
    found = detector.detect(videos["sound"], progress=shares.append)
    assert [detection.record() for detection in found] == results_of(predicted)["sound"]
    assert shares == [1.0]
    shares.clear()
    load_detector(checkpoint, overrides=["test.batch=1"]).detect(videos["sound"], progress=shares.append)
    assert shares == [0.5, 1.0]
    with pytest.raises(FrozenInstanceError):
        found[0].score = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("tuning", ["tia", "side"])
@pytest.mark.parametrize("recomputing", [False, True])
def test_blocks_that_wait_in_host_memory(videos, tmp_path, tuning, recomputing):
    """Accelerate brings them for each use; between uses they have no memory where the detector runs."""
    changes = {"backbone__tuning": tuning, "backbone__activation_checkpointing": recomputing}
    checkpoint = make_export(tmp_path / "mine.safetensors", **changes, backbone__clips_per_chunk=2)
    whole, offloaded = load_detector(checkpoint), load_detector(checkpoint, max_device_gb=0.0)
    blocks = offloaded._module.backbone.vit.blocks
    assert len(blocks) == 6
    assert all(parameter.is_meta for parameter in blocks.parameters())
    assert not any(parameter.is_meta for parameter in offloaded._module.head.parameters())
    frames = torch.randint(256, (2, 64, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(whole._module.backbone(frames), offloaded._module.backbone(frames))
    assert all(parameter.is_meta for parameter in blocks.parameters())
    assert offloaded.detect(videos["vp9"]) == whole.detect(videos["vp9"])


@pytest.mark.slow
def test_interrupted(videos, checkpoint, tmp_path):
    out = tmp_path / "out"
    copies = [tmp_path / f"copy_{index:02}.mp4" for index in range(40)]
    for copy in copies:
        shutil.copy(videos["sound"], copy)
    command = launched("python", 1, ["adatad_ds/predict.py", *map(str, copies), "--checkpoint", str(checkpoint)])
    process = subprocess.Popen(
        [*command, "-o", str(out), "--annotated"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not (out / "copy_01.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted" in error
    found = results_of(out)
    assert 1 <= len(found) < 40
    for name, records in found.items():
        assert results_of_one(out / f"{name}.json", name) == records
        assert all((out / f"{name}.{kind}").exists() for kind in (*FILES, "annotated.mp4"))
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    # the last one that is done, and the one after, of which some files are there
    assert run(*copies[len(found) - 1 : len(found) + 1], "--checkpoint", checkpoint, "-o", out, "--annotated") == 0
