"""Checking a data set: faults of real files, contradictions with annotations, statistics, suggested settings."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad_ds.cli.commands import main
from adatad_ds.config.loading import override
from adatad_ds.data.annotations import Action, Video, subset_names
from adatad_ds.data.inspection.scan import Cache, Scan, scan, scan_all
from adatad_ds.data.inspection.survey import (
    Lengths,
    choose_subsets,
    count_classes,
    disagreements,
    fit,
    frame_rate,
    measure,
    section,
    suggest,
    uneven_rate,
)
from adatad_ds.data.video_names import read_names
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.evaluation.plots.distributions import SubsetShape, draw_distributions
from adatad_ds.recipes.catalog import find_recipe
from tests.support import launch
from tests.support.pool import forked
from tests.support.videos import cut, numbered_frame, overstate_frames, scramble_packet, write_video

ROOT = Path(__file__).resolve().parents[3]
FRAMES, FPS = 60, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    return write_video(folder / "whole.mp4", frames=FRAMES, fps=FPS)


def write_uneven(path: Path) -> Path:
    """Frames 0.05 s apart in the first half and 0.2 s in the second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 176, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            frame.pts, frame.time_base = 50 * min(index, 30) + 200 * max(index - 30, 0), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def entry(*segments: tuple[float, float], subset: str = "training", label: str = "jump", **fields: float) -> dict:
    actions = [{"segment": list(segment), "label": label} for segment in segments]
    return {"subset": subset, "duration": FRAMES / FPS, "annotations": actions} | fields


def write_annotations(path: Path, **videos: dict) -> Path:
    path.write_text(json.dumps({"database": videos}))
    return path


def annotated(*segments: tuple[float, float], **fields: Any) -> Video:
    values = {"name": "v", "subset": "training", "duration_sec": 6.0, "num_frames": None, "fps": None} | fields
    return Video(**values, actions=tuple(Action(start, end, "jump") for start, end in segments))


# --- files


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_whole_file_has_no_faults(tmp_path: Path, name: str, codec: str):
    found = scan(write_video(tmp_path / name, frames=FRAMES, fps=FPS, codec=codec))
    assert (found.packets, found.error) == (FRAMES, None)
    assert found.duration_sec == pytest.approx(6)
    assert found.faults == ()
    assert uneven_rate(found) is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cut_file_is_truncated(tmp_path: Path, suffix: str):
    source = write_video(tmp_path / f"whole{suffix}", frames=FRAMES, fps=FPS)
    found = scan(cut(source, tmp_path / f"cut{suffix}", share=0.6))
    assert found.packets < FRAMES
    assert any("ends early" in fault and "of 6.0 s are missing" in fault for fault in found.faults)


def test_a_header_that_promises_too_much(tmp_path: Path):
    source = write_video(tmp_path / "a.avi", frames=FRAMES, fps=FPS, codec="mpeg4", b_frames=0)
    assert scan(source).faults == ()
    found = scan(overstate_frames(source, tmp_path / "b.avi"))
    assert found.faults == ("ends early: 54.0 of 60.0 s are missing",)


def test_a_broken_packet_is_damage(tmp_path: Path, whole: Path):
    found = scan(scramble_packet(whole, tmp_path / "noise.mp4", packet=20))
    assert found.packets == FRAMES
    assert [fault.split(":")[0] for fault in found.faults] == ["damaged"]


def test_what_cannot_be_read(tmp_path: Path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 100)
    assert "empty" in (scan(tmp_path / "empty.mp4").error or "")
    assert "Invalid data" in (scan(tmp_path / "text.mp4").error or "")
    assert "No such file" in (scan(tmp_path / "none.mp4").error or "")
    assert "no video stream" in (scan(write_sound(tmp_path / "sound.mp4")).error or "")


def test_variable_frame_rate(tmp_path: Path):
    found = scan(write_uneven(tmp_path / "uneven.mkv"))
    assert found.packets == FRAMES
    assert found.faults == ()
    assert (found.shortest_sec, found.longest_sec) == (pytest.approx(0.05), pytest.approx(0.2))
    assert "variable frame rate" in (uneven_rate(found) or "")


def test_rounded_times_are_no_variable_rate(tmp_path: Path):
    assert uneven_rate(scan(write_video(tmp_path / "a.mkv", frames=FRAMES, fps=30))) is None  # 33 and 34 ms


def test_cache_knows_a_file_until_it_changes(tmp_path: Path, whole: Path):
    path, file = tmp_path / "cache.json", tmp_path / "a.mp4"
    file.write_bytes(whole.read_bytes())
    found = scan_all([file], workers=1, cache=Cache(path))[file]
    assert Cache(path).get(file) == found
    cut(whole, file, share=0.6)
    assert Cache(path).get(file) is None
    changed = scan_all([file], workers=1, cache=Cache(path))[file]
    assert changed.packets < found.packets
    path.write_text("{half a fi")
    assert Cache(path).get(file) is None


def crashing(path: Path) -> Scan:
    """Stands for `scan` where a decoder takes its process down."""
    if "bad" in path.name:
        os._exit(11)
    return scan(path)


@pytest.mark.slow
def test_a_crash_of_the_decoder_costs_one_file(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adatad_ds.data.inspection.scan.scan", crashing)
    paths = [tmp_path / name for name in ("a.mp4", "bad.mp4", "b.mp4", "c.mp4")]
    for path in paths:
        path.write_bytes(whole.read_bytes())
    found = scan_all(paths, workers=2, cache=Cache(tmp_path / "cache.json"))
    assert {path.name for path, result in found.items() if result.error} == {"bad.mp4"}
    assert found[paths[1]].error == f"{paths[1]}: the decoder crashes on it"


# --- annotations


def test_contradictions_with_the_file():
    found = Scan(packets=60, duration_sec=6.0, fps=10.0)
    agrees = annotated((1, 3), num_frames=61, fps=10.2, duration_sec=6.1)
    assert disagreements(agrees, found) == []
    lines = disagreements(annotated((1, 3), (7, 9), num_frames=90, fps=15.0, duration_sec=12.0), found)
    assert [line.split(":")[0] for line in lines[:3]] == ["duration", "frame", "fps"]
    assert lines[3] == "1 of its 2 actions begin after the file's end"


def test_rates_are_those_that_training_uses():
    found = Scan(packets=60, duration_sec=6.0, fps=10.0)
    assert frame_rate(annotated(num_frames=90, fps=7.0), found) == 15  # its frames over its duration
    assert frame_rate(annotated(fps=12.5), found) == 12.5
    assert frame_rate(annotated(), found) == 10
    assert frame_rate(annotated(), Scan(error="broken")) is None
    lengths = measure([annotated((1, 3)), annotated((0, 6), name="w")], {"v": 10.0, "w": 30.0})
    assert lengths.frames.tolist() == [20, 180]
    assert lengths.video_share.tolist() == pytest.approx([1 / 3, 1])
    assert measure([annotated((1, 3))], {}).frames.tolist() == [50]


def test_class_counts():
    videos = {"training": [annotated((1, 2), (3, 4))], "validation": []}
    expected = {"training": {"jump": 2, "run": 0}, "validation": {"jump": 0, "run": 0}}
    assert count_classes(videos, ("jump", "run")) == expected


@pytest.mark.parametrize(
    ("segments", "asked", "expected"),
    [
        ({"validation": 5, "training": 3, "testing": 0}, (None, None), ("training", "validation")),
        ({"a": 3, "b": 9}, (None, None), ("b", "a")),
        ({"a": 3, "b": 9}, (None, "b"), ("a", "b")),
        ({"x": 3, "test": 2, "train": 1}, (None, None), ("train", "test")),
        ({"only": 3}, (None, None), ("only", "only")),
    ],
)
def test_subsets_are_told_by_name_and_size(segments: dict[str, int], asked: tuple, expected: tuple[str, str]):
    assert choose_subsets(segments, train=asked[0], test=asked[1]) == expected


def test_subsets_that_cannot_be_used():
    with pytest.raises(DataError, match="there is no such subset; known: a, b"):
        choose_subsets({"a": 1, "b": 2}, train="c", test=None)
    with pytest.raises(DataError, match="has an action to train on"):
        choose_subsets({"a": 0, "b": 0}, train=None, test=None)


def test_subset_names(tmp_path: Path):
    path = write_annotations(tmp_path / "a.json", v=entry(subset="val"), w=entry(subset="train"), x=entry(subset="val"))
    assert subset_names(path) == ["val", "train"]


# --- suggestions


def of_lengths(seconds: list[float], rates: list[float]) -> Lengths:
    sec = np.array(seconds)
    return Lengths(sec=sec, frames=sec * np.resize(np.array(rates), len(sec)), video_share=np.ones(len(sec)))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    seconds=st.lists(st.floats(0.02, 4000), min_size=1, max_size=40),
    rates=st.lists(st.sampled_from([1.0, 10.0, 23.976, 25.0, 30.0, 60.0]), min_size=1, max_size=3),
    longest=st.floats(1, 10),
    max_frames=st.integers(64, 3072),
    recipe=st.sampled_from(["quickstart", "thumos14_videomae_s", "thumos14_videomaev2_g_1536"]),
)
def test_suggestions_can_be_run_and_hold_long_segments(
    seconds: list[float], rates: list[float], longest: float, max_frames: int, recipe: str
):
    lengths = of_lengths(seconds, rates)
    found = suggest(lengths, longest_video_frames=longest * float(lengths.frames.max()), max_frames=max_frames)
    config = override(find_recipe(recipe).config, found.assignments(find_recipe(recipe).config))  # raises if it cannot
    assert config.data.window_frames <= max_frames
    window = config.data.window_size * (config.data.feature_stride_frames or 0)
    assert window >= np.quantile(lengths.frames, 0.99)
    ranges = config.head.regression_range
    assert ranges[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    result = fit(lengths, config)
    assert result.outside == 0
    assert result.longer <= 0.01 + 1 / len(seconds)
    assert sum(result.per_level) == pytest.approx(1)
    if found.feature_stride_frames > 1 and max_frames >= 8 * np.quantile(lengths.frames, 0.99):
        assert np.quantile(lengths.frames, 0.05) / found.feature_stride_frames >= 2


def test_data_like_the_published_get_a_window_like_the_published():
    rng = np.random.default_rng(0)
    lengths = of_lengths(np.exp(rng.normal(1.1, 0.8, 3000)).tolist(), [30.0])  # like THUMOS14's: median 3 s, to 30 s
    found = suggest(lengths, longest_video_frames=30 * 600, max_frames=768)
    assert 256 <= found.window_size * found.frames_per_feature <= 768
    assert 30 <= found.window_size * found.feature_stride_frames / 30 <= 102.4  # seconds
    assert 3 <= found.feature_stride_frames <= 8
    assert 5 <= found.levels <= 7


def test_short_segments_give_way_to_long_ones():
    found = suggest(of_lengths([0.2] * 50 + [600.0] * 50, [30.0]), longest_video_frames=30 * 900, max_frames=768)
    assert found.window_size * found.feature_stride_frames >= 600 * 30
    assert any("--max-frames" in reason for reason in found.reasons)


def test_no_suggestion_without_segments():
    with pytest.raises(DataError, match="no segment"):
        suggest(of_lengths([], [30.0]), longest_video_frames=100, max_frames=768)
    with pytest.raises(DataError, match="64 is the least"):
        suggest(of_lengths([1.0], [30.0]), longest_video_frames=100, max_frames=32)


def test_fit_counts_what_a_recipe_misses():
    config = override(
        find_recipe("quickstart").config,
        ["data.window_size=64", "data.feature_stride_frames=2", "head.regression_range=[[1,4],[4,8],[8,16],[16,20]]"],
    )
    lengths = Lengths(frames=np.array([1.0, 8, 24, 100, 200]), sec=np.ones(5), video_share=np.full(5, 0.125))
    result = fit(lengths, config)  # 0.5, 4, 12, 50 and 100 steps
    assert (result.under_step, result.longer, result.outside) == pytest.approx((0.2, 0.2, 0.6))
    assert result.per_level == pytest.approx((0.2, 0.2, 0, 0))
    resized = fit(lengths, override(config, ["data.sampling=resize"]))  # 8 steps each
    assert resized.per_level == pytest.approx((0, 1, 0, 0))


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "1", "none", "[a]", "a=b"])
def test_values_survive_the_command_line(name: str):
    config = find_recipe("quickstart").config
    found = suggest(of_lengths([2.0], [10.0]), longest_video_frames=100, max_frames=768)
    written = section(config, {"data.train_subset": name, "data.videos": f"/d/{name}é\\"}, found)
    words = shlex.split(" ".join(shlex.quote(assignment) for assignment in written))
    data = override(config, words).data
    assert (data.train_subset, data.videos) == (name, f"/d/{name}é\\")
    with pytest.raises(ConfigError):
        section(config, {"data.nothing": "x"}, found)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 5, 200])
def test_picture(tmp_path: Path, classes: int):
    rng = np.random.default_rng(0)
    shape = SubsetShape(
        segments_sec=rng.uniform(1, 9, classes),
        videos_sec=rng.uniform(10, 90, classes),
        classes={f"class {index}": index for index in range(classes)},
    )
    empty = SubsetShape(segments_sec=np.empty(0), videos_sec=np.empty(0), classes={})
    path = tmp_path / "a.png"
    subsets = {"training": shape, "testing": empty}
    draw_distributions(path, subsets=subsets, limits_sec=[1.0, 2.0], window_sec=20, title="x")
    assert path.stat().st_size > 10_000


# --- the command


@pytest.mark.slow
def test_problems_are_listed(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("good", "rate", "test"):
        (videos / f"{name}.mp4").write_bytes(whole.read_bytes())
    cut(whole, videos / "cut.mp4", share=0.6)
    (videos / "text.mp4").write_text("no video")
    write_sound(videos / "sound.mp4")
    write_uneven(videos / "uneven.mkv")
    annotations = write_annotations(
        tmp_path / "a.json",
        good=entry((1, 3), (5, 4)),
        rate=entry((1, 3), fps=25),
        cut=entry((1, 3)),
        text=entry((1, 3)),
        sound=entry((1, 3)),
        uneven=entry((1, 3), duration=7.5),
        gone=entry((1, 3)),
        test=entry((1, 3), subset="validation", label="run"),
    )
    out = tmp_path / "out"
    words = ["--annotations", str(annotations), "--videos", str(videos), "--out", str(out), "--workers", "2"]
    assert main(["check-data", *words, "--recipe", "quickstart"]) == 1
    report = (out / "report.txt").read_text()
    for kind in (
        "files missing (1)\n  gone",
        "files that cannot be read (1)",
        "files without a video stream (1)",
        "truncated or damaged files",
        "rate: fps: annotated 25, the file has 10 frames per second",
        "note: files whose frames are read by their own times (1)\n  uneven: variable frame rate",
        "training: 1 annotation dropped: end <= start (good #1)",
        "note: classes that cannot be measured (1)\n  jump: no instance in validation",
        "PROBLEM: classes without a segment to train on (1)\n  run: no instance in training",
        "each of the 4 training videos is seen",
        "steps per epoch",
        "for a small machine (settings_small.txt)",
    ):
        assert kind in report
    assert report.splitlines()[0] in capsys.readouterr().out
    lines = shlex.split((out / "settings.txt").read_text())
    config = override(find_recipe("quickstart").config, lines[1::2])
    assert set(lines[::2]) == {"--set"}
    assert set(read_names(config.data.exclude_file)) == {"gone", "text", "sound"}
    left = {video.name for video in WindowDataset.for_training(config.data, seed=0).videos}
    assert left == {"good", "rate", "cut", "uneven"}


def checked(tmp_path: Path, videos: Path, annotations: Path, *more: str) -> tuple[int, str]:
    """Exit code and report, without the seconds that a timing takes."""
    out = tmp_path / "out"
    words = ["--annotations", str(annotations), "--videos", str(videos), "--out", str(out), "--workers", "1"]
    code = main(["check-data", *words, "--recipe", "quickstart", *more])
    return code, (out / "report.txt").read_text() if code < 2 else ""


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConfigError("not in this test")

    monkeypatch.setattr("adatad_ds.planning.training_advice.time_window", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_class_without_test_segments_is_advice(tmp_path: Path, whole: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b", "c"):
        (videos / f"{name}.mp4").write_bytes(whole.read_bytes())
    annotations = write_annotations(
        tmp_path / "a.json",
        a=entry((1, 3)),
        b=entry((1, 3), label="run"),
        c=entry((1, 3), subset="validation"),
    )
    code, report = checked(tmp_path, videos, annotations)
    assert code == 0
    assert "note: classes that cannot be measured (1)\n  run: no instance in validation" in report
    assert "no problems found" in report


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_names_with_extension_and_a_list_of_videos_to_leave_out(tmp_path: Path, whole: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "v_b"):
        (videos / f"{name}.mp4").write_bytes(whole.read_bytes())
    annotations = write_annotations(
        tmp_path / "a.json",
        **{"a.mp4": entry((1, 3)), "b": entry((1, 3), subset="validation"), "gone.mp4": entry((1, 3))},
    )
    code, report = checked(tmp_path, videos, annotations)
    assert code == 1
    assert "files missing (1)\n  gone.mp4" in report
    (tmp_path / "list.txt").write_text("gone\n")
    code, report = checked(tmp_path, videos, annotations, "--exclude-file", str(tmp_path / "list.txt"))
    assert code == 0, report
    assert "1 videos of 'training' left out by" in report
    lines = shlex.split((tmp_path / "out/settings.txt").read_text())
    data = override(find_recipe("quickstart").config, lines[1::2]).data
    assert [video.name for video in WindowDataset.for_training(data, seed=0).videos] == ["a.mp4"]
    both = write_annotations(tmp_path / "b.json", **{"b": entry((1, 3)), "v_b.mkv": entry((1, 3), subset="validation")})
    assert checked(tmp_path, videos, both)[0] == 2


def test_nothing_to_check(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]):
    annotations = write_annotations(tmp_path / "a.json", whole=entry((1, 3)))
    elsewhere = write_annotations(tmp_path / "b.json", other=entry((1, 3)))
    empty = write_annotations(tmp_path / "c.json", whole=entry())
    (tmp_path / "d.json").write_text("[]")
    out = ["--out", str(tmp_path / "out"), "--workers", "1"]

    def fails(file: Path, folder: Path, *more: str) -> str:
        assert main(["check-data", "--annotations", str(file), "--videos", str(folder), *out, *more]) == 2
        return capsys.readouterr().err

    assert "there is no folder" in fails(annotations, tmp_path / "nowhere")
    assert "none of the 1 annotated videos" in fails(elsewhere, whole.parent)
    assert "has an action" in fails(empty, whole.parent)
    assert "database" in fails(tmp_path / "d.json", whole.parent)
    assert "cannot read" in fails(tmp_path / "e.json", whole.parent)
    assert "no recipe" in fails(annotations, whole.parent, "--recipe", "thumos15")


@pytest.mark.slow
def test_generated_data_are_all_good_and_cached(tmp_path: Path):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return launch.start(forked(1, list(words)))

    make = ["-m", "adatad_ds", "generate", "videos", "--out", str(tmp_path / "data")]
    made = run(*make, "--train", "3", "--test", "2", "--seed", "20", "--seconds", "14", "22")
    assert made.returncode == 0, made.stderr
    data = ["--annotations", str(tmp_path / "data/annotations.json"), "--videos", str(tmp_path / "data/videos")]
    check = ["-m", "adatad_ds", "check-data", *data, "--out", str(tmp_path / "out"), "--recipe", "quickstart"]
    first, second = run(*check), run(*check)
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + first.stderr
    assert "5 videos, 0 of them cached" in first.stdout
    assert "5 videos, 5 of them cached" in second.stdout
    assert "no problems found" in second.stdout
    assert "recipe quickstart, on the training segments" in second.stdout
    found = [[line for line in done.stdout.splitlines()[1:] if "time on" not in line] for done in (first, second)]
    assert found[0] == found[1]
    assert first.stdout.count("time on this machine (") == 2
    assert (tmp_path / "out" / "distributions.png").stat().st_size > 10_000
    for settings_file in ("settings.txt", "settings_small.txt"):
        words = shlex.split((tmp_path / "out" / settings_file).read_text())
        words += [
            "--set",
            "train.repeats=1",
            "--set",
            "train.stop_epoch=1",
            "--set",
            "train.eval_from_epoch=1",
            "--run-dir",
            str(tmp_path / "run"),
        ]
        engine = ["--deepspeed_config", "ds_configs/zero2.json"]
        train = run("adatad_ds/train.py", *engine, "--recipe", "quickstart", *words)
        assert train.returncode == 0, train.stderr
        assert "average mAP" in train.stdout + train.stderr
        shutil.rmtree(tmp_path / "run")
