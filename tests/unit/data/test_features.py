"""Features as others publish them: every format and order, windows and times, and what does not fit, by name."""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.features.dataset import FeatureDataset
from adatad_ds.data.features.files import FeatureFiles, layout_of
from adatad_ds.data.features.folder import FeatureFolder, FeatureSettings, VideoFeatures
from adatad_ds.data.features.sources import FeatureSources, with_feature_channels
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.models.detector import padded_steps
from adatad_ds.recipes.catalog import find_recipe

CHANNELS, FPS, STRIDE = 6, 25.0, 5
LENGTHS = {"a": 100, "b": 40, "c": 63, "d": 130}  # features of each video, of 0.2 s each


def features_of(name: str, channels: int = CHANNELS) -> NDArray[np.float32]:
    """The number of the feature, then noise."""
    drawn = np.random.default_rng(ord(name[-1])).normal(size=(LENGTHS[name[-1]], channels)).astype(np.float32)
    drawn[:, 0] = np.arange(len(drawn))
    return drawn


def write_all(folder: Path, write: Callable[[Path, NDArray[np.float32]], object], *, channels: int = CHANNELS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in LENGTHS:
        write(folder / name, features_of(name, channels))
    return folder


def as_npy(path: Path, array: NDArray[np.float32]) -> None:
    np.save(path.with_suffix(".npy"), array)


def annotate(folder: Path, **changes: object) -> Path:
    database = {
        name: {
            "subset": "validation" if name == "d" else "training",
            "duration": count * STRIDE / FPS,
            "fps": FPS,
            "annotations": [{"segment": [2.0, 4.0], "label": "x"}, {"segment": [5.0, 5.5], "label": "y"}],
        }
        | changes
        for name, count in LENGTHS.items()
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    return path


def config_of(annotations: Path, features: object, *changes: str) -> Config:
    settings = (
        f"data.annotations={annotations}",
        f"data.features={features}",
        f"data.feature_stride_frames={STRIDE}",
        "data.workers=0",
    )
    config = loading.override(find_recipe("quickstart_features").config, [*settings, *changes])
    return with_feature_channels(config)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return annotate(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "features", as_npy)


FORMATS: dict[str, Callable[[Path, NDArray[np.float32]], object]] = {
    "npy": as_npy,
    "fp16, channels first": lambda path, array: np.save(path.with_suffix(".npy"), array.T.astype(np.float16)),
    "Fortran order": lambda path, array: np.save(path.with_suffix(".npy"), np.asfortranarray(array)),
    "axes of length 1": lambda path, array: np.save(path.with_suffix(".npy"), array.T[None, :, :, None, None]),
    "npz": lambda path, array: np.savez_compressed(path.with_suffix(".npz"), feats=array, other=array[:1]),
    "npz of one": lambda path, array: np.savez(path.with_suffix(".npz"), whatever=array),
    "pt": lambda path, array: torch.save(torch.from_numpy(array.copy()), path.with_suffix(".pt")),
    "pt, bf16 in a dict": lambda path, array: torch.save(
        {"features": torch.from_numpy(array.round()).bfloat16(), "fps": 25}, path.with_suffix(".pth")
    ),
    "pickle": lambda path, array: path.with_suffix(".pkl").write_bytes(pickle.dumps(array)),
    "pickle of Python 2": lambda path, array: path.with_suffix(".pkl").write_bytes(
        pickle.dumps({"feats": array}, protocol=2)
    ),
    "hdf5": lambda path, array: h5py.File(path.with_suffix(".h5"), "w").create_dataset("features", data=array),
    "v_ names": lambda path, array: np.save(path.with_name(f"v_{path.name}.npy"), array),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_reads_alike(tmp_path, annotations, kind):
    config = config_of(annotations, write_all(tmp_path / "features", FORMATS[kind]))
    assert config.backbone.feature_channels == CHANNELS
    data = FeatureDataset.open_testing(replace(config, data=replace(config.data, test_whole_videos=True)))
    wanted = features_of("d")
    if "bf16" in kind:
        wanted = torch.from_numpy(wanted.round()).bfloat16().float().numpy()
    tolerance = 1e-3 if "fp16" in kind else 0
    np.testing.assert_allclose(data[0, 0].frames.numpy(), wanted, rtol=tolerance, atol=tolerance)


def test_several_threads_may_open_files(tmp_path):
    """In CPython before 3.11.8 and 3.12.2 two at once fail, if garbage is collected in one."""
    for name in "ab":
        as_npy(tmp_path / f"{name}.npy", features_of(name))
    files, threshold, interval = FeatureFiles(tmp_path), gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(lambda phase, info: sum(range(50)))
    try:
        gc.set_threshold(3)
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(files.open, ["a", "b"] * 1000))) == 2000
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.pop()


@pytest.mark.parametrize("grouped", [False, True])
def test_one_file_of_all_videos(tmp_path, annotations, grouped):
    path = tmp_path / "all.hdf5"
    with h5py.File(path, "w") as file:
        for name in LENGTHS:
            file[f"v_{name}/c3d_features" if grouped else name] = features_of(name)
    data = FeatureDataset.open_training(config_of(annotations, path))
    assert len(data) == 3
    found = data[0, 1].frames[:5]
    torch.testing.assert_close(found, torch.from_numpy(features_of("b"))[int(found[0, 0]) :][:5])


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"feats": features_of("a"), "more": Evil()}))
    torch.save({"feats": Evil()}, tmp_path / "b.pt")
    files = FeatureFiles(tmp_path)
    with pytest.raises(VideoError, match=r"a\.pkl: .*refused, as it asks for posix\.mkdir"):
        files.open("a")
    with pytest.raises(VideoError, match=r"b\.pt: cannot be read"):
        files.open("b")
    assert not (tmp_path / "evil").exists()


def test_objects_in_a_pickle_are_no_features(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.array([["text"]])))
    np.save(tmp_path / "b.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "c.npz", one=features_of("a"), two=features_of("a"))
    np.save(tmp_path / "d.npy", np.zeros((2, 3, 4)))
    files = FeatureFiles(tmp_path)
    for name, message in {"a": "no numbers", "b": "objects", "c": "one, two", "d": "two axes"}.items():
        with pytest.raises(VideoError, match=rf"{name}\.np.*{message}|{name}\.pkl.*{message}"):
            files.open(name)


def test_damaged_files_are_named(tmp_path):
    """Whatever their libraries raise: zlib.error for bytes in the middle of an archive, TokenError for a header."""
    np.savez_compressed(tmp_path / "a.npz", feats=features_of("a"))
    np.save(tmp_path / "b.npy", features_of("b"))
    (tmp_path / "c.npy").touch()
    for path, changed in ((tmp_path / "a.npz", range(60, 90)), (tmp_path / "b.npy", [10])):
        data = bytearray(path.read_bytes())
        for at in changed:
            data[at] ^= 0xFF
        path.write_bytes(data)
    for name in ("a.npz", "b.npy", "c.npy"):
        with pytest.raises(VideoError, match=f"{name}: cannot be read: "):
            FeatureFiles(tmp_path).open(name[0])


@pytest.mark.parametrize(
    ("shape", "found"),
    [((1, CHANNELS, 1, 1), (1, CHANNELS)), ((CHANNELS, 9, 1, 1), (CHANNELS, 9)), ((1, 9, CHANNELS), (9, CHANNELS))],
)
def test_axes_of_length_1(tmp_path, shape, found):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    stored = FeatureFiles(tmp_path).open("a")
    assert stored.shape == found
    layout = layout_of(stored, channels=CHANNELS)
    wanted = array.reshape(found) if layout == "time first" else array.reshape(found).T
    np.testing.assert_array_equal(stored.rows(0, 99, layout=layout), wanted)


def test_a_square_array_lies_as_the_others(tmp_path, annotations):
    """Channels first, in files of which one has as many features as channels."""
    config = config_of(annotations, write_all(tmp_path / "features", lambda path, array: as_npy(path, array.T)))
    square = features_of("d")[:CHANNELS]
    np.save(tmp_path / "features" / "d.npy", square.T)
    found = FeatureSources(config).open(Video("d", "validation", CHANNELS * STRIDE / FPS, None, FPS, ()))
    np.testing.assert_array_equal(found.rows(0, CHANNELS).numpy(), square)


def test_the_first_of_several_formats_is_taken_and_what_changes_meanwhile_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", features_of("a"))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(features_of("b")))
    stored = FeatureFiles(tmp_path).open("a")
    assert stored.path.name == "a.npy"
    np.save(tmp_path / "a.npy", features_of("b"))
    with pytest.raises(VideoError, match=r"its shape was \(100, 6\), and is now \(40, 6\)"):
        stored.rows(0, 10, layout="time first")


def test_several_sources_side_by_side(tmp_path, annotations, folder):
    def longer(path: Path, array: NDArray[np.float32]) -> None:
        np.save(path.with_suffix(".npy"), np.concatenate([array, array[:2]]).T)

    other = write_all(tmp_path / "other", longer, channels=4)
    config = config_of(annotations, [str(folder), str(other)])
    assert config.backbone.feature_channels == CHANNELS + 4
    projected = config_of(annotations, [str(folder), str(other)], "head.source_widths=[100,28]")
    assert projected.backbone.feature_channels == (CHANNELS, 4)
    sample = FeatureDataset.open_training(config)[0, 1]
    count = int(sample.valid.sum())
    start = int(sample.frames[0, 0])
    torch.testing.assert_close(sample.frames[:count, :CHANNELS], torch.from_numpy(features_of("b"))[start:][:count])
    torch.testing.assert_close(sample.frames[:count, CHANNELS:], torch.from_numpy(features_of("b", 4))[start:][:count])
    np.save(other / "b.npy", np.zeros((4, 90), np.float32))
    data = FeatureDataset.open_training(config)
    assert "sources differ in the number of features: " in str(data[0, 1].error)


def test_windows_and_times(annotations, folder):
    """sec = (g * stride + offset) / fps, as the authors of ActionFormer have it; zeros beyond the end."""
    config = config_of(annotations, folder, "data.offset_frames=10", "data.window_size=64")
    data = FeatureDataset.open_training(config)
    for index, name in enumerate("abc"):
        for epoch in range(3):
            sample = data[epoch, index]
            assert sample.frames.shape == (64, CHANNELS)
            count, start = int(sample.valid.sum()), int(sample.frames[0, 0])
            assert count == 64 if LENGTHS[name] > 64 else 0.9 * LENGTHS[name] - 1 < count <= LENGTHS[name]
            torch.testing.assert_close(sample.frames[:count], torch.from_numpy(features_of(name))[start:][:count])
            assert not sample.frames[count:].any()
            seconds = {0: (2.0, 4.0), 1: (5.0, 5.5)}
            for segment, label in zip(sample.segments_grid, sample.labels.tolist(), strict=True):
                grid = np.array(seconds[label]) * FPS / STRIDE - 10 / STRIDE - start
                offset = 2 if count == LENGTHS[name] else 0  # nothing of a whole video is cut off
                np.testing.assert_allclose(segment, np.clip(grid, -offset, count + offset), atol=1e-4)
                np.testing.assert_allclose(sample.grid.to_sec(grid), seconds[label], atol=1e-9)


def test_sliding_windows_cover_all(annotations, folder):
    data = FeatureDataset.open_testing(config_of(annotations, folder, "data.window_size=64"))
    starts = [int(data[0, index].frames[0, 0]) for index in range(len(data))]
    assert starts == [0, 32, 64, 66]
    assert data[0, 3].frames[-1, 0] == 129


def test_whole_videos_in_one_pass(annotations, folder):
    config = config_of(annotations, folder, "data.window_size=64", "data.test_whole_videos=true")
    config = replace(config, data=replace(config.data, test_subset="training"))
    data = FeatureDataset.open_testing(config)
    batch = data.collate([data[0, 0], data[0, 1], data[None]])
    assert batch.frames.shape == (3, 100, CHANNELS)
    assert batch.valid.sum(dim=1).tolist() == [100, 40, 0]
    assert padded_steps(config, 100) == 104
    assert padded_steps(config, 40) == 64


def test_resized(annotations, folder):
    changes = ("data.sampling=resize", "data.window_size=64", "data.offset_steps=0.5", "data.crop_ratio=null")
    changes += ("data.offset_frames=9",)  # of sliding windows alone
    config = config_of(annotations, folder, *changes, "data.feature_stride_frames=null")
    for sample in (FeatureDataset.open_training(config)[0, 1], FeatureDataset.open_training(config)[3, 1]):
        features = torch.from_numpy(features_of("b")).T[None]
        wanted = torch.nn.functional.interpolate(features, size=64, mode="linear", align_corners=False)[0].T
        torch.testing.assert_close(sample.frames, wanted)
        step_sec = LENGTHS["b"] * STRIDE / FPS / 64
        np.testing.assert_allclose(sample.segments_grid[0], np.array([2.0, 4.0]) / step_sec - 0.5, rtol=1e-5)
    test = FeatureDataset.open_testing(config)
    assert len(test) == 1
    assert test[0, 0].valid.all()


def test_resized_features_are_cropped_as_published(annotations, folder):
    config = config_of(annotations, folder, "data.sampling=resize", "data.window_size=64", "data.crop_ratio=[0.5,0.6]")
    data = FeatureDataset.open_training(config)
    counts = {int(data[epoch, 0].valid.sum()) for epoch in range(20)}
    assert counts <= set(range(32, 39))
    assert len(counts) > 3


def test_absent_videos(annotations, folder):
    (folder / "a.npy").unlink()
    with pytest.raises(DataError, match=r"1 of 3 annotated videos have no features in .*: a\. Extract them"):
        FeatureDataset.open_training(config_of(annotations, folder))
    data = FeatureDataset.open_training(config_of(annotations, folder, "data.skip_missing=true"))
    assert [video.name for video in data.videos] == ["b", "c"]
    assert any("1 of 3 annotated videos have no features" in line and line.endswith("out: a") for line in data.reports)


def test_wrong_channels(annotations, folder):
    with pytest.raises(ConfigError, match=r"have 6 \+ 6 channels, backbone\.feature_channels = 7; .*=12"):
        FeatureDataset.open_training(config_of(annotations, [str(folder)] * 2, "backbone.feature_channels=7"))
    with pytest.raises(DataError, match=r"3 of 3 arrays do not have backbone\.feature_channels = 7"):
        FeatureDataset.open_training(config_of(annotations, folder, "backbone.feature_channels=7"))
    two = "backbone.feature_channels=[6,7]"
    with pytest.raises(DataError, match=r"3 of 6 arrays do not have .* not 7"):
        FeatureDataset.open_training(config_of(annotations, [str(folder)] * 2, two))
    with pytest.raises(ConfigError, match=r"\[6, 7\] is of 2 sources, data\.features of 1"):
        config_of(annotations, folder, two)
    np.save(folder / "b.npy", np.zeros((40, 5), np.float32))
    with pytest.raises(DataError, match=r"1 of 3 arrays do not have .*b\.npy \(40, 5\), not 6"):
        FeatureDataset.open_training(config_of(annotations, folder, "backbone.feature_channels=6"))


def test_another_frame_rate(tmp_path, annotations, folder):
    with pytest.raises(DataError, match=r"3 of 3 videos have features whose length differs.*a median ratio of 0\.5: "):
        FeatureDataset.open_training(config_of(annotations, folder, "data.fixed_fps=50.0"))
    np.save(folder / "b.npy", features_of("b")[:20])
    data = FeatureDataset.open_training(config_of(annotations, folder))
    told = "1 of 3 videos have features whose length differs from the annotation: b: 20 features are 4.0 s, "
    assert f"{told}annotated 8.0 s" in data.reports


def test_long_clips_leave_out_more_at_both_ends(tmp_path, annotations):
    cut = write_all(tmp_path / "cut", lambda path, array: as_npy(path, array[:-9]))
    with pytest.raises(DataError, match="3 of 3 videos have features whose length differs"):
        FeatureDataset.open_training(config_of(annotations, cut))
    assert FeatureDataset.open_training(config_of(annotations, cut, "data.offset_frames=15")).reports == []


def test_a_fixed_rate_comes_before_the_annotated_one(tmp_path, folder):
    database = annotate(tmp_path, frame=77)
    sample = FeatureDataset.open_training(config_of(database, folder, "data.fixed_fps=25"))[0, 0]
    assert sample.grid.step_sec == STRIDE / 25


def test_no_frame_rate(tmp_path, folder):
    data = FeatureDataset.open_training(config_of(annotate(tmp_path, fps=None), folder))
    assert "no frame rate is known" in str(data[0, 0].error)


def test_what_cannot_be_read_is_replaced_and_told(annotations, folder):
    whole = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(whole[: len(whole) // 2])
    bad = features_of("b")
    bad[20] = np.nan
    np.save(folder / "b.npy", bad)
    data = FeatureDataset.open_training(config_of(annotations, folder, "data.window_size=64"))
    sample = data[0, 0]
    assert "a.npy: cannot be read: " in str(sample.error)
    assert sample.video != "a"
    assert "b.npy: 1 features are not finite, the first is number 20" in str(data[0, 1].error)
    assert data[0, 2].error is None
    test = FeatureDataset.open_testing(
        config_of(annotations, folder, "data.test_subset=training", "data.window_size=64")
    )
    errors = [str(test[0, index].error) for index in range(len(test))]
    assert sum("a.npy" in error for error in errors) == 1
    assert sum("b.npy" in error for error in errors) == 1


def settings_of(**changes: object) -> FeatureSettings:
    usual = {
        "backbone": "tiny",
        "weights": None,
        "trained": "",
        "fingerprint": "0",
        "channels": CHANNELS,
        "dtype": "float32",
        "resolution": 64,
        "sampling": "random_trunc",
        "stride_frames": STRIDE,
        "frames_per_feature": 1,
        "frame_stride": STRIDE,
        "clip_frames": 16,
        "context_frames": 0,
        "offset_frames": 0,
        "fixed_fps": None,
    }
    return FeatureSettings(**(usual | changes))  # pyright: ignore[reportArgumentType]


def test_too_few_features_leave_no_file(tmp_path):
    folder = FeatureFolder(tmp_path, settings=settings_of(), share=0, shares=1)
    with pytest.raises(DataError, match="a: 5 of 9 features were computed"), folder.writing("a", features=9) as write:
        write(features_of("a")[:5])
    assert not folder.file("a").exists()


def test_what_an_earlier_extraction_left_is_taken_if_it_is_whole(tmp_path):
    folder = FeatureFolder(tmp_path, settings=settings_of(), share=0, shares=1)
    assert not folder.is_done("a", features=LENGTHS["a"])
    with folder.writing("a", features=LENGTHS["a"]) as write:
        for part in np.array_split(features_of("a"), 3):
            write(part)
    assert folder.is_done("a", features=LENGTHS["a"])
    np.testing.assert_array_equal(np.load(folder.file("a")), features_of("a"))
    assert not folder.is_done("a", features=LENGTHS["a"] + 1)
    np.save(folder.file("a"), features_of("a").astype(np.float16))
    assert not folder.is_done("a", features=LENGTHS["a"])
    damaged = bytearray(folder.file("a").read_bytes())
    damaged[10] ^= 0xFF  # its header's first bracket, which NumPy looks for beyond the end
    for content in (b"", bytes(damaged)):
        folder.file("a").write_bytes(content)
        assert not folder.is_done("a", features=LENGTHS["a"])


def test_frames_that_were_resized_otherwise_have_other_features(tmp_path):
    """A folder of before, which does not say how, goes on as it began."""
    FeatureFolder(tmp_path, settings=settings_of(scaling="antialias"), share=0, shares=1)
    with pytest.raises(ConfigError, match="holds other features: scaling 'antialias', not 'bilinear'"):
        FeatureFolder(tmp_path, settings=settings_of(scaling="bilinear"), share=0, shares=1)
    path = tmp_path / "features.json"
    said = json.loads(path.read_text())
    del said["settings"]["scaling"]
    path.write_text(json.dumps(said))
    assert FeatureFolder(tmp_path, settings=settings_of(scaling="bilinear"), share=0, shares=1).finish({}, {})
    assert json.loads(path.read_text())["settings"] == said["settings"] | {"scaling": None}


@pytest.mark.parametrize("content", ["[1]", '{"format": "another"}', '{"settings": {}}', "no JSON"])
def test_a_description_of_another_kind(content, annotations, folder):
    (folder / "features.json").write_text(content)
    with pytest.raises(DataError, match=r"features\.json(:| is not of the format)"):
        config_of(annotations, folder)


def test_what_a_folder_says_of_itself_counts(annotations, folder):
    """Rate and start of each video; settings that contradict it, and an extraction that is not complete."""
    own = FeatureFolder(folder, settings=settings_of(offset_frames=8), share=0, shares=1)
    with pytest.raises(DataError, match="is not complete"):
        config_of(annotations, folder)
    videos = {
        name: VideoFeatures(
            features=count,
            num_frames=count * STRIDE,
            fps=FPS / 2,
            start_sec=0.5,
            duration_sec=2 * count * STRIDE / FPS,
        )
        for name, count in LENGTHS.items()
    }
    own.finish(videos, {"e": "damaged"})
    with pytest.raises(ConfigError, match=r"offset_frames = 0, but they were extracted with 8; use --set data\.offset"):
        config_of(annotations, folder)
    twice = annotate(annotations.parent, duration=1000.0)
    with pytest.raises(DataError, match="length differs from the annotation"):
        FeatureDataset.open_training(config_of(twice, folder, "data.offset_frames=8"))
    longer = annotate(annotations.parent, duration=40.0)
    config = config_of(longer, folder, "data.offset_frames=8", "data.exclude=['b', 'c']")
    data = FeatureDataset.open_training(config)
    assert data[0, 0].grid.step_sec == 2 * STRIDE / FPS
    start = int(data[0, 0].frames[0, 0])
    assert data[0, 0].grid.origin_sec == pytest.approx(0.5 + (start * STRIDE + 8) / (FPS / 2))
    assert any("1 videos could not be extracted: e" in line for line in data.reports)


def test_what_a_folder_says_counts_in_either_form_of_unicode(annotations, folder):
    """Files that were copied from macOS, whose names are no longer those that the folder lists."""
    annotations.write_text(annotations.read_text().replace('"a"', '"\u00e4"'), encoding="utf-8")
    (folder / "a.npy").rename(folder / "a\u0308.npy")
    own = FeatureFolder(folder, settings=settings_of(), share=0, shares=1)
    said = VideoFeatures(
        features=LENGTHS["a"],
        num_frames=LENGTHS["a"] * STRIDE,
        fps=FPS,
        start_sec=0.5,
        duration_sec=LENGTHS["a"] * STRIDE / FPS,
    )
    own.finish({"\u00e4": said}, {})
    sample = FeatureDataset.open_training(config_of(annotations, folder, "data.exclude=['b','c']"))[0, 0]
    assert sample.grid.origin_sec == pytest.approx(0.5 + int(sample.frames[0, 0]) * STRIDE / FPS)


def test_settings_that_contradict_each_other(annotations, folder):
    with pytest.raises(ConfigError, match=r"read with backbone\.name=features"):
        config_of(annotations, folder, "backbone.name=tiny")
    with pytest.raises(ConfigError, match=r"needs data\.features"):
        config_of(annotations, "")
    with pytest.raises(DataError, match="there is no folder"):
        config_of(annotations, folder / "absent")
    with pytest.raises(ConfigError, match=r"parallel\.temporal"):
        config_of(annotations, folder, "parallel.temporal=2")
