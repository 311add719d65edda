"""Windows of features of annotated videos, in the place of windows of frames.

A feature is a step: what `WindowDataset` counts in file frames is counted in strides of features here, so windows,
actions and times come from the same functions.

T steps of a window, C channels, G actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.data.annotations import AnnotationSet, Video
from adatad_ds.data.batch import Batch, Sample, collate
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.features.sources import FeatureSources, VideoArrays
from adatad_ds.data.window_dataset import WindowDataset, load_subset, with_actions
from adatad_ds.data.windows import (
    Timing,
    VideoWindow,
    WindowSource,
    random_trunc_window,
    whole_window,
)

SCANNING_THREADS = 8


@dataclass(frozen=True)
class _Found:
    """A video's arrays and timing, or why there are none."""

    arrays: VideoArrays | None
    timing: Timing | None
    error: str = ""


class FeatureDataset(WindowDataset):
    """Windows of annotated videos' features; samples have (T, C) float32 where others have frames.

    Args:
        config: of the run.
        annotations: videos and class names.
        sources: where features are.
        training: random windows, or all windows.
        seed: seed of everything random.
        repeats: samples of each video per training epoch.
        reports: lines for the user.

    Raises:
        DataError: features that do not fit the settings or the annotations.
    """

    def __init__(
        self,
        *,
        config: Config,
        annotations: AnnotationSet,
        sources: FeatureSources,
        training: bool,
        seed: int = 0,
        repeats: int = 1,
        reports: Sequence[str] = (),
    ) -> None:
        present, missing = sources.present(annotations.videos)
        self._channels = sources.channels
        self._resized = config.data.sampling == "resize"
        self._whole = config.data.test_whole_videos and not training
        with ThreadPoolExecutor(SCANNING_THREADS) as pool:
            opened = pool.map(lambda video: _open(video, sources), present)
            self._found = dict(zip((video.name for video in present), opened, strict=True))
        arrays = {name: found.arrays for name, found in self._found.items() if found.arrays is not None}
        told = sources.check({video.name: video for video in present}, arrays)
        super().__init__(
            config=_of_steps(config.data),
            annotations=replace(annotations, videos=tuple(present)),
            paths={},
            training=training,
            seed=seed,
            repeats=repeats,
            reports=[*reports, *missing, *told],
        )

    @classmethod
    def open_training(cls, config: Config) -> Self:
        """Random windows of the training subset's videos that hold actions.

        Raises:
            DataError: unusable annotations or features.
        """
        annotations, reports = with_actions(config.data)
        train = config.train
        sources = FeatureSources(config)
        return cls(
            config=config,
            annotations=annotations,
            sources=sources,
            training=True,
            seed=train.seed,
            repeats=train.repeats,
            reports=[*sources.reports, *reports],
        )

    @classmethod
    def open_testing(cls, config: Config, *, classes: Sequence[str] = ()) -> Self:
        """All windows of the test subset's videos; `classes` are those of the training, if known.

        Raises:
            DataError: unusable annotations or features.
        """
        data = config.data
        known = data.classes if data.class_agnostic else classes or data.classes
        annotations, reports = load_subset(data, subset=data.test_subset, classes=known, train=False)
        return cls(
            config=config, annotations=annotations, sources=FeatureSources(config), training=False, reports=reports
        )

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Batch:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Collate samples, those of whole videos padded to the longest."""
        longest = max(len(sample.valid) for sample in samples)
        return collate([_padded(sample, longest) for sample in samples])

    @property
    def _frames_shape(self) -> tuple[int, ...]:
        return (0,)  # nothing is decoded

    def _random(self, index: int, rng: np.random.Generator, out: Tensor) -> Sample:
        return self._read_window(random_trunc_window(self._source(index), rng=rng))

    def _fixed(self, sample_id: int, out: Tensor) -> Sample:
        return self._read_window(self._fixed_window(sample_id))

    def _windows_for_testing(self, source: WindowSource) -> list[VideoWindow]:
        return [whole_window(source)] if self._whole else super()._windows_for_testing(source)

    def _blank(self, index: int | None) -> Sample:
        """Zeros, no valid step, no action."""
        return replace(super()._blank(index), frames=torch.zeros((self._config.window_size, self._channels)))

    def _timing(self, index: int) -> Timing:
        found = self._found[self.videos[index].name]
        if found.timing is None:
            raise VideoError(found.error)
        return found.timing

    def _read_window(self, window: VideoWindow) -> Sample:
        video = self.videos[window.video_index]
        self._timing(window.video_index)  # says what is wrong with it
        arrays = self._found[video.name].arrays
        assert arrays is not None
        first = int(window.frame_indices[0]) // self._config.frame_stride
        last = first + window.valid_steps
        if self._resized:
            features = _resized(arrays.rows(0, arrays.features), self._config.window_size)[first:last]
        else:
            features = arrays.rows(first, last)
        steps = max(len(features), self._config.window_size)
        sample = Sample(
            frames=features,
            valid=torch.ones(len(features), dtype=torch.bool),
            segments_grid=torch.from_numpy(window.segments_grid),
            labels=torch.from_numpy(window.labels),
            grid=window.grid,
            video=video.name,
        )
        return _padded(sample, steps)


def _open(video: Video, sources: FeatureSources) -> _Found:
    try:
        arrays = sources.open(video)
        return _Found(arrays, sources.timing(video, arrays))
    except VideoError as error:
        return _Found(None, None, str(error))


def _of_steps(data: DataConfig) -> DataConfig:
    """Settings that cut windows of features; resized ones are a video of one frame a step."""
    if data.sampling == "random_trunc":
        return replace(data, frames_per_feature=1)
    return replace(
        data, frames_per_feature=1, sampling="random_trunc", feature_stride_frames=1, offset_frames=0, fixed_fps=None
    )


def _resized(features: Tensor, steps: int) -> Tensor:
    """(T', C) to (T, C), linearly."""
    if len(features) == steps:
        return features
    return F.interpolate(features.T[None], size=steps, mode="linear", align_corners=False)[0].T.contiguous()


def _padded(sample: Sample, steps: int) -> Sample:
    more = steps - len(sample.valid)
    if more <= 0:
        return sample
    return replace(sample, frames=F.pad(sample.frames, (0, 0, 0, more)), valid=F.pad(sample.valid, (0, more)))
