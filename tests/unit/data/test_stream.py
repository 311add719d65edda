"""One file's windows streamed: the same samples as evaluation's, every frame asked for once, few of them held."""

from __future__ import annotations

import json
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.decoding import frames
from adatad_ds.data.decoding.video import VideoError, probe
from adatad_ds.data.video_files import find_files, length_sec
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.data.window_stream import ahead, gather_rows, lone_video, stream_batches, windows_of_file
from adatad_ds.data.windows import file_frames
from adatad_ds.errors import DataError
from tests.support.videos import cut, frame_numbers, scramble_packet, write_video

stream_frames = partial(frames.stream_frames, scaling="antialias")

FRAMES = 131
FPS = 10
BASE = DataConfig(window_size=16, feature_stride_frames=2, resolution=32, short_side_before_crop=40, workers=0)
UNEVEN = np.cumsum([0.04 + 0.2 * (i // 20 % 2) for i in range(FRAMES)]).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    write_video(folder / "even.mp4", frames=FRAMES, fps=FPS)
    write_video(folder / "uneven.mkv", frames=FRAMES, times=UNEVEN, b_frames=0)
    write_video(folder / "old.avi", frames=FRAMES, fps=FPS, codec="mpeg4", b_frames=0)
    write_video(folder / "short.mp4", frames=5, fps=FPS)
    scramble_packet(folder / "even.mp4", folder / "damaged.mp4", packet=40)
    return folder


@pytest.mark.parametrize("name", ["even.mp4", "uneven.mkv", "old.avi", "short.mp4", "damaged.mp4"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"test_window_overlap": 0.75, "frames_per_feature": 2, "feature_stride_frames": 2},
        {"test_window_overlap": 0.0, "reader": "pyav"},
        {"fixed_fps": 7.0},
        {"sampling": "resize", "feature_stride_frames": None},
    ],
)
def test_the_samples_are_those_of_evaluation(folder: Path, tmp_path: Path, name: str, changes: dict):
    path = folder / name
    (tmp_path / name).symlink_to(path)
    database = {path.stem: {"subset": "validation", "duration": probe(path).duration_sec, "annotations": []}}
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    config = replace(BASE, annotations=str(tmp_path / "a.json"), videos=str(tmp_path), classes=("any",), **changes)
    data = WindowDataset.for_testing(config)
    video = lone_video(path, name="mine")
    windows = windows_of_file(video, path, config)
    batches = list(stream_batches(video, path, windows, config=config, batch=3))
    assert [len(batch.videos) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    frames = torch.cat([batch.frames for batch in batches])
    valid = torch.cat([batch.valid for batch in batches])
    grids = [grid for batch in batches for grid in batch.grids]
    assert len(frames) == len(data) == len(windows)
    for index in range(len(data)):
        sample = data[0, index]
        assert sample.error is None
        assert grids[index] == sample.grid
        assert torch.equal(valid[index], sample.valid)
        if name == "damaged.mp4":  # decord gives up at the damage; which decoder takes over where may differ
            assert (frames[index].int() - sample.frames).abs().float().mean() < 3
        else:
            assert torch.equal(frames[index], sample.frames), index


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_few_frames_are_held(data: st.DataObject):
    """Random windows that move on: right frames, each made once, never more alive than one row has."""
    length = data.draw(st.integers(1, 12))
    starts = np.cumsum(data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=12)))
    stride = data.draw(st.integers(1, 3))
    rows = [stride * (start + np.arange(length)) for start in starts]
    rows[-1] = np.minimum(rows[-1], rows[-1][data.draw(st.integers(0, length - 1))])  # padded by its last frame
    if len(rows) > 1 and rows[-1][-1] < rows[-2][-1]:
        rows.pop()
    made: list[int] = []
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def frames():
        nonlocal alive, most
        for number in np.unique(np.concatenate(rows)).tolist():
            frame = torch.full((1, 1, 3), number)
            weakref.finalize(frame, gone)
            made.append(number)
            alive += 1
            most = max(most, alive)
            yield frame
            del frame

    for row, stacked in zip(rows, gather_rows(rows, frames()), strict=True):
        assert stacked[:, 0, 0, 0].tolist() == row.tolist()
    assert made == sorted(set(np.concatenate(rows).tolist()))
    assert most <= length + 1  # and the one that arrives


def test_frames_one_after_the_other(folder: Path):
    wanted = np.array([7, 7, 8, 40, 41, 130, 500])
    for stream in (
        stream_frames(folder / "even.mp4", wanted, short_side=96, backend="decord"),
        stream_frames(folder / "even.mp4", wanted, short_side=96, backend="pyav"),
        stream_frames(folder / "old.avi", wanted, short_side=96, backend="pyav"),
    ):
        first = next(stream)
        assert first.shape == (96, 176, 3)
        assert frame_numbers(np.stack([first, *stream])).tolist() == [7, 7, 8, 40, 41, 130, 130]
    assert list(stream_frames(folder / "even.mp4", np.zeros(0, np.int64), short_side=96, backend="pyav")) == []


def test_a_stream_that_is_left_ends_its_thread(folder: Path):
    path = folder / "even.mp4"
    video = lone_video(path, name="mine")
    threads = threading.active_count()
    batches = stream_batches(video, path, windows_of_file(video, path, BASE), config=BASE, batch=1)
    next(batches)
    assert threading.active_count() > threads
    batches.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_what_is_read_ahead_is_abandoned_with_the_stream():
    """Else closing it would wait for a whole window to be decoded."""
    closed, abandoned = threading.Event(), []

    def items():
        yield 1
        abandoned.append(closed.wait(10))

    stream = ahead(items(), closed)
    assert next(stream) == 1
    stream.close()
    assert abandoned == [True]


def test_an_uneven_file_lasts_as_long_as_its_frames_say(folder: Path):
    info = probe(folder / "uneven.mkv")
    assert not info.even
    assert info.duration_sec == pytest.approx((UNEVEN[-1] - UNEVEN[0]) * FRAMES / (FRAMES - 1), abs=0.01)
    video = lone_video(folder / "uneven.mkv", name="mine")
    windows = windows_of_file(video, folder / "uneven.mkv", BASE)
    last = windows[-1].grid.to_sec(float(windows[-1].valid_steps))
    assert UNEVEN[-1] - UNEVEN[0] <= last <= info.duration_sec + 0.5


def test_windows_go_on_after_a_gap(tmp_path: Path):
    """Frames are counted by time there: 8 s of them, with 5 s without any, are 13 s."""
    path = tmp_path / "gap.mkv"
    write_video(path, frames=80, times=[0.1 * (i if i < 40 else i + 50) for i in range(80)], b_frames=0)
    last = windows_of_file(lone_video(path, name="mine"), path, BASE)[-1]
    assert last.grid.to_sec(16.0) == pytest.approx(13.0)
    assert file_frames(last, path, BASE).tolist() == [48, *range(50, 80, 2)]  # 9.8 to 12.8 s


def test_a_cut_file_is_incomplete(folder: Path, tmp_path: Path):
    assert not probe(folder / "even.mp4").damage
    assert not probe(folder / "uneven.mkv").damage
    assert probe(cut(folder / "even.mp4", tmp_path / "cut.mp4", share=0.6)).damage


def test_length_without_reading(folder: Path, tmp_path: Path):
    assert length_sec(folder / "even.mp4") == pytest.approx(13.1)
    (tmp_path / "no.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"no\.mp4"):
        length_sec(tmp_path / "no.mp4")


def test_which_files_are_meant(tmp_path: Path):
    for name in ("a.mp4", "b.MKV", "deep/c.webm", "deep/a.avi", "a.annotated.mp4", "notes.txt", "odd.xyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names, absent = find_files([str(tmp_path)], reserved="results", ending=".json")
    assert {name: str(path.relative_to(tmp_path)) for name, path in names.items()} == {
        "a.mp4": "a.mp4",
        "b": "b.MKV",
        "deep_a.avi": "deep/a.avi",
        "c": "deep/c.webm",
    }
    assert absent == []
    arguments = [f"{tmp_path}/*.mp4", f"{tmp_path}/odd.xyz", f"{tmp_path}/a.mp4", f"{tmp_path}/none*", "/nowhere.mp4"]
    names, absent = find_files(arguments, reserved="odd", ending=".json")
    assert {name: path.name for name, path in names.items()} == {
        "a.annotated": "a.annotated.mp4",  # a glob means what it says
        "a": "a.mp4",  # once
        "odd.xyz": "odd.xyz",  # its stem is reserved
    }
    assert absent == [f"there is no file {tmp_path}/none*", "there is no file /nowhere.mp4"]
    (tmp_path / "long").mkdir()
    for last in "xyz":
        (tmp_path / f"long/{'あ' * 83}{last}.mp4").write_bytes(b"x")
    names, _ = find_files([f"{tmp_path}/long", f"{tmp_path}/a.mp4"], reserved="results", ending=".annotated.mp4")
    alone, _ = find_files([str(names["a"]), f"{tmp_path}/long/*z.mp4"], reserved="results", ending=".annotated.mp4")
    assert len(names) == 4
    assert max(len(name.encode()) for name in names) <= 255 - len(".annotated.mp4")
    assert alone.items() < names.items()  # a long one is called alike whatever is beside it
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no video"):
        find_files([str(tmp_path / "empty")], reserved="results", ending=".json")
