"""Prepared videos: the same windows, frame for frame, whatever happened while they were made or since."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adatad_ds.cli.commands import main
from adatad_ds.config.loading import override
from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.decoding.prepared import MANIFEST, VERSION, Manifest, from_runs, to_runs
from adatad_ds.data.decoding.video import VideoError, index_of, probe
from adatad_ds.data.inspection.scan import scan
from adatad_ds.data.preparation.needs import ClipUse, Wanted, WindowUse, wanted, wanted_windows
from adatad_ds.data.preparation.preparation import prepare_videos
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.data.window_stream import lone_video, stream_batches, windows_of_file
from adatad_ds.data.windows import WindowSource, file_frames, find_timing, sliding_windows
from adatad_ds.errors import ConfigError, DataError, WriteError
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.tasks.recognition import open_clips
from tests.support.videos import cut, write_textured, write_video

ROOT = Path(__file__).resolve().parents[3]
UNEVEN = np.cumsum(np.tile([0.1, 0.1, 0.02, 0.2], 12))
LABELS = ("jump", "run")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of even, uneven, cut, small and textured videos, and beside it annotations.json."""
    folder = tmp_path_factory.mktemp("originals") / "videos"
    folder.mkdir()
    write_video(folder / "even.mp4", frames=70)
    write_video(folder / "uneven.mkv", frames=48, times=UNEVEN)
    write_video(folder / "small.avi", frames=41, width=64, height=48, codec="mpeg4", b_frames=0)
    write_textured(folder / "textured.mp4", frames=60, width=240, height=180)
    cut(folder / "even.mp4", folder / "cut.mp4", share=0.8)
    database = {}
    for path in sorted(folder.iterdir()):
        info = probe(path)
        actions = [{"segment": [0.5, 2.0], "label": LABELS[len(database) % 2]}]
        whole_sec = info.duration_sec + info.damage.missing_sec
        entry = {"duration": whole_sec, "annotations": actions}
        training = path.stem in ("even", "uneven", "textured")
        database[path.stem] = entry | {"subset": "training" if training else "validation"}
    database["even"]["frame"] = 72  # more than the file has
    (folder.parent / "annotations.json").write_text(json.dumps({"database": database}))
    return folder


def settings(folder: Path, **changes) -> DataConfig:
    base = DataConfig(
        annotations=str(folder.parent / "annotations.json"),
        videos=str(folder),
        window_size=8,
        feature_stride_frames=4,
        resolution=80,
        short_side_before_crop=90,
        augment=("random_resized_crop", "flip"),
    )
    return replace(base, **changes)


def prepare(config: DataConfig, out: Path, **options) -> int:
    given = {"codec": "h264", "quality": None, "workers": 2, "report": lambda _: None} | options
    return prepare_videos([wanted_windows(config)], out=out, **given)


@pytest.fixture(scope="module")
def prepared(originals: Path) -> Path:
    out = originals.parent / "prepared"
    assert prepare(settings(originals), out) == 0
    return out


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(prepared, tmp_path / "prepared"))


def at(config: DataConfig, folder: Path) -> DataConfig:
    return replace(config, videos=str(folder))


def all_samples(config: DataConfig) -> Iterator:
    for dataset in (WindowDataset.for_training(config, seed=3, repeats=2), WindowDataset.for_testing(config)):
        for index in range(len(dataset)):
            yield dataset[1, index]


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((ours.astype(float) - theirs.astype(float)) ** 2)))


def target(folder: Path, name: str) -> Path:
    return next(path for path in folder.glob(f"{name}.*"))


# ---- the same windows ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"fixed_fps": 7.0}, {"sampling": "resize", "feature_stride_frames": None}])
def test_windows_are_the_same(originals, tmp_path, changes):
    """Indices, grids and actions; and the frames, as far as H.264 keeps them."""
    config = settings(originals, **changes)
    prepare(config, tmp_path)
    for ours, theirs in zip(all_samples(at(config, tmp_path)), all_samples(config), strict=True):
        assert (ours.error, theirs.error) == (None, None)
        assert (ours.video, ours.grid, ours.sample_id) == (theirs.video, theirs.grid, theirs.sample_id)
        for name in ("valid", "segments_grid", "labels"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert psnr(ours.frames.numpy(), theirs.frames.numpy()) > 30  # the numbers' edges are sharp


def test_frames_beyond_the_annotation_are_prepared_for_prediction(originals):
    """Of its 70 frames the annotation knows 25; the others are those of the file by itself, and its last."""
    path, config = originals / "even.mp4", settings(originals)
    fps = probe(path).fps
    use = WindowUse(video=Video("even", "", 25 / fps, 25, None, ()), config=config, training=False)
    assert use.frames(path).tolist() == list(range(0, 25, 4))
    assert use.to_prepare(path).tolist() == [*range(0, 70, 4), 69]


def test_indices_are_the_same(originals, prepared):
    from adatad_ds.data.annotations import load_annotations

    for subset in ("training", "validation"):
        config = settings(originals)
        for video in load_annotations(config.annotations, subset=subset)[0].videos:
            found = []
            for folder in (originals, prepared):
                path = target(folder, video.name)
                source = WindowSource(
                    video=video,
                    video_index=0,
                    timing=find_timing(video, path, config),
                    config=config,
                    label_ids=dict.fromkeys(LABELS, 0),
                )
                found.append([file_frames(window, path, config) for window in sliding_windows(source)])
            for theirs, ours in zip(*found, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_pixels_are_nearly_the_same_of_textures(originals, tmp_path):
    """At least 40 dB, of the worst frame; less where prepared pictures are scaled once more."""
    source = originals.parent / "texture.mp4"
    soft_texture(source, frames=33)
    wanted = np.arange(0, 33, 4)
    database = {"texture": {"subset": "training", "duration": 3.3, "annotations": []}}
    for name in ("a", "b"):
        database[name] = {"subset": "validation", "duration": 1.0, "annotations": [{"segment": [0, 1], "label": name}]}
    database["texture"]["annotations"] = [{"segment": [0, 1], "label": "a"}]
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(source, folder / "texture.mp4")
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    for codec in ("h264", "mjpeg"):
        out = tmp_path / codec
        prepare(settings(folder), out, codec=codec)
        for side, least in ((90, 40), (80, 36)):
            ours, theirs = (
                read_frames(path, wanted, short_side=side, scaling="antialias", backend="auto")
                for path in (target(out, "texture"), source)
            )
            assert min(psnr(*pair) for pair in zip(ours, theirs, strict=True)) >= least


@pytest.fixture(scope="module")
def jpegs(originals: Path) -> Path:
    """The originals prepared as MJPEG, and a soft texture."""
    folder = originals.parent / "for_jpeg" / "videos"
    shutil.copytree(originals, folder)
    shutil.copy(originals.parent / "annotations.json", folder.parent)
    soft_texture(folder / "even.mp4", frames=70)  # in the place of one whose numbers have sharp edges
    out = folder.parent / "prepared"
    assert prepare(settings(folder), out, codec="mjpeg") == 0
    return out


@pytest.mark.parametrize("wanted", [range(0, 69, 4), [8, 8, 40], [44, 64, 69], [200], []])
@pytest.mark.parametrize(
    ("name", "most", "mean"),
    [("even", 16, 2.0), ("textured", 3, 0.5)],  # colours at half the size, which OpenCV interpolates; and whole ones
)
def test_jpeg_by_opencv_is_nearly_ffmpegs(jpegs, name, most, mean, wanted):
    wanted = np.minimum(np.array(wanted, dtype=np.int64), 56 if name == "textured" else 69)
    ours, theirs = (
        read_frames(target(jpegs, name), wanted, short_side=90, scaling="antialias", backend=reader)
        for reader in ("auto", "pyav")
    )
    assert ours.shape == theirs.shape
    if len(wanted):
        apart = np.abs(ours.astype(int) - theirs)
        assert 0 < apart.max() <= most
        assert apart.mean() < mean


def test_jpeg_is_nearer_to_the_original_than_by_ffmpeg(jpegs):
    wanted = np.arange(0, 69, 4)
    original = read_frames(
        target(jpegs.parent / "videos", "even"), wanted, short_side=90, scaling="antialias", backend="pyav"
    )
    found = [
        psnr(read_frames(target(jpegs, "even"), wanted, short_side=90, scaling="antialias", backend=reader), original)
        for reader in ("auto", "pyav")
    ]
    assert found[0] > found[1] + 0.5


@pytest.mark.parametrize("part", ["begin", "end"])
def test_damaged_jpeg_is_left_to_ffmpeg(jpegs, tmp_path, part):
    """Which says what is lost; frames before the damaged one are OpenCV's, and all are there."""
    import av

    own = Path(shutil.copytree(jpegs, tmp_path / "own"))
    path = target(own, "even")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]
    begin, size = packets[5]
    with path.open("r+b") as file:
        file.seek(begin if part == "begin" else begin + size - 2)
        file.write(bytes(size // 2 if part == "begin" else 2))
    wanted, lost = np.arange(0, 69, 4), set[int]()
    way = {"short_side": 90, "scaling": "antialias"}
    ours = read_frames(path, wanted, **way, backend="auto", lost=lost)
    theirs = read_frames(path, wanted, **way, backend="pyav")
    intact = read_frames(target(jpegs, "even"), wanted, **way, backend="auto")
    np.testing.assert_array_equal(ours[:5], intact[:5])
    np.testing.assert_array_equal(ours[5:], theirs[5:])
    assert part == "end" or lost == {20}


def test_recipes_that_scale_differently_need_a_folder_each(originals, tmp_path):
    both = [wanted_windows(settings(originals, scaling=scaling)) for scaling in ("bilinear", "antialias")]
    with pytest.raises(ConfigError, match=r"differently \(data\.scaling=antialias and bilinear\): prepare the"):
        prepare_videos(both, out=tmp_path, codec="h264", quality=None, workers=1, report=print)


def test_qualities_that_are_none(originals, tmp_path):
    for codec, quality in (("h264", 60), ("mjpeg", 1)):
        with pytest.raises(ConfigError, match=f"--quality {quality}: with --codec {codec}, it is a number from"):
            prepare(settings(originals), tmp_path, codec=codec, quality=quality)
    with pytest.raises(ConfigError, match="cannot be used with --codec lossless"):
        prepare(settings(originals), tmp_path, codec="lossless", quality=9)


def soft_texture(path: Path, *, frames: int) -> None:
    """A coloured texture with detail at every scale, as of photographs, that moves by several pixels a frame."""
    import av

    rng = np.random.default_rng(0)
    height, width = 160, 320
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    grey, *colours = rng.standard_normal((4, height, width))
    channels = [
        np.fft.irfft2(np.fft.rfft2(grey + 0.3 * colour) / frequency**1.25, (height, width)) for colour in colours
    ]
    still = np.stack([128 + 45 * channel / channel.std() for channel in channels], axis=-1).clip(0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 240, 144, "yuv420p", {"crf": "18"}
        for index in range(frames):
            picture = np.roll(still, 2 * index, axis=1)[:144, :240].astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.slow
def test_lossless_is_the_same(originals, tmp_path):
    """Every byte of every sample of both subsets, and so every loss."""
    config = settings(originals)
    prepare(config, tmp_path, codec="lossless")
    for ours, theirs in zip(all_samples(at(config, tmp_path)), all_samples(config), strict=True):
        assert torch.equal(ours.frames, theirs.frames)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
def test_clips_are_the_same(listed, tmp_path):
    """Of recognition, from folders of classes or lists; and the settings that are told give the prepared ones."""
    root, out, said = tmp_path / "clips", tmp_path / "prepared", []
    for name in ("train/hop/a", "train/run/b", "test/hop/c", "test/run/d"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / f"{name}.mp4", frames=20, width=88, height=64)
    lists = {}
    for part in ("train", "test"):
        files = [path.relative_to(root) for path in sorted((root / part).rglob("*.mp4"))]
        (tmp_path / part).write_text("".join(f"{file} {file.parent.name}\n" for file in files))
        lists[f"recognition.{part}_list"] = tmp_path / part if listed else root / part
    changes = {"data.workers": 0, "data.short_side_before_crop": 80, "data.resolution": 64} | lists
    changes |= {"data.videos": root} if listed else {}
    config = override(find_recipe("quickstart_aim").config, [f"{key}={value}" for key, value in changes.items()])
    options = {"codec": "lossless", "quality": None, "workers": 1, "report": said.append}
    assert prepare_videos([wanted(config)], out=out, **options) == 0
    told = said[-1].removeprefix("to use them: --set ").split(" --set ")
    assert len(told) == (1 if listed else 2)
    prepared = override(config, told)
    for training in (True, False):
        before, after = (open_clips(each, training=training) for each in (config, prepared))
        assert len(before) == len(after) > 0
        for index in range(len(before)):
            assert (before[1, index].error, after[1, index].error) == (None, None)
            assert torch.equal(before[1, index].frames, after[1, index].frames)
        assert all(out in video.path.parents for video in after.videos)


def test_prediction_reads_them(originals, prepared):
    config = settings(originals)
    for name in ("even", "small", "cut"):
        batches = []
        for folder in (originals, prepared):
            path = target(folder, name)
            video = lone_video(path, name=name)
            windows = windows_of_file(video, path, config)
            batches.append(list(stream_batches(video, path, windows, config=config, batch=2)))
        for theirs, ours in zip(*batches, strict=True):
            assert ours.grids == theirs.grids
            assert psnr(ours.frames.numpy(), theirs.frames.numpy()) > 30


def test_checking_finds_what_the_originals_lack(originals, prepared):
    for name in ("even", "uneven", "cut"):
        theirs, ours = (scan(target(folder, name)) for folder in (originals, prepared))
        assert (ours.packets, ours.fps, ours.duration_sec, ours.faults) == (
            theirs.packets,
            theirs.fps,
            theirs.duration_sec,
            theirs.faults,
        )


def test_the_manifest_says_what_is_there(originals, prepared):
    manifest = Manifest(prepared / MANIFEST)
    entry = manifest.entry("even.mp4")
    source = originals / "even.mp4"
    assert entry is not None
    assert (entry.source.path, entry.source.size) == (str(source.resolve()), source.stat().st_size)
    done = subprocess.run(["sha256sum", str(source)], capture_output=True, text=True, check=True)
    assert entry.source.sha256 == done.stdout.split()[0]
    assert entry.frames == [[0, 68, 4], [69, 69, 1]]  # the annotation counts 72 frames: the last stands for them
    assert (entry.original["num_frames"], entry.original["fps"]) == (70, 10.0)


def test_colours_are_halved_where_that_does_not_show(originals, prepared):
    """Half of them for smooth colours; all for those of sharp squares, which are then what they were."""
    import av

    formats = {}
    for name in ("even", "textured"):
        with av.open(str(target(prepared, name))) as container:
            formats[name] = container.streams.video[0].codec_context.pix_fmt
    assert formats["textured"] == "yuv444p"
    wanted = np.arange(0, 60, 4)
    ours, theirs = (
        read_frames(target(folder, "textured"), wanted, short_side=90, scaling="antialias", backend="pyav")
        for folder in (prepared, originals)
    )
    assert min(psnr(*pair) for pair in zip(ours, theirs, strict=True)) >= 40


def test_runs():
    rng = np.random.default_rng(0)
    for numbers in ([], [3], [3, 7], [0, 4, 8, 9], np.unique(rng.integers(0, 99, 40))):
        found = np.array(numbers, dtype=np.int64)
        np.testing.assert_array_equal(from_runs(to_runs(found)), found)


# ---- several recipes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_recipes_share_a_folder(originals, own):
    """A coarser recipe needs nothing new; a finer one gets its frames, and the first keeps its own."""
    coarse, fine = settings(originals, feature_stride_frames=8), settings(originals, feature_stride_frames=2)
    before = {path: path.stat().st_mtime_ns for path in own.iterdir() if path.name != MANIFEST}
    assert prepare(coarse, own) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(DataError, match=r"even.mp4: frames 2, 6, 10 and \d+ more of its original were not prepared"):
        WindowDataset.for_training(at(fine, own), seed=0)
    with pytest.raises(DataError, match="prepared with a short side of 90 pixels, but 120 are wanted"):
        WindowDataset.for_training(at(settings(originals, short_side_before_crop=120), own), seed=0)
    with pytest.raises(DataError, match=r"prepared with data\.scaling=antialias, but bilinear is wanted"):
        WindowDataset.for_training(at(settings(originals, scaling="bilinear"), own), seed=0)
    assert prepare(fine, own) == 0
    for config in (fine, settings(originals), coarse):
        assert all(sample.error is None for sample in all_samples(at(config, own)))


def test_another_coding_needs_another_folder(originals, own):
    with pytest.raises(ConfigError, match="codec is h264, not mjpeg, quality is 11, not None"):
        prepare(settings(originals), own, codec="mjpeg")
    with pytest.raises(DataError, match="holds prepared videos; name the folder of their originals"):
        prepare(settings(own, annotations=str(originals.parent / "annotations.json")), own)


# ---- what may happen -------------------------------------------------------------------------------------------------


def start(config: DataConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WindowDataset.for_training(config, seed=0)


@pytest.mark.slow
def test_changed_originals(originals, own, tmp_path):
    folder = Path(shutil.copytree(originals, tmp_path / "videos"))
    shutil.copy(originals.parent / "annotations.json", tmp_path)
    config, out = settings(folder), tmp_path / "out"
    prepare(config, out)
    inodes = {path.name: path.stat().st_ino for path in out.iterdir()}
    os.utime(folder / "even.mp4", (1, 1))
    write_video(folder / "uneven.mkv", frames=48, times=UNEVEN + 0.01)
    start(at(config, out), "2 of 3 prepared videos cannot be used: even.mp4: its original .*even.mp4 was changed")
    assert prepare(config, out) == 0
    for name in ("even.mp4", "textured.mp4"):  # the same by its checksum; unchanged
        assert (out / name).stat().st_ino == inodes[name]
    assert (out / "uneven.mp4").stat().st_ino != inodes["uneven.mp4"]
    assert all(sample.error is None for sample in all_samples(at(config, out)))


@pytest.mark.slow
def test_without_originals(originals, tmp_path):
    """Who has only the prepared videos needs no others."""
    folder = Path(shutil.copytree(originals, tmp_path / "videos"))
    shutil.copy(originals.parent / "annotations.json", tmp_path)
    config, out = settings(folder), tmp_path / "out"
    prepare(config, out)
    shutil.rmtree(folder)
    assert all(sample.error is None for sample in all_samples(at(config, out)))


def test_truncated_and_missing_files(originals, own):
    config = settings(originals)
    size = (own / "even.mp4").stat().st_size
    os.truncate(own / "even.mp4", size - 100)
    start(at(config, own), f"1 of 3 .* even.mp4: the prepared file has {size - 100} bytes instead of {size}. Run")
    with pytest.raises(VideoError, match="run adatad-ds prepare-videos again"):
        index_of(own / "even.mp4")
    (own / "textured.mp4").unlink()
    start(at(config, own), "1 of 3 annotated videos are not in .*: textured")
    assert prepare(config, own) == 0
    assert all(sample.error is None for sample in all_samples(at(config, own)))


def test_manifests(originals, own):
    config = at(settings(originals), own)
    manifest = own / MANIFEST
    lines = manifest.read_text().splitlines(keepends=True)
    without = [line for line in lines if '"even.mp4"' not in line]
    manifest.write_text("".join(without))
    start(config, "even.mp4: not in prepared.jsonl beside it, so its frames are unknown")
    manifest.write_text("".join([lines[0].replace(f'"version": {VERSION}', '"version": 99'), *lines[1:]]))
    start(config, "prepared.jsonl has version 99, but this program reads version 1")
    manifest.write_text("".join([lines[0], "{}\n", *lines[1:]]))
    start(config, "prepared.jsonl, line 2: damaged")
    manifest.unlink()
    assert WindowDataset.for_training(config, seed=0)[0, 0].error is not None  # not read as if it were the original
    with pytest.raises(VideoError, match=r"a prepared video, but prepared\.jsonl is not beside it"):
        index_of(own / "even.mp4")


def command(config: DataConfig, out: Path, *options: str) -> list[str]:
    names = ("annotations", "videos", "window_size", "feature_stride_frames", "resolution", "short_side_before_crop")
    sets = [f"--set=data.{name}={getattr(config, name)}" for name in (*names, "train_subset", "test_subset")]
    program = [sys.executable, "-m", "adatad_ds", "prepare-videos", "--recipe", "quickstart", "--out", str(out)]
    return [*program, *sets, *options]


@pytest.mark.slow
def test_unreadable_originals_are_listed(originals, tmp_path, capsys):
    folder = Path(shutil.copytree(originals, tmp_path / "videos"))
    shutil.copy(originals.parent / "annotations.json", tmp_path)
    (folder / "even.mp4").write_bytes(b"no video")
    (folder / "small.avi").unlink()
    config, out = settings(folder), tmp_path / "out"
    assert main(["prepare-videos", *command(config, out)[4:]]) == 1
    said = capsys.readouterr().out
    assert "3 prepared videos (3 new)" in said
    assert "2 videos cannot be prepared" in said
    assert f"{folder / 'even.mp4'}: Invalid data" in said
    assert f"small: not in {folder}" in said
    listed = out / "unreadable.txt"
    assert sorted(listed.read_text().split()) == ["even", "small"]
    assert all(sample.error is None for sample in all_samples(replace(at(config, out), exclude_file=str(listed))))


@dataclass(frozen=True)
class Crash:
    """A use of a video on which its decoder crashes."""

    name: str = "bad"
    short_side: int = 48

    def frames(self, path: Path) -> NDArray[np.int64]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    to_prepare = frames


@pytest.mark.slow
def test_a_decoder_that_crashes_spoils_its_own_file_alone(tmp_path):
    said, uses, root = [], {}, tmp_path / "videos"
    root.mkdir()
    for name in ("a", "b", "bad", "c"):
        path = write_video(root / f"{name}.mp4", frames=10, width=88, height=64)
        uses[path] = [Crash() if name == "bad" else ClipUse(name=name, short_side=48)]
    recipe = Wanted(scaling="antialias", root=root, folders={"data.videos": root}, uses=uses, missing={})
    options = {"codec": "h264", "quality": None, "workers": 2, "report": said.append}
    assert prepare_videos([recipe], out=tmp_path / "out", **options) == 1
    assert f"{root}/bad.mp4: the decoder crashes on it" in said[1]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]
    assert (tmp_path / "out/unreadable.txt").read_text() == "bad\n"
    mended = replace(recipe, uses=uses | {root / "bad.mp4": [ClipUse(name="bad", short_side=48)]})
    assert prepare_videos([mended], out=tmp_path / "out", **options) == 0
    assert said[-2].startswith(f"{tmp_path}/out: 4 prepared videos (1 new), ")
    assert not (tmp_path / "out/unreadable.txt").exists()


@pytest.mark.slow
def test_killed_preparation_goes_on(originals, tmp_path):
    config, out = settings(originals), tmp_path / "out"
    started = subprocess.Popen(command(config, out, "--workers=1"), cwd=ROOT, start_new_session=True)
    manifest, deadline = out / MANIFEST, time.monotonic() + 120
    while not (manifest.exists() and manifest.read_bytes().count(b"\n") > 1):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    while group_lives(started.pid):  # its processes end with it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with manifest.open("ab") as file:
        file.write(b'{"file": "textured.mp4", "size"')  # as if killed while writing this
    (out / ".writing_textured.mp4").write_bytes(b"half")
    there = {path.name: path.stat().st_ino for path in out.glob("*.mp4")}
    lines: list[str] = []
    assert prepare(config, out, report=lines.append) == 0
    names = [json.loads(line)["file"] for line in manifest.read_text().splitlines()[1:]]
    assert len(names) == len(set(names)) == 5
    assert any(there.get(name) == (out / name).stat().st_ino for name in names)
    assert not list(out.glob(".writing_*"))
    assert all(sample.error is None for sample in all_samples(at(config, out)))


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_full_disk(originals, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(out)], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount")
    try:
        config = settings(originals)
        with pytest.raises(WriteError, match=r"the disk is full: \d of 5 videos are prepared.* Make room and run"):
            prepare(config, out, workers=1)
        assert not list(out.glob(".writing_*"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(out)], check=True)
        assert prepare(config, out) == 0
        assert all(sample.error is None for sample in all_samples(at(config, out)))
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_every_reader_gets_the_same(originals, prepared):
    for name in ("even", "uneven", "small"):
        ours, theirs = (
            read_frames(
                target(prepared, name), np.array([0, 8, 40]), short_side=80, scaling="antialias", backend=reader
            )
            for reader in ("pyav", "decord")
        )
        np.testing.assert_array_equal(ours, theirs)


def test_one_preparation_at_a_time(originals, own):
    import fcntl

    with (own / ".prepare_videos.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another prepare-videos is at work in this folder"):
            prepare(settings(originals), own)
