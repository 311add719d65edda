"""Several detectors as one, point by point: mean class scores and mean boundaries, as OpenTAD's `fuse_list`.

They may read the same windows from different files, such as frames and features.

B windows, T feature steps, P points, K classes, N pairs of a point and a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from adatad_ds.data.annotations import Video
from adatad_ds.data.batch import Batch, Sample
from adatad_ds.data.decoding.damage import merged
from adatad_ds.data.features.sources import differ_in_length
from adatad_ds.data.video_dataset import SampleKey
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.errors import ConfigError, summarize_list
from adatad_ds.inference.trained_model import Trained
from adatad_ds.models.detector import step_multiple
from adatad_ds.models.heads.interface import PointOutputs

# Of the data's settings, what may differ between detectors that see the same windows: what only matters elsewhere, what
# is taken of the first detector, and what windows are read from, since their times are compared.
OF_TRAINING = (
    "train_subset",
    "classes",
    "augment",
    "augment_on_device",
    "short_side_before_crop",
    "crop_ratio",
    "margin_steps",
    "min_action_share",
    "trunc_thresh",
)
OF_TESTING = ("annotations", "test_subset", "exclude", "exclude_file")  # the first detector's
OF_MACHINE = ("workers", "prefetch", "worker_timeout_sec", "max_failed_videos", "reader")
OF_INPUT = (
    "videos",
    "features",
    "skip_missing",
    "resolution",
    "scaling",
    "frames_per_feature",
    "feature_stride_frames",
    "fixed_fps",
    "offset_frames",
    "offset_steps",
)
MOST_APART_STEPS = 0.1  # between two detectors' times of a step


@dataclass(frozen=True)
class AveragedOutputs:
    """`PointOutputs` that are means of several detectors'.

    Attributes:
        parts: of each detector, at the same points.
    """

    parts: Sequence[PointOutputs]

    @property
    def class_logits(self) -> Tensor:
        """(B, P, K) float32, whose sigmoid is the mean of the detectors' scores."""
        return torch.stack([part.class_logits.sigmoid() for part in self.parts]).mean(dim=0).logit()

    @property
    def valid(self) -> Tensor:
        """(B, P) bool."""
        return self.parts[0].valid

    def distances_of(self, window: Tensor, point: Tensor, label: Tensor) -> Tensor:
        """(N, 2) float32; see `PointOutputs`."""
        return torch.stack([part.distances_of(window, point, label) for part in self.parts]).mean(dim=0)


class AveragedDetector(nn.Module):
    """Runs all detectors on the same windows.

    Args:
        detectors: with the same points and classes.
        inputs: which of the inputs each one reads.
    """

    def __init__(self, detectors: Sequence[nn.Module], *, inputs: Sequence[int]) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(detectors)
        self._inputs = tuple(inputs)

    def forward(self, frames: Tensor, valid: Tensor, *more_frames: Tensor) -> AveragedOutputs:
        """Frames or features of each input, and the windows' valid steps, to outputs; see `Detector`."""
        read = (frames, *more_frames)
        parts = [detector(read[place], valid) for detector, place in zip(self.detectors, self._inputs, strict=True)]
        return AveragedOutputs(parts)


def check_same_points(first: Trained, other: Trained) -> None:
    """Check that two detectors can be averaged.

    Raises:
        ConfigError: other classes, windows or points.
    """
    ours, theirs = (_of_points(trained) for trained in (first, other))
    different = [f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if ours[key] != theirs[key]]
    if different:
        raise not_averaged(first.name, other.name, f"it has {summarize_list(different)}")


def not_averaged(first: str, other: str, reason: str) -> ConfigError:
    """What is said of two detectors that do not have the same points, and what to do instead."""
    return ConfigError(
        f"{other} cannot be averaged with {first} point by point: {reason}. Fuse their candidates: evaluate each with "
        "--save-candidates, then all raw.npz together"
    )


def _of_points(trained: Trained) -> dict[str, Any]:
    config, head = trained.config, trained.config.head
    free = (*OF_TRAINING, *OF_TESTING, *OF_MACHINE, *OF_INPUT)
    data = {key: value for key, value in config.to_dict()["data"].items() if key not in free}
    return {
        **{f"data.{key}": value for key, value in data.items()},
        "halvings (head.arch)": head.arch[2],
        "head.max_len": head.max_len,
        "head.point_offset": head.point_offset,
        "padding of whole videos": step_multiple(head) if config.data.test_whole_videos else 0,
        "classes": tuple(trained.classes),
    }


def number_inputs(models: Sequence[Trained]) -> list[int]:
    """Which input each model reads: 0 for the first's, 1 for the next that differs, and so on."""
    known: list[tuple[Any, ...]] = []
    for trained in models:
        known.append((trained.config.backbone.is_features, *(getattr(trained.config.data, key) for key in OF_INPUT)))
    distinct = list(dict.fromkeys(known))
    return [distinct.index(each) for each in known]


class AlignedWindows:
    """Windows that are read in several ways, for `make_test_loader`; the first gives times, classes and annotations.

    As with features of several sources, a video ends where the shortest of its readings does.

    Args:
        readings: a detector's name and its test windows.

    Raises:
        ConfigError: other videos, or points at other times.
    """

    def __init__(self, readings: Sequence[tuple[str, WindowDataset]]) -> None:
        self._readings = [reading for _, reading in readings]
        (name, self._first), *others = readings
        self.videos: Sequence[Video] = self._first.videos
        self.classes = self._first.classes
        for other, reading in others:
            self._check_videos(name, other, reading)
        steps = [[reading.steps_of(index) for reading in self._readings] for index in range(len(self.videos))]
        for reading in self._readings:  # an unreadable video has one window
            reading.shorten([min(1 if each is None else each for each in of_video) for of_video in steps])
        for place, (other, reading) in enumerate(others, start=1):
            self._check_times(name, other, reading)
            self._check_lengths(name, other, [(of_video[0], of_video[place]) for of_video in steps])

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, key: SampleKey | None) -> tuple[Sample, ...]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | None]) -> list[tuple[Sample, ...]]:
        """Several samples, each as every detector reads it."""
        return list(zip(*(reading.__getitems__(keys) for reading in self._readings), strict=True))

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample's frames and features."""
        return sum(reading.sample_bytes for reading in self._readings)

    @property
    def collate(self) -> Callable[[Sequence[tuple[Sample, ...]]], Batch]:
        """Collation of samples into a batch."""
        return partial(_collate, [reading.collate for reading in self._readings])

    def _check_videos(self, name: str, other: str, reading: WindowDataset) -> None:
        ours, theirs = ([video.name for video in each.videos] for each in (self._first, reading))
        if odd := sorted({*ours} ^ {*theirs}):
            named = summarize_list(odd, limit=5, separator=", ")
            reason = f"only one of them has features of {named} (data.exclude_file leaves them out)"
            raise not_averaged(name, other, reason)

    def _check_times(self, name: str, other: str, reading: WindowDataset) -> None:
        for (video, ours), (_, theirs) in zip(self._first.test_grids(), reading.test_grids(), strict=True):
            if ours is None or theirs is None:
                continue
            ends_sec = ours.origin_sec, ours.duration_sec
            if max(abs(theirs.to_grid(sec) - ours.to_grid(sec)) for sec in ends_sec) > MOST_APART_STEPS:
                raise not_averaged(name, other, f"in {video}, its steps are {_times(theirs)}, not {_times(ours)}")

    def _check_lengths(self, name: str, other: str, steps: Sequence[tuple[int | None, int | None]]) -> None:
        odd = [
            f"{video.name} has {theirs} steps, not {ours}"
            for video, (ours, theirs) in zip(self.videos, steps, strict=True)
            if ours is not None and theirs is not None and differ_in_length((ours, theirs))
        ]
        if odd:
            raise not_averaged(name, other, summarize_list(odd, limit=3))


def _times(grid: TimeGrid) -> str:
    return f"{grid.step_sec:.4g} s apart from {grid.origin_sec:.4g} s on"


def _collate(collates: Sequence[Callable[[Sequence[Sample]], Batch]], samples: Sequence[tuple[Sample, ...]]) -> Batch:
    """The first reading's batch with the others' frames; a window counts where all could read it."""
    batches = [collate(read) for collate, read in zip(collates, zip(*samples, strict=True), strict=True)]
    return replace(
        batches[0],
        more_frames=[batch.frames for batch in batches[1:]],
        valid=torch.stack([batch.valid for batch in batches]).all(dim=0),
        errors=[next(filter(None, each), None) for each in zip(*(batch.errors for batch in batches), strict=True)],
        damage=[reduce(merged, each) for each in zip(*(batch.damage for batch in batches), strict=True)],
    )
