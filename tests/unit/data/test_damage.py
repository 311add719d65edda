"""What files lack, and when their pictures are shown: said once a file, with how much; all times a player's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.data.annotations import Action, Video
from adatad_ds.data.batch import collate
from adatad_ds.data.decoding.damage import Damage, gaps, merged
from adatad_ds.data.decoding.frames import find_lost, read_frames
from adatad_ds.data.decoding.video import VideoError, frames_at, probe
from adatad_ds.data.inspection.scan import scan
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.data.window_stream import lone_video, stream_batches, windows_of_file
from adatad_ds.data.windows import WindowSource, find_timing, resize_window
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.evaluation.candidates_file import SavedCandidates, read_candidates, write_candidates
from adatad_ds.evaluation.detections_file import read_results, write_results
from adatad_ds.evaluation.video.overlay import write_annotated
from adatad_ds.models.detector import detector_points
from adatad_ds.models.heads.actionformer import PointPredictions
from adatad_ds.tasks.detection_pipeline import damaged_videos, find_candidates
from adatad_ds.training.guards import DamagedVideos
from tests.support.videos import (
    blank,
    cut,
    frame_numbers,
    lose_packets,
    scramble_packet,
    write_elementary,
    write_late,
    write_video,
)

FRAMES, FPS = 100, 10
BASE = DataConfig(
    window_size=16, feature_stride_frames=2, resolution=32, short_side_before_crop=40, workers=0, crop_ratio=None
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    write_video(folder / "whole.mp4", frames=FRAMES, fps=FPS)
    write_video(folder / "whole.mkv", frames=FRAMES, fps=FPS)
    write_video(folder / "whole.ts", frames=FRAMES, fps=FPS)
    scramble_packet(folder / "whole.mp4", folder / "noise.mp4", packet=40)
    blank(folder / "whole.mp4", folder / "zeros.mp4", begin=0.5, share=0.05)
    blank(folder / "whole.mkv", folder / "zeros.mkv", begin=0.4, share=0.2)
    lose_packets(folder / "whole.ts", folder / "lost.ts", begin=0.4, share=0.2)
    cut(folder / "whole.mp4", folder / "cut.mp4", share=0.6)
    cut(folder / "whole.mkv", folder / "cut.mkv", share=0.6)
    return folder


# ---- damage


@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv", "whole.ts"])
def test_whole_files_have_none(folder: Path, name: str):
    assert not probe(folder / name).damage
    assert find_lost(folder / name) == set()
    assert scan(folder / name).faults == ()


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_an_end_before_the_headers(folder: Path, name: str):
    info = probe(folder / name)
    assert info.num_frames < 0.7 * FRAMES
    missing_sec = FRAMES / FPS - info.num_frames / FPS
    assert info.damage.missing_sec == pytest.approx(missing_sec, abs=0.3)
    (said,) = [phrase for phrase in info.damage.phrases() if "ends early" in phrase]
    assert said.endswith(("of 9.9 s are missing", "of 10.0 s are missing"))
    assert str(info.damage).startswith(f"{folder / name}: ")


def test_sound_that_goes_on_is_no_early_end(tmp_path: Path):
    assert not probe(write_late(tmp_path / "late.mkv", frames=40, late_sec=3.0)).damage


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video")])
def test_recordings_joined_byte_by_byte(tmp_path: Path, suffix: str, codec: str):
    """Their times begin anew, and would mix the pictures of both: frames are counted, and it is said."""
    parts = [write_video(tmp_path / f"{count}{suffix}", frames=count, fps=25, codec=codec) for count in (50, 90)]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    order = [*range(50), *range(90)]
    info = probe(joined)
    assert (info.num_frames, info.fps, info.duration_sec) == (140, 25, pytest.approx(5.6))
    assert "its clock jumps back once" in str(info.damage)
    assert probe(joined) == info  # from the index on disk, too
    frames = read_frames(joined, np.arange(140), short_side=96, scaling="bilinear", backend="auto")
    assert frame_numbers(frames).tolist() == order
    some = np.arange(30, 140, 5)
    frames = read_frames(joined, some, short_side=96, scaling="bilinear", backend="auto")
    assert frame_numbers(frames).tolist() == [order[at] for at in some]
    assert not probe(parts[0]).damage
    copy = tmp_path / "copy.mp4"
    write_annotated(joined, copy, detections=[])
    assert probe(copy).num_frames == 140
    assert probe(copy).duration_sec == pytest.approx(5.6, abs=0.1)


@pytest.mark.parametrize("name", ["zeros.mkv", "lost.ts"])
def test_packets_that_are_missing(folder: Path, name: str):
    info = probe(folder / name)
    held = info.num_frames
    assert held < FRAMES - 5
    gaps_sec = info.damage.gaps_sec  # two, where a frame between them was left
    assert sum(end - begin for begin, end in gaps_sec) == pytest.approx((FRAMES - held) / FPS, abs=0.15)
    assert info.fps == pytest.approx(FPS)  # not the lower mean
    assert info.duration_sec == pytest.approx(FRAMES / FPS, abs=0.15)
    # what comes after the gap is found where it was recorded
    late = np.array([gaps_sec[-1][1] + 0.52])
    number = frame_numbers(read_frames(folder / name, frames_at(folder / name, late), **READING))
    assert number.tolist() == [int(late[0] * FPS + 1e-6)]
    assert "s without a picture" in str(info.damage)


READING = {"short_side": 96, "scaling": "bilinear", "backend": "pyav"}


@pytest.mark.parametrize(("name", "least", "most"), [("noise.mp4", 1, 14), ("zeros.mp4", 1, 40)])
def test_frames_that_cannot_be_decoded(folder: Path, name: str, least: int, most: int):
    """All frames that do not show their number are noted, and few others."""
    lost: set[int] = set()
    shown = frame_numbers(read_frames(folder / name, np.arange(FRAMES), **READING, lost=lost))
    wrong = {int(index) for index in np.flatnonzero(shown != np.arange(FRAMES))}
    assert least <= len(lost) <= most
    assert wrong <= lost
    assert lost == find_lost(folder / name)
    damage = probe(folder / name).damage.with_lost(lost)
    assert f"damaged: {len(lost)} of 100 frames" in str(damage)
    assert scan(folder / name).faults == tuple(damage.phrases())
    part: set[int] = set()
    read_frames(folder / name, np.array([0, 10, 20]), **READING, lost=part)
    assert part == set()


def test_gaps_are_those_of_an_even_rate():
    even = np.arange(100) / 10
    assert gaps(even) == ()
    assert gaps(np.delete(even, slice(40, 60))) == (pytest.approx((4.0, 6.0)),)
    alone = gaps(np.delete(even, [38, *range(40, 60)]))  # frame 39
    assert alone == (pytest.approx((3.8, 3.9)), pytest.approx((4.0, 6.0)))
    assert gaps(np.delete(even, [20, 50])) == ()  # single frames that a recording dropped
    still = np.cumsum([0.04, 0.3, 0.05, 2.0, 0.1] * 20)
    assert gaps(still) == ()  # as screens are recorded


def test_two_readings_of_a_file_are_one():
    first = Damage(path="v", num_frames=9, fps=1.0, lost=frozenset({1}))
    assert merged(first, first.with_lost({4})) == first.with_lost({4})
    assert merged(None, first) is first
    assert merged(None, None) is None


# ---- who says it


def annotate(folder: Path, name: str, **fields: object) -> DataConfig:
    entry = {"duration": 10.0, "annotations": [{"segment": [1.0, 8.0], "label": "run"}]} | fields
    database = {Path(name).stem: entry | {"subset": subset} for subset in ("training",)}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"database": database}))
    return replace(BASE, annotations=str(path), videos=str(folder), test_subset="training")


def only(folder: Path, place: Path, name: str) -> Path:
    (place / name).write_bytes((folder / name).read_bytes())
    return place


@pytest.mark.parametrize("name", ["noise.mp4", "zeros.mkv", "cut.mp4"])
def test_samples_carry_it(folder: Path, tmp_path: Path, name: str):
    config = annotate(only(folder, tmp_path, name), name)
    data = WindowDataset.for_testing(config)
    found = None
    for index in range(len(data)):
        sample = data[0, index]
        assert sample.error is None
        found = merged(found, sample.damage)
    whole = probe(tmp_path / name).damage.with_lost(find_lost(tmp_path / name))
    assert found is not None
    assert found.phrases()[0] == whole.phrases()[0]
    training = WindowDataset.for_training(replace(config, window_size=64), seed=0)
    assert training[0, 0].damage
    batch = collate([training[0, 0], training[None]])
    assert [bool(damage) for damage in batch.damage] == [True, False]


ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def test_training_says_it_once_a_file():
    said: list[str] = []
    videos = DamagedVideos(world=ALONE, report=said.append)
    whole = Damage(path="whole.mp4", num_frames=9, fps=1.0)
    bad = replace(whole, path="bad.mp4", lost=frozenset({1}))
    for found in ([whole, None], [bad, bad], [bad.with_lost({5})], [whole]):
        videos.add(videos.untold(found))
    (line,) = said
    assert "bad.mp4: damaged: 1 of 9 frames" in line


def test_evaluation_tells_it_by_video(folder: Path, tmp_path: Path):
    """What all windows of a file met, once; kept with raw candidates, too."""
    data = annotate(only(folder, tmp_path, "noise.mp4"), "noise.mp4")
    config = Config(data=replace(data, window_size=32))
    points = detector_points(config, device=ALONE.device)
    count = len(points)

    def forward(frames: torch.Tensor, valid: torch.Tensor) -> PointPredictions:
        shape = (len(frames), count)
        return PointPredictions(
            class_logits=torch.zeros(*shape, 1),
            distances=torch.ones(*shape, 2),
            valid=torch.ones(shape, dtype=torch.bool),
        )

    dataset = WindowDataset.for_testing(config.data)
    assert len(dataset) > 1
    found = find_candidates(
        forward=forward,
        batches=[collate([dataset[0, index]]) for index in range(len(dataset))],
        config=config,
        mesh=Mesh(world=ALONE, config=config),
        report=lambda line: pytest.fail(line),
    )
    whole = scan(tmp_path / "noise.mp4").faults
    assert damaged_videos(found) == {"noise": f"{tmp_path / 'noise.mp4'}: {'; '.join(whole)}"}
    write_candidates(tmp_path / "raw.npz", SavedCandidates(name="x", config={}, classes=("run",), videos=found))
    assert damaged_videos(read_candidates(tmp_path / "raw.npz").videos) == damaged_videos(found)


def test_results_hold_it(tmp_path: Path):
    write_results(tmp_path / "a.json", {"v": []}, damaged={"v": "v.mp4: ends early"})
    assert json.loads((tmp_path / "a.json").read_text())["damaged"] == {"v": "v.mp4: ends early"}
    assert read_results(tmp_path / "a.json") == {"v": []}
    write_results(tmp_path / "a.json", {"v": []}, damaged={})
    assert "damaged" not in json.loads((tmp_path / "a.json").read_text())


def test_a_stream_carries_it(folder: Path):
    for name in ("noise.mp4", "cut.mkv"):
        path = folder / name
        video = lone_video(path, name="mine")
        batches = list(stream_batches(video, path, windows_of_file(video, path, BASE), config=BASE, batch=2))
        last = batches[-1].damage[-1]
        assert last is not None
        assert last.phrases() == list(scan(path).faults)


# ---- a player's clock


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pictures_that_start_late(tmp_path: Path, suffix: str):
    path = write_late(tmp_path / f"late{suffix}", frames=60, late_sec=3.0)
    info = probe(path)
    assert info.start_sec == pytest.approx(3.0, abs=0.1)
    assert info.duration_sec == pytest.approx(9.0, abs=0.1)
    assert info.even
    assert frames_at(path, np.array([0.0, 3.0, 4.5, 8.96])).tolist() == pytest.approx([0, 0, 15, 59], abs=1)
    video = lone_video(path, name="late")
    (window, *_) = windows_of_file(video, path, BASE)
    assert window.frame_indices[0] == 0
    assert window.grid.to_sec(0.0) == info.start_sec
    assert window.grid.duration_sec == info.duration_sec


@pytest.mark.parametrize("changes", [{}, {"fixed_fps": 5.0}, {"sampling": "resize", "feature_stride_frames": None}])
@pytest.mark.parametrize("fields", [{}, {"frame": 60}], ids=["by its file", "with a frame count"])
def test_training_sees_what_a_player_shows(tmp_path: Path, changes: dict, fields: dict):
    """An action annotated by a player from 5 to 7 s is shown by frames 20 to 40."""
    write_late(tmp_path / "late.mp4", frames=60, late_sec=3.0)
    segment = [{"segment": [5.0, 7.0], "label": "run"}]
    config = annotate(tmp_path, "late.mp4", duration=9.0, annotations=segment, **fields)
    data = WindowDataset.for_testing(replace(config, window_size=64, resolution=96, **changes))
    sample, window = data[0, 0], data._fixed_window(0)
    frames = np.stack(list(data._read(window, short_side=96)))
    ((start, end),) = sample.segments_grid.tolist()
    numbers = frame_numbers(frames)[[round(start), round(end)]]
    assert np.abs(numbers - [20, 40]).max() <= 2


def test_a_start_within_a_frame_is_none(tmp_path: Path):
    info = probe(write_video(tmp_path / "b.avi", frames=20, codec="mpeg4", b_frames=2))
    assert info.start_sec == 0


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".h264"), ("libx265", ".hevc")])
def test_elementary_streams_tell_their_rate(tmp_path: Path, codec: str, suffix: str):
    path = write_elementary(tmp_path / f"camera{suffix}", frames=48, fps=8, codec=codec)
    info = probe(path)
    assert (info.num_frames, info.fps, info.duration_sec) == (48, 8.0, 6.0)
    assert not info.damage
    assert scan(path).duration_sec == 6.0
    shown = frame_numbers(read_frames(path, frames_at(path, np.array([0.0, 2.5, 5.9])), **READING))
    assert shown.tolist() == [0, 20, 47]


def test_an_elementary_stream_without_a_rate_says_so(tmp_path: Path):
    path = write_elementary(tmp_path / "camera.hevc", frames=20, fps=8, codec="libx265", told=False)
    assert probe(path).fps == 25.0
    assert "give no frame rate: all times assume 25 per second" in str(probe(path).damage)


# ---- re-encoded files


def of_video(**fields: object) -> Video:
    values = {"name": "v", "subset": "", "duration_sec": 10.0, "num_frames": None, "fps": None, "actions": ()} | fields
    return Video(**values)  # type: ignore[arg-type]


def test_a_reencoded_file_is_refused_only_where_its_rate_matters(tmp_path: Path):
    """Ten seconds at 10 frames a second, annotated when they had 30."""
    path = write_video(tmp_path / "v.mp4", frames=FRAMES, fps=FPS)
    for fields in ({"num_frames": 300}, {"fps": 30.0}):
        video = of_video(**fields, actions=(Action(5.0, 10.0, "run"),))
        with pytest.raises(VideoError, match="100 frames at 10 per second, but its annotation implies 300 at 30"):
            find_timing(video, path, BASE)
        resize = replace(BASE, sampling="resize", feature_stride_frames=None)
        timing = find_timing(video, path, resize)
        window = resize_window(
            WindowSource(video=video, video_index=0, timing=timing, config=resize, label_ids={"run": 0})
        )
        assert window.frame_indices[-1] == 96  # the centre of the last of 16 parts: all of the file is seen
        np.testing.assert_allclose(window.segments_grid, [[8, 16]])
        assert find_timing(video, path, replace(BASE, fixed_fps=5.0)).num_frames == 50
    assert find_timing(of_video(duration_sec=0.05), path, replace(BASE, fixed_fps=5.0)).num_frames == 1


def test_a_cut_file_keeps_its_times_under_resize(folder: Path):
    resize = replace(BASE, sampling="resize", feature_stride_frames=None)
    info = probe(folder / "cut.mp4")
    for video in (of_video(), of_video(num_frames=FRAMES)):
        timing = find_timing(video, folder / "cut.mp4", resize)
        assert timing.num_frames == FRAMES  # those beyond the end repeat the last one
    assert (
        find_timing(of_video(duration_sec=info.duration_sec), folder / "cut.mp4", resize).num_frames == info.num_frames
    )
