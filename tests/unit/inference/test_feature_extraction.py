"""Features of whole videos: those of evaluation's windows, of clips one by one, the same however a folder is filled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adatad_ds.cli.extract_features import main
from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.features.folder import read_description
from adatad_ds.data.features.plan import Snippet
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.data.window_stream import lone_video
from adatad_ds.data.windows import find_timing
from adatad_ds.errors import ConfigError
from adatad_ds.inference import feature_extraction, feature_job
from adatad_ds.inference.feature_extraction import Averages, FeatureExtractor, Interpolation, backbone_hash
from adatad_ds.inference.feature_job import open_source
from adatad_ds.inference.trained_model import Trained, export
from adatad_ds.models.backbones.kinds import Backbone
from adatad_ds.models.factory import build_backbone, build_detector
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.weights.files import StoredTensor
from tests.support.launch import REPOSITORY, environment
from tests.support.videos import write_video

LENGTHS = {"long": 130, "short": 37, "middle": 70}
SMALL = ("data.resolution=32", "data.short_side_before_crop=36", "train.precision=fp32")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "videos"
    folder.mkdir()
    database = {}
    for index, (name, frames) in enumerate(LENGTHS.items()):
        write_video(folder / f"{name}.mp4", frames=frames, fps=10)
        subset = "validation" if index else "training"
        action = {"segment": [1.0, 2.5], "label": "wave"}
        database[name] = {"subset": subset, "duration": frames / 10, "annotations": [action]}
    (folder.parent / "annotations.json").write_text(json.dumps({"database": database}))
    return folder


def config_of(videos: Path, *changes: str, recipe: str = "quickstart") -> Config:
    places = (f"data.annotations={videos.parent}/annotations.json", f"data.videos={videos}", "data.workers=0")
    return loading.override(find_recipe(recipe).config, [*places, *SMALL, *changes])


def arguments(videos: Path, out: Path, *more: str, recipe: str = "quickstart_frozen") -> list[str]:
    settings = [f"data.annotations={videos.parent}/annotations.json", f"data.videos={videos}", *SMALL]
    return [
        "--recipe",
        recipe,
        "--out",
        str(out),
        *more,
        *(part for setting in settings for part in ("--set", setting)),
    ]


def adapted(config: Config, *, steps: int) -> Backbone:
    """A backbone whose adapters matter."""
    torch.manual_seed(3)
    backbone = build_backbone(config, feature_steps=steps)
    for parameter in (*backbone.adapters.parameters(), *backbone.long_adapters.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    for block in backbone.vit.blocks:  # attention that carries something
        torch.nn.init.normal_(block.attn.proj.weight, std=0.3)
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return backbone.eval().requires_grad_(False)


def extracted(backbone: Backbone, config: Config, path: Path, *, snippet: Snippet | None = None) -> Tensor:
    video = lone_video(path, name=path.stem)
    timing = find_timing(video, path, config.data)
    extractor = FeatureExtractor(backbone=backbone, config=config, snippet=snippet, device=torch.device("cpu"))
    found = torch.cat([part for part, _ in extractor.features(video, path, timing)])
    assert len(found) == extractor.length(timing)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "per_step"),
    [("frozen", 2), ("tia", 2), ("side", 2), ("frozen", 1), ("frozen", 8)],
    ids=["frozen", "tia", "side", "half a token a step", "4 tokens a step"],
)
def test_features_are_those_of_evaluation_windows(videos, monkeypatch, tuning, per_step):
    """Up to what a window cannot see beyond its ends: its clips' context and, between tokens, half a step."""
    monkeypatch.setattr(feature_extraction, "CLIPS_AT_ONCE", 1)
    config = config_of(
        videos,
        "backbone.weights=null",
        f"backbone.tuning={tuning}",
        "backbone.adapter_blocks=[1]",
        f"data.frames_per_feature={per_step}",
        f"data.feature_stride_frames={per_step}",
        f"data.window_size={64 // per_step}",
        "head.arch=[1, 1, 1]",
        "head.regression_range=[[0, 4], [4, 100]]",
    )
    backbone = adapted(config, steps=config.data.window_size)
    whole = extracted(backbone, config, videos / "long.mp4")
    context_steps = {"frozen": 1, "tia": 9, "side": 2}[tuning]  # at 1 token a step: the window's border, and its clip
    data = WindowDataset.for_training(config.data, seed=0)
    sliding = WindowDataset(
        config=replace(config.data, test_window_overlap=0.5),
        annotations=replace_videos(data),
        paths={"long": videos / "long.mp4"},
        training=False,
    )
    assert len(sliding) > 2
    for index in range(len(sliding) - 1):  # the last one does not begin with a clip
        sample = sliding[0, index]
        window = backbone(sample.frames[None])[0].T
        origin = round(sample.grid.origin_sec / sample.grid.step_sec)
        inner = slice(context_steps if origin else 0, len(window) - context_steps)
        torch.testing.assert_close(
            whole[origin : origin + len(window)][inner], window[inner], atol=1e-5, rtol=1e-4, msg=f"window {index}"
        )


def replace_videos(data: WindowDataset):
    from adatad_ds.data.annotations import AnnotationSet

    return AnnotationSet(videos=tuple(data.videos), classes=tuple(data.classes))


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["tia", "side", "ladder"])
def test_pieces_with_context_are_the_whole(videos, monkeypatch, tuning):
    settings = ("backbone.weights=null", "backbone.adapter_blocks=[1, 2]", "backbone.ladder_dilations=[3, 9]")
    config = config_of(videos, f"backbone.tuning={tuning}", *settings)
    backbone, path = adapted(config, steps=1), videos / "long.mp4"
    whole = extracted(backbone, config, path)
    monkeypatch.setattr(feature_extraction, "CLIPS_AT_ONCE", 1)
    monkeypatch.setattr(feature_extraction, "CONTEXT_SHARE", 0)
    pieces = extracted(backbone, config, path)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4)
    needed = feature_extraction._context_clips(backbone)
    monkeypatch.setattr(feature_extraction, "_context_clips", lambda backbone: needed - 1)
    assert (extracted(backbone, config, path) - whole).abs().max() > 1e-4, "less context would do"


@pytest.mark.parametrize("snippet", [(16, 1, 4), (32, 2, 8), (16, 3, 5)], ids=str)
def test_each_snippet_by_itself(videos, monkeypatch, snippet):
    monkeypatch.setattr(feature_extraction, "CLIPS_AT_ONCE", 3)
    frames, between, stride = snippet
    config = config_of(videos, "backbone.weights=null", "backbone.tuning=frozen")
    backbone, path = build_backbone(config, feature_steps=1).eval(), videos / "long.mp4"
    found = extracted(backbone, config, path, snippet=Snippet(frames=frames, frame_stride=between, stride=stride))
    assert len(found) == (130 - ((frames - 1) * between + 1)) // stride + 1
    side = config.data.resolution
    for index in (0, 1, len(found) - 1):
        numbers = index * stride + np.arange(frames) * between
        read = read_frames(path, numbers, short_side=side, scaling=config.data.scaling, backend="pyav")
        start = (read.shape[2] - side) // 2
        clip = torch.as_tensor(np.asarray(read))[:, :, start : start + side]
        with torch.no_grad():
            alone = backbone.tubelet_features(clip[None])[0].mean(dim=1)
        torch.testing.assert_close(found[index], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_resized_video_has_the_features_of_its_window(videos, monkeypatch):
    monkeypatch.setattr(feature_extraction, "CLIPS_AT_ONCE", 1)
    config = config_of(videos, "backbone.weights=null", "backbone.tuning=frozen", "data.sampling=resize")
    data = WindowDataset.for_testing(config.data)
    backbone = build_backbone(config, feature_steps=config.data.window_size).eval()
    for index, name in enumerate(video.name for video in data.videos):
        with torch.no_grad():
            window = backbone(data[0, index].frames[None])[0].T
        torch.testing.assert_close(extracted(backbone, config, videos / f"{name}.mp4"), window, atol=1e-5, rtol=1e-4)


def test_an_image_transformer(videos, monkeypatch):
    monkeypatch.setattr(feature_extraction, "CLIPS_AT_ONCE", 2)
    config = config_of(
        videos,
        "backbone.name=vit_tiny_patch16_224",
        "backbone.weights=null",
        "backbone.tuning=frozen",
        "backbone.clip_frames=8",
    )
    config = replace(config, data=replace(config.data, resolution=16))
    backbone = build_backbone(config, feature_steps=64).eval().requires_grad_(False)
    data = WindowDataset.for_testing(config.data)
    window = backbone(data[0, 0].frames[None])[0].T
    steps = int(data[0, 0].valid.sum())
    found = extracted(backbone, config, videos / f"{data.videos[0].name}.mp4")
    assert len(found) == steps
    torch.testing.assert_close(found, window[:steps], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("ratio", [0.5, 1, 2, 4])
def test_steps_do_not_depend_on_the_parts(ratio):
    tokens = torch.randn(40, 3)
    count = int(40 / ratio)
    wanted = torch.nn.functional.interpolate(tokens.T[None], size=count, mode="linear", align_corners=False)[0].T
    for part in (1, 7, 8, 40):
        steps = Interpolation(steps=count, tokens=40, ratio=ratio)
        torch.testing.assert_close(torch.cat([steps.add(each) for each in tokens.split(part)]), wanted)
        if ratio >= 1:
            averages = Averages(steps=count - 1, tokens=int(ratio))
            found = torch.cat([averages.add(each) for each in tokens.split(part)])
            torch.testing.assert_close(found, tokens.unflatten(0, (count, -1)).mean(dim=1)[:-1])


@pytest.mark.slow
def test_a_folder_however_it_is_filled(videos, tmp_path, monkeypatch, capsys):
    """By one process; by one that is killed, and another; by two ranks of two shares: the same files bit by bit."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(1)
    alone, killed, shared = tmp_path / "alone", tmp_path / "killed", tmp_path / "shared"
    assert main(arguments(videos, alone), prog="extract") == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "adatad_ds", "extract-features", *arguments(videos, killed)],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("[a-z]*.npy")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = set(killed.glob("[a-z]*.npy"))
    assert done
    assert read_description(killed).videos is None, "it was killed too late"
    written = {path: path.stat().st_mtime_ns for path in done}
    assert main(arguments(videos, killed), prog="extract") == 0
    assert {path: path.stat().st_mtime_ns for path in done} == written, "what was done is done again"
    for share, rank in ((1, 1), (0, 0), (1, 0), (0, 1)):
        assert not (shared / "features.json").exists() or read_description(shared).videos is None
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(arguments(videos, shared, "--share", f"{share}/2"), prog="extract") == 0
    wanted = contents(alone)
    assert set(wanted) == {"features.json", *(f"{name}.npy" for name in LENGTHS)}
    assert contents(killed) == wanted
    assert contents(shared) == wanted


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_what_a_folder_says_of_itself(videos, tmp_path):
    out = tmp_path / "out"
    more = ("--clip-frames", "16", "--frame-stride", "2", "--stride", "4", "--dtype", "fp32")
    assert main(arguments(videos, out, *more), prog="extract") == 0
    said = read_description(out)
    settings = said.settings
    assert (settings.stride_frames, settings.frames_per_feature, settings.frame_stride) == (4, 16, 2)
    assert settings.offset_frames == 16, "the middle of the first clip"
    assert said.videos is not None
    for name, frames in LENGTHS.items():
        found = np.load(out / f"{name}.npy")
        assert found.dtype == np.float32
        assert found.shape == ((frames - 31) // 4 + 1, 192) == (said.videos[name].features, settings.channels)
        assert (said.videos[name].num_frames, said.videos[name].fps) == (frames, 10)
    with pytest.raises(ConfigError, match=r"holds other features: .*stride_frames 4, not 8"):
        main(arguments(videos, out, *more[:5], "8", *more[6:]), prog="extract")


def test_videos_that_cannot_be_read_are_told(videos, tmp_path, capsys):
    shutil.copytree(videos, tmp_path / "videos")
    (tmp_path / "videos/short.mp4").write_bytes(b"no video")
    given = ["--videos", str(tmp_path / "videos"), str(tmp_path / "absent.mp4")]
    command = ["--recipe", "quickstart_frozen", "--out", str(tmp_path / "out"), *given]
    for setting in SMALL:
        command += ["--set", setting]
    assert main(command, prog="extract") == 1
    captured = capsys.readouterr()
    assert "absent.mp4" in captured.err
    assert all(text in captured.out for text in ("no features: ", "short.mp4", "2 of 3 videos"))
    said = read_description(tmp_path / "out")
    assert set(said.videos or ()) == {"long", "middle"}
    assert set(said.failed) == {"short"}


@pytest.mark.slow
def test_features_too_large_for_fp16(videos, tmp_path, monkeypatch, capsys):
    add = Interpolation.add
    monkeypatch.setattr(Interpolation, "add", lambda self, tokens: 1e5 * add(self, tokens))
    assert main(arguments(videos, tmp_path / "out"), prog="extract") == 1
    assert "feature 0 of 65 is not finite as float16" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.npy"))
    assert main(arguments(videos, tmp_path / "fp32", "--dtype", "fp32"), prog="extract") == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--share", "4/4"), "I from 0 to N - 1"),
        (("--clip-frames", "24"), "not a multiple of 16"),
        (("--frame-stride", "2"), "--frame-stride needs --clip-frames"),
        (("--set", "data.sampling=resize", "--stride", "4"), "--stride needs"),
        (("--set", "data.annotations="), "--videos"),
    ],
)
def test_what_contradicts_itself(videos, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        main([*arguments(videos, tmp_path / "out"), *more], prog="extract")


@pytest.mark.slow
def test_a_trained_model_extracts_with_its_adapters(videos, tmp_path):
    """A run's export: other features than its frozen backbone's, and told so."""
    config = config_of(videos, "backbone.adapter_blocks=[1]")
    torch.manual_seed(4)
    detector = build_detector(config, num_classes=1)
    for parameter in detector.backbone.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    trainable = {
        name: StoredTensor(tuple(parameter.shape), lambda parameter=parameter: parameter.detach())
        for name, parameter in detector.named_parameters()
        if parameter.requires_grad
    }
    path = tmp_path / "mine.safetensors"
    trained = Trained(
        name="mine",
        source=path,
        folder=tmp_path,
        config=config,
        classes=("wave",),
        trainable=trainable,
        frozen_fingerprint=None,
        averaged=False,
    )
    export(trained, path, extra={})
    command = ["--checkpoint", str(path), "--videos", str(videos / "short.mp4"), "--dtype", "fp32"]
    assert main([*command, "--out", str(tmp_path / "out")], prog="extract") == 0
    said = read_description(tmp_path / "out").settings
    assert (said.trained, said.context_frames) == ("mine.safetensors", 16)
    source = open_source(recipe=None, checkpoint=path, overrides=())
    wanted = extracted(source.backbone, source.config, videos / "short.mp4")
    found = torch.from_numpy(np.load(tmp_path / "out/short.npy"))
    torch.testing.assert_close(found, wanted)
    frozen = open_source(recipe="quickstart_frozen", checkpoint=None, overrides=SMALL)
    assert (extracted(frozen.backbone, frozen.config, videos / "short.mp4") - wanted).abs().max() > 0.1


def test_neither_recipe_nor_checkpoint():
    with pytest.raises(ConfigError, match="--recipe NAME"):
        open_source(recipe=None, checkpoint=None, overrides=())


def test_each_process_takes_its_own_gpu(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(feature_job, "gpu_count", lambda: 2)
    before = os.environ.get("MASTER_ADDR")  # DeepSpeed may have set it, in a test before
    assert feature_job._device() == torch.device("cuda", 0)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert feature_job._device() == torch.device("cuda", 1)
    assert os.environ.get("MASTER_ADDR") == before, "the environment is left as it was"


def test_the_hash_of_a_backbone_stays():
    """Else folders of features that were extracted before could not be gone on with, nor heads trained on them."""
    assert backbone_hash(open_source(recipe="quickstart", checkpoint=None, overrides=()).backbone) == "4aa51e753c1c4ead"
