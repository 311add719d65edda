"""Fill a folder with the features of many videos: this process's share of them, video by video."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from adatad_ds.config import loading
from adatad_ds.config.schema import Config, ParallelConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.features.folder import FeatureFolder, FeatureSettings, StoredType, VideoFeatures
from adatad_ds.data.features.plan import Snippet, annotated_videos
from adatad_ds.data.video_files import find_videos
from adatad_ds.data.window_stream import lone_video
from adatad_ds.data.windows import find_timing
from adatad_ds.errors import CheckpointError, ConfigError, DataError
from adatad_ds.inference.feature_extraction import FeatureExtractor, backbone_hash
from adatad_ds.inference.trained_model import check_recipe, find_trained, load_model
from adatad_ds.models.backbones.kinds import Backbone
from adatad_ds.models.detector import CLASS_LOGITS
from adatad_ds.models.factory import build_backbone
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.launch import complete_environment, gpu_count, local_device
from adatad_ds.weights.loading import fill_backbone, find_weights, open_backbone_weights


@dataclass(frozen=True, kw_only=True)
class Source:
    """A backbone to extract with.

    Attributes:
        backbone: on the CPU.
        config: of its recipe or run.
        trained: the run or file whose adapters it has; "": a frozen transformer alone.
    """

    backbone: Backbone
    config: Config
    trained: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is extracted, and where to.

    Attributes:
        out: the folder.
        videos: files by name; empty: those of the config's annotations.
        snippet: the clip that each feature is computed of; None: features as evaluation windows have them.
        dtype: in which features are stored.
        share: which share of the videos is this process's, and
        shares: of how many.
    """

    out: Path
    videos: Mapping[str, Path]
    snippet: Snippet | None
    dtype: StoredType
    share: int
    shares: int


def open_source(
    *, recipe: str | None, checkpoint: Path | None, overrides: Sequence[str], averaged: bool = True
) -> Source:
    """The backbone of a trained model or, without one, a recipe's frozen one.

    Args:
        recipe: its name; with a checkpoint, that of a published one.
        checkpoint: a run, a checkpoint, an export or a published file.
        overrides: `section.key=value` changes of the config.
        averaged: use the running average of trained weights (EMA) where there is one.

    Raises:
        ConfigError: neither is given, or they cannot be used.
        CheckpointError: weights that are missing, unreadable or do not fit.
    """
    if checkpoint is not None:
        trained = find_trained(checkpoint, recipe=recipe, overrides=overrides, averaged=averaged)
        check_recipe(recipe, [trained])
        classes = len(trained.classes)
        if not classes and trained.trainable is None:
            classes = open_backbone_weights(trained.config.backbone).trained[CLASS_LOGITS].shape[0]
        model = load_model(trained, num_classes=classes)
        return Source(backbone=model.backbone, config=_alone(trained.config), trained=trained.name)
    if recipe is None:
        raise ConfigError("give --recipe NAME for a frozen backbone, or --checkpoint for a trained one")
    return frozen_source(loading.override(find_recipe(recipe).config, overrides))


def frozen_source(config: Config) -> Source:
    """A config's backbone without adapters.

    Raises:
        ConfigError: unknown backbone.
        CheckpointError: weights that are missing, unreadable or do not fit.
    """
    frozen = replace(config.backbone, tuning="frozen", aim_adapters=None, aim_before_time=False, drop_path=0.0)
    config = _alone(replace(config, backbone=frozen))
    torch.manual_seed(config.train.seed)  # of a backbone without weights
    backbone = build_backbone(config, feature_steps=1)
    weights = find_weights(config.backbone, backbone.vit)
    if weights is not None:
        if weights.trained:
            raise CheckpointError(
                f"backbone.weights={config.backbone.weights} is a trained model; to extract with it, give it as "
                "--checkpoint"
            )
        fill_backbone(backbone.vit, weights.vit, dtype=config.train.dtype, read=True, host=lambda module: None)
    return Source(
        backbone=backbone.to(config.train.dtype).eval().requires_grad_(False),  # pyright: ignore
        config=config,
        trained="",
    )


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What is there of a share.

    Attributes:
        done: videos with features, those of earlier runs included.
        failed: one line for each video that cannot be read.
        complete: whether all other shares are done, too, and features.json lists all videos.
    """

    done: int
    failed: list[str]
    complete: bool


def extract(source: Source, job: Job, *, report: Callable[[str], None], bar: bool = True) -> Extracted:
    """Extract this share's videos that are not done yet.

    Args:
        source: the backbone.
        job: what is extracted.
        report: told about videos that are damaged or cannot be read.
        bar: show the progress.

    Raises:
        ConfigError: the folder holds other features.
        DataError: no usable annotations or files.
    """
    config = source.config
    device = _device()
    extractor = FeatureExtractor(backbone=source.backbone.to(device), config=config, snippet=job.snippet, device=device)
    settings = _settings(source, job, context_frames=extractor.context_clips * config.clip_frames)
    files = _files(config, job.videos)
    folder = FeatureFolder(job.out, settings=settings, share=job.share, shares=job.shares)
    longest_first = sorted(files, key=lambda file: (-file[0].duration_sec, file[0].name))
    own = longest_first[job.share :: job.shares]

    held: dict[str, VideoFeatures] = {}
    failed: dict[str, str] = {}
    with tqdm(own, unit="video", desc="features", dynamic_ncols=True, disable=not bar) as progress:
        for video, path in progress:
            try:
                held[video.name] = _extract(video, path, extractor, folder, config=config, bar=progress, report=report)
            except (VideoError, DataError) as error:
                failed[video.name] = str(error)
                report(f"no features: {error}")
    complete = folder.finish(held, failed)
    return Extracted(done=len(held), failed=list(failed.values()), complete=complete)


def _extract(
    video: Video,
    path: Path,
    extractor: FeatureExtractor,
    folder: FeatureFolder,
    *,
    config: Config,
    bar: tqdm[tuple[Video, Path]],
    report: Callable[[str], None],
) -> VideoFeatures:
    """One video's features, unless they are there."""
    timing = find_timing(video, path, config.data)
    count = extractor.length(timing)
    facts = VideoFeatures(
        features=count,
        num_frames=timing.num_frames,
        fps=timing.fps,
        start_sec=timing.start_sec,
        duration_sec=video.duration_sec,
    )
    if folder.is_done(video.name, features=count):
        return facts
    done, damage = 0, None
    with folder.writing(video.name, features=count) as write:
        for part, known in extractor.features(video, path, timing):
            write(part.numpy())
            done, damage = done + len(part), known
            bar.set_postfix_str(f"{video.name} {done / count:.0%}")
    if damage:
        report(f"damaged: {damage}")
    return facts


def _device() -> torch.device:
    """This process's own GPU among those that its launcher's processes share; without any, the CPU."""
    environment, gpus = dict(os.environ), gpu_count()
    complete_environment(environment)
    return torch.device("cuda", local_device(environment, gpus=gpus)) if gpus else torch.device("cpu")


def _settings(source: Source, job: Job, *, context_frames: int) -> FeatureSettings:
    config, snippet = source.config, job.snippet
    data, backbone = config.data, config.backbone
    resized = data.sampling == "resize" and snippet is None
    stride = snippet.stride if snippet else data.feature_stride_frames
    frame_stride = snippet.frame_stride if snippet else None if resized else data.frame_stride
    return FeatureSettings(
        backbone=backbone.name,
        weights=backbone.weights,
        trained=source.trained,
        fingerprint=backbone_hash(source.backbone),
        channels=source.backbone.width,
        dtype=job.dtype,
        resolution=data.resolution,
        scaling=data.scaling,
        sampling="resize" if resized else "random_trunc",
        stride_frames=None if resized else stride,
        frames_per_feature=snippet.frames if snippet else data.frames_per_feature,
        frame_stride=frame_stride,
        clip_frames=config.clip_frames,
        context_frames=context_frames,
        offset_frames=snippet.offset_frames if snippet else data.offset_frames,
        fixed_fps=data.fixed_fps,
    )


def _files(config: Config, videos: Mapping[str, Path]) -> list[tuple[Video, Path]]:
    """Videos and their files: those given, else all of the training and the test subset."""
    if videos:
        found = []
        for name, path in videos.items():
            try:
                found.append((lone_video(path, name=name), path))
            except VideoError:  # said where it is read
                found.append((Video(name, "", 0.0, None, None, ()), path))
        return found
    data = config.data
    if not data.annotations:
        raise ConfigError("this recipe names no annotations; give the files with --videos")
    annotated = annotated_videos(data)
    paths = find_videos(data.videos, list(annotated))
    return [(video, paths[name]) for name, video in annotated.items()]


def _alone(config: Config) -> Config:
    return replace(config, parallel=ParallelConfig())  # every process takes whole videos
