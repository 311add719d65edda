"""The index on disk: what is known of video files, kept for all processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.decoding import video
from adatad_ds.data.decoding.facts import index_from_json, index_to_json
from adatad_ds.data.decoding.index_file import FileState, IndexFile
from adatad_ds.data.window_dataset import WindowDataset
from tests.support.videos import cut, write_video

ROOT = Path(__file__).resolve().parents[3]
STATE = FileState(10, 20)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of its own, and a process that knows no file yet."""
    monkeypatch.setenv("ADATAD_DS_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    forget()


def forget() -> None:
    """As a new process."""
    video._indexed.cache_clear()
    video._index_file.cache_clear()


def videos(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    uneven = [0.0, 0.1, 0.15, 0.4, 0.9, 1.0, 1.7, 1.8]
    whole = write_video(folder / "whole.mp4", frames=20)
    return [
        whole,
        write_video(folder / "uneven.mkv", frames=8, times=uneven),
        cut(whole, folder / "cut.mp4", share=0.7),
        write_video(folder / "stream.h264", frames=12, b_frames=0),
    ]


def test_what_is_kept_is_what_was_found(tmp_path):
    for path in videos(tmp_path):
        found = video.demuxed(path)
        kept = index_from_json(json.loads(json.dumps(index_to_json(found))), path=str(path))
        assert kept.info == found.info
        for name in ("seconds", "times", "key_times"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(found, name))
        assert (kept.plain, kept.tick_sec, kept.marked) == (found.plain, found.tick_sec, found.marked)


def test_another_process_reads_no_packet(tmp_path, cache, monkeypatch):
    paths = videos(tmp_path / "videos")
    before = [video.probe(path) for path in paths]
    forget()
    monkeypatch.setattr(video, "demuxed", lambda path: pytest.fail(f"demuxed {path}"))
    assert [video.probe(path) for path in paths] == before


def test_a_changed_file_is_read_again(tmp_path, cache):
    path = write_video(tmp_path / "a.mp4", frames=20)
    assert video.probe(path).num_frames == 20
    write_video(path, frames=30)
    assert video.probe(path).num_frames == 30
    forget()
    assert video.probe(path).num_frames == 30


def test_many_processes_write(tmp_path):
    code = """
import sys
from pathlib import Path
from adatad_ds.data.decoding.index_file import FileState, IndexFile
index = IndexFile(cache=Path(sys.argv[1]), folder=Path("/videos"))
for number in range(150):
    name = f"{sys.argv[2]}_{number}"
    index.add(name, FileState(number, 1), name.encode() * 50)
    index.add("same", FileState(1, 1), b"same")
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(4)]
    assert [writer.wait(300) for writer in writers] == [0] * 4
    index = IndexFile(cache=tmp_path, folder=Path("/videos"))
    for writer in range(4):
        for number in range(150):
            name = f"{writer}_{number}"
            assert index.get(name, FileState(number, 1)) == name.encode() * 50
    assert index.get("same", FileState(1, 1)) == b"same"
    assert index.get("same", FileState(2, 1)) is None


def test_what_a_killed_process_left_is_cut_off(tmp_path):
    first, second = (IndexFile(cache=tmp_path, folder=Path("/videos")) for _ in range(2))
    first.add("a", STATE, b"of a")
    [path] = tmp_path.glob("*.v*")
    whole = path.read_bytes()
    first.add("b", STATE, b"of b")
    for end in range(len(whole), path.stat().st_size):
        os.truncate(path, end)
        assert second.get("a", STATE) == b"of a"
        assert second.get("b", STATE) is None
        second.add("b", STATE, b"of b")
        assert first.get("b", STATE) == b"of b"


def test_damage_is_no_entry(tmp_path):
    index = IndexFile(cache=tmp_path, folder=Path("/videos"))
    index.add("a", STATE, b"of a")
    [path] = tmp_path.glob("*.v*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert IndexFile(cache=tmp_path, folder=Path("/videos")).get("a", STATE) is None
    assert index.get("a", STATE) is None


def test_without_a_place_files_are_read(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ADATAD_DS_CACHE", str(blocked))
    forget()
    paths = videos(tmp_path / "videos")
    video.index_videos(paths, threads=2)
    assert video.probe(paths[0]).num_frames == 20
    forget()


@pytest.mark.slow
def test_one_rank_probes_for_all(tmp_path, cache):
    """Each file is demuxed once, though four processes ask for all at once."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(12):
        write_video(folder / f"{number}.mp4", frames=4, width=64, height=48)
    code = """
import os, sys
from pathlib import Path
from adatad_ds.data.decoding import video
demuxed, log = video.demuxed, os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def logged(path):
    os.write(log, f"{path.name}\\n".encode())
    return demuxed(path)
video.demuxed = logged
paths = sorted(Path(sys.argv[1]).iterdir())
video.index_videos(paths, threads=2)
print(sum(video.probe(path).num_frames for path in paths))
"""
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "log")]
    ranks = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [rank.communicate(timeout=300)[0].strip() for rank in ranks] == ["48"] * 4
    assert sorted((tmp_path / "log").read_text().split()) == sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_sample_opens_its_file_once(small_videos, cache, monkeypatch):
    """In the second epoch, whichever worker gets it; and a test sample from the first on."""
    opened: list[str] = []
    av_open = av.open

    def counted(path: str, *arguments, **options):
        opened.append(path)
        return av_open(path, *arguments, **options)

    config = DataConfig(
        annotations=str(small_videos / "annotations.json"),
        videos=str(small_videos / "videos"),
        window_size=16,
        feature_stride_frames=2,
        resolution=32,
        short_side_before_crop=36,
        augment=(),
    )
    train = WindowDataset.for_training(config, seed=0)
    test = WindowDataset.for_testing(replace(config, train_subset="validation"))
    for index in range(len(train)):
        assert train[0, index].error is None
    monkeypatch.setattr(av, "open", counted)
    for dataset, epoch in ((train, 1), (test, 0)):
        for index in range(len(dataset)):
            forget()  # a worker that has not seen the file
            opened.clear()
            assert dataset[epoch, index].error is None
            assert len(opened) == 1
