"""Windows of videos as samples and batches; every sample is a function of (seed, epoch, sample id) alone.

B batch, F frames, S pixels of a side, T feature steps, G actions of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adatad_ds.config import DataConfig
from adatad_ds.data.annotations import AnnotationSet, DataError, listed, load_annotations
from adatad_ds.data.transforms import augment, center_crop
from adatad_ds.data.video import VideoError, VideoInfo, probe, read_frames
from adatad_ds.data.video_files import find_videos
from adatad_ds.data.windows import Window, file_frames, random_trunc_window, resize_window, timing, windows_for_testing
from adatad_ds.detection.timegrid import TimeGrid

ANY_ACTION = "action"  # the only class of a class-agnostic detector
REPLACEMENTS = 20  # videos tried in place of an unreadable one
RATE_TOLERANCE = 0.05  # between a file and its annotation
PROBING_THREADS = 4

SampleKey = tuple[int, int]  # epoch, sample id


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One window, ready for the model.

    Attributes:
        frames: (F, S, S, 3) uint8.
        valid: feature steps (T,) that are not padding.
        segments_grid: actions (G, 2) float32 in feature steps.
        labels: class indices (G,) int64.
        grid: seconds of the feature steps.
        video: name of the video that the frames are from.
        sample_id: which sample, -1 for padding.
        seed: 63 random bits for what the model draws.
        error: why the video that belongs here could not be read.
        padding: only there to give all ranks the same number of windows.
    """

    frames: Tensor
    valid: Tensor
    segments_grid: Tensor
    labels: Tensor
    grid: TimeGrid
    video: str
    sample_id: int
    seed: int
    error: str | None = None
    padding: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B samples: frames (B, F, S, S, 3) uint8, valid (B, T) bool, seeds (B,) int64; the rest in lists of length B."""

    frames: Tensor
    valid: Tensor
    segments: list[Tensor]
    labels: list[Tensor]
    grids: list[TimeGrid]
    videos: list[str]
    sample_ids: list[int]
    seeds: Tensor
    errors: list[str | None]
    padding: list[bool]

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, which travels to a GPU asynchronously; called by the DataLoader."""
        return replace(self, frames=self.frames.pin_memory(), valid=self.valid.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples together."""
    return Batch(
        frames=torch.stack([sample.frames for sample in samples]),
        valid=torch.stack([sample.valid for sample in samples]),
        segments=[sample.segments_grid for sample in samples],
        labels=[sample.labels for sample in samples],
        grids=[sample.grid for sample in samples],
        videos=[sample.video for sample in samples],
        sample_ids=[sample.sample_id for sample in samples],
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        errors=[sample.error for sample in samples],
        padding=[sample.padding for sample in samples],
    )


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
        self._windows: list[Window] | None = None
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
        annotations, reports = _load(config, subset=config.train_subset, classes=config.classes, as_published=False)
        with_actions = tuple(video for video in annotations.videos if video.actions)
        without = [video.name for video in annotations.videos if not video.actions]
        if not with_actions:
            raise DataError(f"{config.annotations}: no video of subset {config.train_subset!r} has an action to learn")
        if without:
            names = listed(without, limit=3, separator=", ")
            reports.append(f"{len(without)} videos of {config.train_subset!r} without actions left out ({names})")
        paths = find_videos(config.videos, [video.name for video in with_actions])
        annotations = replace(annotations, videos=with_actions)
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
        """All windows of the test subset's videos; `classes` are those of the training where it is known.

        Raises:
            DataError: annotations or files that cannot be used.
        """
        known = config.classes if config.class_agnostic else classes or config.classes
        annotations, reports = _load(config, subset=config.test_subset, classes=known, as_published=True)
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
                frames = self._read(window, short_side=config.short_side_before_crop)
            except VideoError as caught:
                error = error or str(caught)
                index = int(rng.integers(len(self.videos)))
                continue
            side, scaling = config.resolution, config.scaling
            frames = augment(frames, resolution=side, scaling=scaling, kinds=config.augment, rng=rng)
            return self._sample(window, frames, sample_id, model_seed, error)
        return replace(self._blank(video=self.videos[index].name, sample_id=sample_id, seed=model_seed), error=error)

    def _test_sample(self, sample_id: int, model_seed: int) -> Sample:
        index = sample_id if self._windows is None else self._windows[sample_id].video_index
        try:
            window = self._resized(index) if self._windows is None else self._windows[sample_id]
            side = self._config.resolution
            frames = center_crop(self._read(window, short_side=side), resolution=side, scaling=self._config.scaling)
        except VideoError as caught:
            blank = self._blank(video=self.videos[index].name, sample_id=sample_id, seed=model_seed)
            return replace(blank, error=str(caught))
        return self._sample(window, frames, sample_id, model_seed, None)

    def _sample(self, window: Window, frames: Tensor, sample_id: int, seed: int, error: str | None) -> Sample:
        return Sample(
            frames=frames,
            valid=torch.arange(self._config.window_size) < window.valid_steps,
            segments_grid=torch.from_numpy(window.segments_grid),
            labels=torch.from_numpy(window.labels),
            grid=window.grid,
            video=self.videos[window.video_index].name,
            sample_id=sample_id,
            seed=seed,
            error=error,
        )

    def _blank(self, *, video: str, sample_id: int, seed: int) -> Sample:
        """Black frames, no valid step, no action."""
        config = self._config
        count = len(range(config.window_frames)[self._frames])
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

    def _random_window(self, index: int, rng: np.random.Generator) -> Window:
        if self._config.sampling == "resize":
            return self._resized(index)
        num_frames, fps = self._timing(index)
        return random_trunc_window(
            self.videos[index],
            num_frames=num_frames,
            fps=fps,
            config=self._config,
            label_ids=self._label_ids,
            rng=rng,
            video_index=index,
        )

    def _resized(self, index: int) -> Window:
        num_frames, _ = self._timing(index)
        return resize_window(
            self.videos[index],
            num_frames=num_frames,
            config=self._config,
            label_ids=self._label_ids,
            video_index=index,
        )

    def _all_windows(self) -> list[Window]:
        """Sliding windows of all videos; an unreadable one keeps a window, which will carry the error."""

        def timing(index: int) -> tuple[int, float]:
            try:
                return self._timing(index)
            except VideoError:
                return 1, 1.0

        with ThreadPoolExecutor(PROBING_THREADS) as pool:
            timings = list(pool.map(timing, range(len(self.videos))))
        return [
            window
            for index, (num_frames, fps) in enumerate(timings)
            for window in windows_for_testing(
                self.videos[index],
                num_frames=num_frames,
                fps=fps,
                config=self._config,
                label_ids=self._label_ids,
                video_index=index,
            )
        ]

    def _timing(self, index: int) -> tuple[int, float]:
        video = self.videos[index]
        return timing(video, self._paths[video.name], self._config)

    def _read(self, window: Window, *, short_side: int) -> np.ndarray:
        video = self.videos[window.video_index]
        path = self._paths[video.name]
        if self._config.fixed_fps is None:
            _, fps = self._timing(window.video_index)
            _check_rate(path, probe(path), fps=fps, duration_sec=video.duration_sec)
        indices = file_frames(window, path, self._config)[self._frames]
        return read_frames(
            path, indices, short_side=short_side, scaling=self._config.scaling, backend=self._config.reader
        )


def _load(
    config: DataConfig, *, subset: str, classes: Sequence[str], as_published: bool
) -> tuple[AnnotationSet, list[str]]:
    return load_annotations(
        config.annotations,
        subset=subset,
        classes=classes,
        exclude=config.exclude,
        exclude_file=config.exclude_file,
        as_published=as_published,
    )


def _check_rate(path: Path, info: VideoInfo, *, fps: float, duration_sec: float) -> None:
    """Refuse a file that was re-encoded at another frame rate than its annotation's: all times would be wrong.

    A file that was only cut short keeps its rate, and passes.
    """
    annotated_frames = duration_sec * fps
    if abs(info.fps / fps - 1) > RATE_TOLERANCE and abs(info.num_frames / annotated_frames - 1) > RATE_TOLERANCE:
        raise VideoError(
            f"{path}: {info.num_frames} frames at {info.fps:.3g} a second, but its annotation means "
            f"{annotated_frames:.0f} at {fps:.3g}; if it was re-encoded, take its frame count and fps out of the "
            "annotation file"
        )
