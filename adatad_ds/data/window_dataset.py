"""Windows of annotated videos as samples.

B batch, F frames, S pixels of a side, T feature steps, G actions of a window.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import ANY_ACTION, AnnotationSet, Video, load_annotations
from adatad_ds.data.augmentation.transforms import augment, center_crop, crop_and_draw
from adatad_ds.data.batch import Sample, collate, window_sample
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.decoding.frames import VideoFrames
from adatad_ds.data.decoding.libraries import check_reader
from adatad_ds.data.decoding.video import VideoError, index_videos
from adatad_ds.data.preparation.needs import check_prepared
from adatad_ds.data.video_dataset import REPLACEMENTS, LoadingSeconds, VideoDataset
from adatad_ds.data.video_files import find_videos
from adatad_ds.data.windows import (
    Timing,
    VideoWindow,
    WindowSource,
    file_frames,
    find_timing,
    random_trunc_window,
    resize_window,
    windows_for_testing,
)
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.errors import DataError, summarize_list

PROBING_THREADS = 4


class WindowDataset(VideoDataset[Video, Sample]):
    """Windows of annotated videos: a random, augmented window of each in training, all fixed windows in testing.

    Args:
        config: how windows are cut, read and augmented.
        annotations: videos and class names.
        paths: file of each video, by name.
        training: random windows, or all windows.
        seed: seed of everything random.
        repeats: samples of each video per training epoch.
        reports: lines for the user about what was repaired or left out.
        frames: which frames of a window are read; None: all. With a part of them, an unreadable video is not replaced,
            since the ranks that read the other frames would not know: its sample is blank.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        *,
        config: DataConfig,
        annotations: AnnotationSet,
        paths: Mapping[str, Path],
        training: bool,
        seed: int = 0,
        repeats: int = 1,
        reports: Sequence[str] = (),
        frames: slice | None = None,
    ) -> None:
        super().__init__(
            videos=annotations.videos,
            training=training,
            seed=seed,
            repeats=repeats,
            replacements=REPLACEMENTS if frames is None else 0,
        )
        check_reader(config.reader)
        self.classes = (ANY_ACTION,) if config.class_agnostic else annotations.classes
        self.reports = list(reports)
        self._config, self._paths = config, dict(paths)
        self._frames = frames or slice(None)
        self._label_ids = {
            label: 0 if config.class_agnostic else index for index, label in enumerate(annotations.classes)
        }
        # Random windows and resized videos are cut on demand, so that thousands of files need not be opened now.
        self._windows: list[VideoWindow] | None = None
        self._most_steps: Sequence[int] = ()
        if not training and config.sampling == "random_trunc":
            self._windows = self._all_windows()

    @classmethod
    def for_training(
        cls, config: DataConfig, *, seed: int, repeats: int = 1, frames: slice | None = None
    ) -> WindowDataset:
        """Random windows of the training subset's videos that hold actions.

        Raises:
            DataError: unusable annotations or files.
        """
        annotations, reports = with_actions(config)
        paths = find_videos(config.videos, [video.name for video in annotations.videos])
        check_prepared(config, annotations.videos, paths, training=True)
        return cls(
            config=config,
            annotations=annotations,
            paths=paths,
            training=True,
            seed=seed,
            repeats=repeats,
            reports=reports,
            frames=frames,
        )

    @classmethod
    def for_testing(
        cls, config: DataConfig, *, classes: Sequence[str] = (), frames: slice | None = None
    ) -> WindowDataset:
        """All windows of the test subset's videos; `classes` are those of the training, if known.

        Raises:
            DataError: unusable annotations or files.
        """
        known = config.classes if config.class_agnostic else classes or config.classes
        annotations, reports = load_subset(config, subset=config.test_subset, classes=known, train=False)
        paths = find_videos(config.videos, [video.name for video in annotations.videos])
        check_prepared(config, annotations.videos, paths, training=False)
        return cls(config=config, annotations=annotations, paths=paths, training=False, reports=reports, frames=frames)

    def __len__(self) -> int:
        return super().__len__() if self._windows is None else len(self._windows)

    def steps_of(self, index: int) -> int | None:
        """Feature steps T of video `index`, from which test windows are cut; None where it is unreadable."""
        if self._config.sampling == "resize":
            return self._config.window_size
        try:
            return -(-self._source(index).num_slots // self._config.frames_per_feature)
        except VideoError:
            return None

    def test_grids(self) -> Iterator[tuple[str, TimeGrid | None]]:
        """Video and grid of each test window; None where the video is unreadable."""
        for sample_id in range(len(self)):
            index = self._video_of(sample_id)
            try:
                self._timing(index)
                yield self.videos[index].name, self._fixed_window(sample_id).grid
            except VideoError:
                yield self.videos[index].name, None

    def shorten(self, steps: Sequence[int]) -> None:
        """Cut test windows as if each video had at most so many feature steps; resized ones stay as they are."""
        if self._windows is not None:
            self._most_steps = steps
            self._windows = self._all_windows()

    @property
    def _frames_shape(self) -> tuple[int, ...]:
        side = self._config.resolution
        return len(range(self._config.window_frames)[self._frames]), side, side, 3

    def _random(self, index: int, rng: np.random.Generator, out: Tensor) -> Sample:
        config, source = self._config, self._source(index)
        window = resize_window(source) if config.sampling == "resize" else random_trunc_window(source, rng=rng)
        began = time.perf_counter()
        read = self._read(window, short_side=config.short_side_before_crop)
        way = {"resolution": config.resolution, "scaling": config.scaling, "kinds": config.augment, "rng": rng}
        steps = crop_and_draw(read, **way, out=out)[1] if config.augment_on_device else ()
        if not config.augment_on_device:
            augment(read, **way, out=out)
        seconds = LoadingSeconds(decode=read.seconds, augment=time.perf_counter() - began - read.seconds)
        return replace(self._sample(window, out, read.damage), steps=steps, seconds=seconds)

    def _fixed(self, sample_id: int, out: Tensor) -> Sample:
        config, window = self._config, self._fixed_window(sample_id)
        read = self._read(window, short_side=config.resolution)
        center_crop(read, resolution=config.resolution, scaling=config.scaling, out=out)
        return self._sample(window, out, read.damage)

    def _video_of(self, sample_id: int) -> int:
        return sample_id if self._windows is None else self._windows[sample_id].video_index

    def _fixed_window(self, sample_id: int) -> VideoWindow:
        return resize_window(self._source(sample_id)) if self._windows is None else self._windows[sample_id]

    def _sample(self, window: VideoWindow, frames: Tensor, damage: Damage) -> Sample:
        name = self.videos[window.video_index].name
        return window_sample(window, frames, steps=self._config.window_size, video=name, damage=damage)

    def _blank(self, index: int | None) -> Sample:
        """Black frames, no valid step, no action."""
        return Sample(
            frames=torch.zeros(self._frames_shape, dtype=torch.uint8),
            valid=torch.zeros(self._config.window_size, dtype=torch.bool),
            segments_grid=torch.zeros((0, 2)),
            labels=torch.zeros(0, dtype=torch.int64),
            grid=TimeGrid(origin_sec=0.0, step_sec=1.0, duration_sec=0.0),
            video="" if index is None else self.videos[index].name,
        )

    def _all_windows(self) -> list[VideoWindow]:
        """Sliding windows of all videos; an unreadable video keeps one window, whose sample carries the error."""

        def source(index: int) -> WindowSource:
            try:
                return self._source(index)
            except VideoError:
                return self._source(index, timing=Timing(num_frames=1, fps=1.0))

        index_videos(self._paths.values(), threads=PROBING_THREADS)
        sources = [source(index) for index in range(len(self.videos))]
        return [window for source in sources for window in self._windows_for_testing(source)]

    def _windows_for_testing(self, source: WindowSource) -> list[VideoWindow]:
        return windows_for_testing(source)

    def _source(self, index: int, timing: Timing | None = None) -> WindowSource:
        config, timing = self._config, timing or self._timing(index)
        if self._most_steps:
            most_frames = self._most_steps[index] * config.frames_per_feature * config.frame_stride
            timing = replace(timing, num_frames=min(timing.num_frames, most_frames))
        return WindowSource(
            video=self.videos[index],
            video_index=index,
            timing=timing,
            config=config,
            label_ids=self._label_ids,
        )

    def _timing(self, index: int) -> Timing:
        video = self.videos[index]
        return find_timing(video, self._paths[video.name], self._config)

    def _read(self, window: VideoWindow, *, short_side: int) -> VideoFrames:
        self._timing(window.video_index)  # rejects unusable files
        path, config = self._paths[self.videos[window.video_index].name], self._config
        indices = file_frames(window, path, config)[self._frames]
        return VideoFrames(path, indices, short_side=short_side, scaling=config.scaling, backend=config.reader)


def with_actions(config: DataConfig) -> tuple[AnnotationSet, list[str]]:
    """The training subset's videos that hold actions, and lines for the user.

    Raises:
        DataError: unusable annotations, or no such video.
    """
    annotations, reports = load_subset(config, subset=config.train_subset, classes=config.classes, train=True)
    held = tuple(video for video in annotations.videos if video.actions)
    without = [video.name for video in annotations.videos if not video.actions]
    if not held:
        raise DataError(f"{config.annotations}: no video of subset {config.train_subset!r} has an action to train on")
    if without:
        names = summarize_list(without, limit=3, separator=", ")
        reports.append(f"{len(without)} videos of {config.train_subset!r} without actions left out ({names})")
    return replace(annotations, videos=held), reports


def load_subset(
    config: DataConfig, *, subset: str, classes: Sequence[str], train: bool
) -> tuple[AnnotationSet, list[str]]:
    """The annotations of a subset as its config wants them, and lines for the user.

    Raises:
        DataError: unusable annotations.
    """
    return load_annotations(
        config.annotations,
        subset=subset,
        classes=classes,
        exclude=config.exclude,
        as_published=not train,
        min_share=config.min_action_share if train else 0.0,
        exclude_file=config.exclude_file,
    )
