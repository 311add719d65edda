"""Where the features of annotated videos are, and whether they fit settings and annotations.

T features of a video, C channels, of all sources together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.features.files import FeatureFiles, Layout, StoredArray, common_channels, layout_of
from adatad_ds.data.features.folder import (
    DESCRIPTION_FILE,
    Description,
    FeatureSettings,
    VideoFeatures,
    read_description,
)
from adatad_ds.data.video_names import VideoNames
from adatad_ds.data.windows import Timing
from adatad_ds.errors import ConfigError, DataError, summarize_list

LOOKED_AT = 16  # files by which a source's channels and layout are found
SLACK_SHARE, SLACK_STEPS = 0.05, 4  # by which features and annotation, or two sources, may differ in length
MOST_WRONG = 0.5  # share of videos whose length contradicts their annotation before the rate is doubted


@dataclass(frozen=True)
class VideoArrays:
    """A video's arrays, one a source, and how each lies in memory.

    Attributes:
        arrays: of each source.
        layouts: of each.
        features: T, the shortest one's.
    """

    arrays: tuple[StoredArray, ...]
    layouts: tuple[Layout, ...]
    features: int

    def rows(self, start: int, stop: int) -> Tensor:
        """Features `start` to `stop` of all sources side by side, (n, C) float32.

        Raises:
            VideoError: unreadable, or not finite.
        """
        parts = [
            array.rows(start, stop, layout=layout) for array, layout in zip(self.arrays, self.layouts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(parts, axis=1))


class FeatureSources:
    """The folders or files of features that a config names, side by side.

    Args:
        config: of the run.

    Raises:
        DataError: nothing is there, or not all shares of an extraction are done.
        ConfigError: settings that contradict what a folder says of itself.
    """

    def __init__(self, config: Config) -> None:
        self._data = config.data
        self._files = [FeatureFiles(source) for source in config.data.feature_sources]
        self._said = [_description(files) for files in self._files]
        self._said_of = [VideoNames((said and said.videos) or ()) for said in self._said]
        for files, said in zip(self._files, self._said, strict=True):
            if said is not None:
                _check_settings(said.settings, config, files)
        looked_at = [_look(files) for files in self._files]
        wanted = config.backbone.source_channels
        by_source = wanted if len(wanted) == len(self._files) else (None,) * len(self._files)
        self._channels = [
            said.settings.channels if said is not None else own or common_channels(arrays)
            for said, arrays, own in zip(self._said, looked_at, by_source, strict=True)
        ]
        self.channels = sum(self._channels)
        if wanted not in ((), (self.channels,), self.source_channels):
            parts = " + ".join(map(str, self._channels))
            set_to = self.channels if len(wanted) == 1 else str(self._channels).replace(" ", "")
            raise ConfigError(
                f"data.features have {parts} channels, backbone.feature_channels = "
                f"{config.backbone.feature_channels}; give the features that the recipe is for, or --set "
                f"backbone.feature_channels={set_to}"
            )
        self._usual: list[Layout] = [
            layout_of(max(arrays, key=lambda array: abs(array.shape[0] - array.shape[1])), channels=channels)
            or "time first"
            for arrays, channels in zip(looked_at, self._channels, strict=True)
        ]
        failed = [name for said in self._said if said is not None for name in said.failed]
        self.reports = (
            [f"{len(failed)} videos could not be extracted: {summarize_list(failed, limit=3, separator=', ')}"]
            if failed
            else []
        )

    @property
    def source_channels(self) -> tuple[int, ...]:
        """C of each source."""
        return tuple(self._channels)

    def present(self, videos: Sequence[Video]) -> tuple[list[Video], list[str]]:
        """The videos that all sources have, and a line about the others.

        Raises:
            DataError: some are absent, and `data.skip_missing` is off; or all are.
        """
        absent = [video.name for video in videos if any(files.find(video.name) is None for files in self._files)]
        places = " and ".join(repr(str(files.source)) for files in self._files)
        named = f"{len(absent)} of {len(videos)} annotated videos have no features in {places}"
        if absent and (len(absent) == len(videos) or not self._data.skip_missing):
            raise DataError(
                f"data.features: {named}: {summarize_list(absent, separator=', ')}. Extract them, leave them out with "
                "data.exclude_file, or all that are missing with --set data.skip_missing=true"
            )
        lines = [f"{named}, and are left out: {summarize_list(absent, limit=3, separator=', ')}"] if absent else []
        known = set(absent)
        return [video for video in videos if video.name not in known], lines

    def open(self, video: Video) -> VideoArrays:
        """A video's arrays; only what says their shapes is read.

        Raises:
            VideoError: unreadable, or sources that differ in length.
        """
        arrays = tuple(files.open(files.find(video.name) or video.name) for files in self._files)
        layouts: tuple[Layout, ...] = tuple(
            layout_of(array, channels=channels, usual=usual) or "time first"
            for array, channels, usual in zip(arrays, self._channels, self._usual, strict=True)
        )
        lengths = [
            array.shape[0 if layout == "time first" else 1] for array, layout in zip(arrays, layouts, strict=True)
        ]
        if differ_in_length(lengths):
            told = ", ".join(f"{array.path} has {length}" for array, length in zip(arrays, lengths, strict=True))
            raise VideoError(f"{video.name}: its sources differ in the number of features: {told}")
        return VideoArrays(arrays, layouts, min(lengths))

    def timing(self, video: Video, arrays: VideoArrays) -> Timing:
        """Rate and number of steps as frames, `feature_stride_frames` each; resized ones are one frame a step.

        Raises:
            VideoError: no frame rate is known.
        """
        data, said = self._data, self._of_video(video)
        start_sec = said.start_sec if said else 0.0
        rate = self._rate(video)
        if data.sampling == "resize":
            covered_sec = video.duration_sec - start_sec
            settings = self._said[0].settings if self._said[0] else None
            if data.feature_stride_frames is not None and rate is not None and settings is None:
                covered_sec = arrays.features * data.feature_stride_frames / rate
            step_sec = covered_sec / data.window_size
            shift_sec = data.offset_steps * step_sec
            return Timing(num_frames=data.window_size, fps=1 / step_sec, start_sec=start_sec + shift_sec)
        if rate is None:
            raise VideoError(
                f"{video.name}: no frame rate is known, neither from the annotation nor from {DESCRIPTION_FILE}; give "
                "--set data.fixed_fps=..."
            )
        assert data.feature_stride_frames is not None
        return Timing(num_frames=arrays.features * data.feature_stride_frames, fps=rate, start_sec=start_sec)

    def check(self, videos: Mapping[str, Video], arrays: Mapping[str, VideoArrays]) -> list[str]:
        """Lines about features whose number contradicts their video's duration.

        Raises:
            DataError: wrong channels, or so many such videos that rate or stride must be wrong.
        """
        wrong = [
            f"{array.path} {array.shape}, not {channels}"
            for of_video in arrays.values()
            for array, channels in zip(of_video.arrays, self._channels, strict=True)
            if channels not in array.shape
        ]
        if wrong:
            raise DataError(
                f"data.features: {len(wrong)} of {len(arrays) * len(self._files)} arrays do not have "
                f"backbone.feature_channels = {self.channels}: {summarize_list(wrong, limit=5)}. Give the features "
                "that the recipe is for, or set it to null to take those of the files"
            )
        stride = self._data.feature_stride_frames
        if self._data.sampling == "resize" or stride is None:
            return []
        slack_steps = SLACK_STEPS + 2 * abs(self._data.offset_frames) / stride
        odd, ratios = [], []
        for name, of_video in arrays.items():
            rate, duration_sec = self._rate(videos[name]), videos[name].duration_sec
            if rate is None:
                continue
            expected = duration_sec * rate / stride
            ratios.append(of_video.features / expected)
            if abs(of_video.features - expected) > max(slack_steps, SLACK_SHARE * expected):
                odd.append(
                    f"{name}: {of_video.features} features are {of_video.features * stride / rate:.1f} s, annotated "
                    f"{duration_sec:.1f} s"
                )
        if not odd:
            return []
        told = f"{len(odd)} of {len(arrays)} videos have features whose length differs from the annotation"
        if len(odd) > MOST_WRONG * len(arrays):
            raise DataError(
                f"data.features: {told}, with a median ratio of {median(ratios):.3g}: is the frame rate or "
                f"data.feature_stride_frames = {stride} wrong? {summarize_list(odd, limit=3)}"
            )
        return [f"{told}: {summarize_list(odd, limit=3)}"]

    def _of_video(self, video: Video) -> VideoFeatures | None:
        """What an extraction says of a video."""
        for said, names in zip(self._said, self._said_of, strict=True):
            if said is not None and said.videos is not None:
                name = names.find(video.name)
                return None if name is None else said.videos[name]
        return None

    def _rate(self, video: Video) -> float | None:
        """Frames per second by which features are counted."""
        said = self._of_video(video)
        if said is not None:
            return said.fps
        if self._data.fixed_fps is not None:
            return self._data.fixed_fps
        if video.num_frames is not None:
            return video.num_frames / video.duration_sec
        return video.fps


def differ_in_length(lengths: Sequence[int]) -> bool:
    """Whether numbers of features differ by more than the readings of one video may."""
    return max(lengths) - min(lengths) > max(SLACK_STEPS, SLACK_SHARE * max(lengths))


def with_feature_channels(config: Config) -> Config:
    """The config with `backbone.feature_channels` as its features have them, if it does not say.

    Raises:
        DataError: no usable features.
        ConfigError: settings that contradict what a folder says of itself.
    """
    if not config.backbone.is_features or config.backbone.feature_channels is not None:
        return config
    sources = FeatureSources(config)
    channels = sources.source_channels if config.head.source_widths else sources.channels
    return replace(config, backbone=replace(config.backbone, feature_channels=channels))


def feature_fingerprint(config: Config) -> dict[str, str]:
    """What is known of the backbones that a config's features were extracted with, by source."""
    said = [_description(FeatureFiles(source)) for source in config.data.feature_sources]
    return {f"features {place}": one.settings.fingerprint for place, one in enumerate(said) if one is not None}


def _look(files: FeatureFiles) -> list[StoredArray]:
    """Some of a source's arrays that can be opened."""
    found, errors = [], []
    for name in files.names():
        try:
            found.append(files.open(name))
        except VideoError as error:
            errors.append(str(error))
        if len(found) == LOOKED_AT:
            break
    if not found:
        raise DataError(
            f"data.features: nothing in {str(files.source)!r} can be read: {summarize_list(errors, limit=3)}"
        )
    return found


def _description(files: FeatureFiles) -> Description | None:
    if not (files.source / DESCRIPTION_FILE).is_file():
        return None
    said = read_description(files.source)
    if said.videos is None:
        raise DataError(
            f"the extraction into {files.source} is not complete: run extract-features again with the same options, "
            "each share of it"
        )
    return said


def _check_settings(said: FeatureSettings, config: Config, files: FeatureFiles) -> None:
    """Compare what features are with what the config takes them for."""
    data = config.data
    if said.sampling == "resize" and data.sampling != "resize":
        raise ConfigError(
            f"{files.source} holds the same number of features of each video; --set data.sampling=resize, or extract "
            "them with --set data.sampling=random_trunc"
        )
    if data.sampling == "resize":
        return
    pairs = (
        ("data.feature_stride_frames", data.feature_stride_frames, said.stride_frames),
        ("data.offset_frames", data.offset_frames, said.offset_frames),
        ("data.fixed_fps", data.fixed_fps, said.fixed_fps),
    )
    different = [(key, ours, theirs) for key, ours, theirs in pairs if ours != theirs]
    if different:
        says = ", ".join(f"{key} = {ours}, but they were extracted with {theirs}" for key, ours, theirs in different)
        fix = " ".join(f"--set {key}={'null' if theirs is None else theirs}" for key, _, theirs in different)
        raise ConfigError(f"{files.source}: {says}; use {fix}")
