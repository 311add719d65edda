"""Windows of videos as samples and batches; every sample is a function of (seed, epoch, sample id) alone.

B batch, F frames, S pixels of a side, T feature steps, G actions of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import AnnotationSet, load_annotations
from adatad_ds.data.augmentation.transforms import augment, center_crop
from adatad_ds.data.batch import Sample, collate
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.decoding.video import VideoError, probe
from adatad_ds.data.video_files import find_videos
from adatad_ds.data.windows import (
    Timing,
    VideoWindow,
    file_frames,
    find_timing,
    random_trunc_window,
    resize_window,
    windows_for_testing,
)
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.errors import DataError, summarize_list

ANY_ACTION = "action"  # the only class of a class-agnostic detector
REPLACEMENTS = 20  # videos tried in place of an unreadable one
PROBING_THREADS = 4

SampleKey = tuple[int, int]  # epoch, sample id


class WindowDataset(Dataset[Sample]):
    """Windows of annotated videos, addressed as `dataset[epoch, sample_id]`.

    In training, sample `i` is a random, augmented window of video `i % videos`; in testing, the fixed window `i`.
    `dataset[None]` is a padding sample.

    Args:
        config: how windows are cut, read and augmented.
        annotations: the videos and class names.
        paths: file of every video.
        training: random windows, or all windows.
        seed: of everything random.
        repeats: samples of a video in an epoch.
        reports: lines about what was mended or left out, for the user.
        frames: which of a window's frames are read; None: all. A sample that fails is then blank, not replaced: those
            who read its other frames would not know.
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
        self.videos = annotations.videos
        self.classes = (ANY_ACTION,) if config.class_agnostic else annotations.classes
        self.reports = list(reports)
        self._config, self._paths, self._training = config, dict(paths), training
        self._seed, self._repeats = seed, repeats
        self._frames = frames or slice(None)
        self._replacements = REPLACEMENTS if frames is None else 0
        self._label_ids = {
            label: 0 if config.class_agnostic else index for index, label in enumerate(annotations.classes)
        }
        # Windows of random or resized videos are made as they are asked for: no need to open thousands of files now.
        self._windows: list[VideoWindow] | None = None
        if not training and config.sampling == "random_trunc":
            self._windows = self._all_windows()

    @classmethod
    def for_training(
        cls, config: DataConfig, *, seed: int, repeats: int = 1, frames: slice | None = None
    ) -> WindowDataset:
        """Random windows of the training subset's videos that hold actions.

        Raises:
            DataError: annotations or files that cannot be used.
        """
        annotations, reports = _load(config, subset=config.train_subset, classes=config.classes, train=True)
        with_actions = tuple(video for video in annotations.videos if video.actions)
        without = [video.name for video in annotations.videos if not video.actions]
        if not with_actions:
            raise DataError(f"{config.annotations}: no video of subset {config.train_subset!r} has an action to learn")
        if without:
            names = summarize_list(without, limit=3, separator=", ")
            reports.append(f"{len(without)} videos of {config.train_subset!r} without actions left out ({names})")
        return cls(
            config=config,
            annotations=replace(annotations, videos=with_actions),
            paths=find_videos(config.videos, [video.name for video in with_actions]),
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
        """All windows of the test subset's videos; `classes` are those of the training where it is known.

        Raises:
            DataError: annotations or files that cannot be used.
        """
        known = config.classes if config.class_agnostic else classes or config.classes
        annotations, reports = _load(config, subset=config.test_subset, classes=known, train=False)
        paths = find_videos(config.videos, [video.name for video in annotations.videos])
        return cls(config=config, annotations=annotations, paths=paths, training=False, reports=reports, frames=frames)

    def __len__(self) -> int:
        if self._windows is not None:
            return len(self._windows)
        return len(self.videos) * (self._repeats if self._training else 1)

    def __getitem__(self, key: SampleKey | None) -> Sample:
        if key is None:
            return replace(self._blank(video="", sample_id=-1, seed=0), padding=True)
        epoch, sample_id = key
        rng = np.random.default_rng([self._seed, epoch, sample_id])
        model_seed = int(rng.integers(2**63))
        if self._training:
            return self._training_sample(sample_id, model_seed, rng)
        return self._test_sample(sample_id, model_seed)

    def _training_sample(self, sample_id: int, model_seed: int, rng: np.random.Generator) -> Sample:
        config, error = self._config, None
        index = sample_id % len(self.videos)
        for _ in range(1 + self._replacements):
            try:
                window = self._random_window(index, rng)
                frames, damage = self._read(window, short_side=config.short_side_before_crop)
            except VideoError as caught:
                error = error or str(caught)
                index = int(rng.integers(len(self.videos)))
                continue
            side, scaling = config.resolution, config.scaling
            frames = augment(frames, resolution=side, scaling=scaling, kinds=config.augment, rng=rng)
            return replace(self._sample(window, frames, sample_id, model_seed), error=error, damage=damage)
        return replace(self._blank(video=self.videos[index].name, sample_id=sample_id, seed=model_seed), error=error)

    def _test_sample(self, sample_id: int, model_seed: int) -> Sample:
        index = sample_id if self._windows is None else self._windows[sample_id].video_index
        try:
            window = self._resized(index) if self._windows is None else self._windows[sample_id]
            side = self._config.resolution
            frames, damage = self._read(window, short_side=side)
        except VideoError as caught:
            blank = self._blank(video=self.videos[index].name, sample_id=sample_id, seed=model_seed)
            return replace(blank, error=str(caught))
        frames = center_crop(frames, resolution=side, scaling=self._config.scaling)
        return replace(self._sample(window, frames, sample_id, model_seed), damage=damage)

    def _sample(self, window: VideoWindow, frames: Tensor, sample_id: int, seed: int) -> Sample:
        return Sample(
            frames=frames,
            valid=torch.arange(self._config.window_size) < window.valid_steps,
            segments_grid=torch.from_numpy(window.segments_grid),
            labels=torch.from_numpy(window.labels),
            grid=window.grid,
            video=self.videos[window.video_index].name,
            sample_id=sample_id,
            seed=seed,
        )

    def _blank(self, *, video: str, sample_id: int, seed: int) -> Sample:
        """Black frames, no valid step, no action."""
        config, count = self._config, len(range(self._config.window_frames)[self._frames])
        return Sample(
            frames=torch.zeros((count, config.resolution, config.resolution, 3), dtype=torch.uint8),
            valid=torch.zeros(config.window_size, dtype=torch.bool),
            segments_grid=torch.zeros((0, 2)),
            labels=torch.zeros(0, dtype=torch.int64),
            grid=TimeGrid(origin_sec=0.0, step_sec=1.0, duration_sec=0.0),
            video=video,
            sample_id=sample_id,
            seed=seed,
        )

    def _random_window(self, index: int, rng: np.random.Generator) -> VideoWindow:
        if self._config.sampling == "resize":
            return self._resized(index)
        return random_trunc_window(
            self.videos[index],
            timing=self._timing(index),
            config=self._config,
            label_ids=self._label_ids,
            rng=rng,
            video_index=index,
        )

    def _resized(self, index: int) -> VideoWindow:
        return resize_window(
            self.videos[index],
            timing=self._timing(index),
            config=self._config,
            label_ids=self._label_ids,
            video_index=index,
        )

    def _all_windows(self) -> list[VideoWindow]:
        """Sliding windows of all videos; an unreadable one keeps a window, which will carry the error."""

        def timing(index: int) -> Timing:
            try:
                return self._timing(index)
            except VideoError:
                return Timing(num_frames=1, fps=1.0)

        with ThreadPoolExecutor(PROBING_THREADS) as pool:
            timings = list(pool.map(timing, range(len(self.videos))))
        return [
            window
            for index, found in enumerate(timings)
            for window in windows_for_testing(
                self.videos[index],
                timing=found,
                config=self._config,
                label_ids=self._label_ids,
                video_index=index,
            )
        ]

    def _timing(self, index: int) -> Timing:
        video = self.videos[index]
        return find_timing(video, self._paths[video.name], self._config)

    def _read(self, window: VideoWindow, *, short_side: int) -> tuple[np.ndarray, Damage]:
        self._timing(window.video_index)  # refuses what cannot be used
        path, config = self._paths[self.videos[window.video_index].name], self._config
        indices = file_frames(window, path, config)[self._frames]
        lost: set[int] = set()
        frames = read_frames(
            path, indices, short_side=short_side, scaling=config.scaling, backend=config.reader, lost=lost
        )
        return frames, probe(path).damage.with_lost(lost)


def _load(config: DataConfig, *, subset: str, classes: Sequence[str], train: bool) -> tuple[AnnotationSet, list[str]]:
    return load_annotations(
        config.annotations,
        subset=subset,
        classes=classes,
        exclude=config.exclude,
        as_published=not train,
        min_share=config.min_action_share if train else 0.0,
        exclude_file=config.exclude_file,
    )
