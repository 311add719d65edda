"""Clips of labelled videos as samples and batches.

B batch, V views of a video (1 in training; clips x crops in testing), T frames of a clip, S pixels of a side,
n frames of a file.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adatad_ds.config.schema import Augmentation, Scaling
from adatad_ds.data.augmentation.operations import Step
from adatad_ds.data.augmentation.transforms import augment, crop_and_draw, square_crops
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.decoding.frames import Backend, VideoFrames
from adatad_ds.data.decoding.libraries import check_reader
from adatad_ds.data.decoding.video import probe
from adatad_ds.data.labelled_videos import LabelledVideo, VideoList
from adatad_ds.data.video_dataset import LoadingSeconds, VideoDataset, VideoSample, together

IGNORED = -100  # label of blank samples, ignored by torch's cross_entropy

ClipSampling = Literal["uniform", "dense"]
Crops = Literal[1, 3]
Indices = NDArray[np.int64]


# ---- frame sampling --------------------------------------------------------------------------------------------------


def uniform_parts(num_frames: int, *, frames: int) -> tuple[Indices, Indices]:
    """First and last frame (T,) of T equal parts of a video; neighbours share a frame, short videos repeat some.

    As in SlowFast, and so in AIM, the range from frame 0 to the last frame is divided.
    """
    edges = np.round((num_frames - 1) / frames * np.arange(frames + 1)).astype(np.int64)
    return edges[:-1], edges[1:]


def dense_clip(num_frames: int, *, frames: int, stride: int, start: int) -> Indices:
    """T frames, `stride` apart, from `start` on; past its end, a video starts over, as in mmaction and so in AIM.

    Returns:
        (T,) frames of the file.
    """
    return (start + stride * np.arange(frames, dtype=np.int64)) % num_frames


def last_start(num_frames: int, *, frames: int, stride: int) -> int:
    """The latest start of a random dense clip: T * stride frames before the video's end, or 0 in shorter videos.

    As in mmaction, and so in AIM; the clip itself would still fit `stride - 1` frames later.
    """
    return max(0, num_frames - frames * stride)


def random_clip(
    num_frames: int, *, frames: int, sampling: ClipSampling, stride: int, rng: np.random.Generator
) -> Indices:
    """A random clip (T,): a random frame of each part, or a random start."""
    if sampling == "uniform":
        return rng.integers(*uniform_parts(num_frames, frames=frames), endpoint=True)
    start = int(rng.integers(last_start(num_frames, frames=frames, stride=stride), endpoint=True))
    return dense_clip(num_frames, frames=frames, stride=stride, start=start)


def fixed_clips(num_frames: int, *, frames: int, sampling: ClipSampling, stride: int, clips: int) -> Indices:
    """The fixed clips (clips, T) of a test video.

    Uniform: clip j takes the centre of the j-th of `clips` equal pieces of each part, one clip the parts' centres.
    Dense: clip j starts at the centre of the j-th of `clips` equal pieces of the possible starts; at 0 if none exists.
    """
    centres = (np.arange(clips) + 0.5) / clips
    if sampling == "uniform":
        first, last = uniform_parts(num_frames, frames=frames)
        return first + (centres[:, None] * (last - first)).astype(np.int64)
    starts = centres * max(0, num_frames - frames * stride + 1)
    return np.stack([dense_clip(num_frames, frames=frames, stride=stride, start=int(start)) for start in starts])


# ---- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSample(VideoSample):
    """One video's clips; `frames` is (V, T, S, S, 3) uint8, view c * crops + k being crop k of clip c.

    Attributes:
        label: class index; `IGNORED` for padding, and where no video could be read in training.
    """

    label: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch:
    """B samples: frames (B, V, T, S, S, 3) uint8, labels and seeds (B,) int64; the rest in lists of length B."""

    frames: Tensor
    labels: Tensor
    videos: list[str]
    sample_ids: list[int]
    seeds: Tensor
    errors: list[str | None]
    damage: list[Damage | None]
    padding: list[bool]
    steps: list[tuple[Step, ...]] = field(default_factory=list)  # augmentation left to the device
    seconds: LoadingSeconds = field(default_factory=LoadingSeconds)

    def pin_memory(self) -> ClipBatch:
        """A copy in page-locked memory, for asynchronous transfer to a GPU; called by the DataLoader."""
        return replace(self, frames=self.frames.pin_memory(), labels=self.labels.pin_memory())


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Collate samples into a batch."""
    began = time.perf_counter()
    frames = together([sample.frames for sample in samples])
    copy_sec = time.perf_counter() - began
    return ClipBatch(
        frames=frames,
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        videos=[sample.video for sample in samples],
        sample_ids=[sample.sample_id for sample in samples],
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        errors=[sample.error for sample in samples],
        damage=[sample.damage for sample in samples],
        padding=[sample.padding for sample in samples],
        steps=[sample.steps for sample in samples],
        seconds=LoadingSeconds.total((sample.seconds for sample in samples), copy=copy_sec),
    )


class ClipDataset(VideoDataset[LabelledVideo, ClipSample]):
    """Clips of labelled videos: a random, augmented clip of each in training, its fixed views in testing.

    Args:
        videos: the labelled videos, and the class names.
        training: random clips, or the fixed views.
        frames: T.
        sampling: "uniform" over the whole video, or "dense" with a stride.
        stride: frames of the file between two frames of a dense clip.
        resolution: S.
        short_side_before_crop: decoded short side in training; testing decodes at `resolution`.
        scaling: interpolation.
        augment: augmentations of training clips; without "flip" where classes differ by left and right
            (Something-Something).
        clips: clips per test video.
        crops: crops per test clip: 1, the centre square; 3, also the squares at both ends of the longer side.
        reader: decoder.
        seed: seed of everything random.
        repeats: samples of each video per training epoch.
        augment_on_device: leave all of the augmentation but the crop to the device.

    Raises:
        ValueError: a count below 1, or a number of crops other than 1 and 3.
    """

    collate = staticmethod(collate_clips)

    def __init__(
        self,
        *,
        videos: VideoList,
        training: bool,
        frames: int,
        sampling: ClipSampling,
        resolution: int,
        short_side_before_crop: int,
        scaling: Scaling,
        augment: Collection[Augmentation] = (),
        stride: int = 1,
        clips: int = 1,
        crops: Crops = 1,
        reader: Backend = "pyav",
        seed: int = 0,
        repeats: int = 1,
        augment_on_device: bool = False,
    ) -> None:
        counts = {"frames": frames, "stride": stride, "clips": clips, "resolution": resolution, "repeats": repeats}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1")
        if crops not in (1, 3):
            raise ValueError(f"crops={crops} must be 1 or 3")
        super().__init__(videos=videos.videos, training=training, seed=seed, repeats=repeats)
        check_reader(reader)
        self.classes = videos.classes
        self.views = 1 if training else clips * crops
        self._frames, self._stride, self._clips = frames, stride, clips
        self._sampling: ClipSampling = sampling
        self._crops: Crops = crops
        self._reader: Backend = reader
        self._scaling: Scaling = scaling
        self._resolution, self._short_side = resolution, short_side_before_crop if training else resolution
        self._augment = tuple(augment)
        self._on_device = augment_on_device

    @property
    def _frames_shape(self) -> tuple[int, ...]:
        return self.views, self._frames, self._resolution, self._resolution, 3

    def _random(self, index: int, rng: np.random.Generator, out: Tensor) -> ClipSample:
        video = self.videos[index]
        num_frames = probe(video.path).num_frames
        wanted = random_clip(num_frames, frames=self._frames, sampling=self._sampling, stride=self._stride, rng=rng)
        began = time.perf_counter()
        read, order = self._read(video, wanted)
        distinct = out[0, : read.shape[0]]  # all of it, as a rule
        way = {"resolution": self._resolution, "scaling": self._scaling, "kinds": self._augment, "rng": rng}
        steps = crop_and_draw(read, **way, out=distinct)[1] if self._on_device else ()
        if not self._on_device:
            augment(read, **way, out=distinct)
        _put_in_order(out[0], order)
        seconds = LoadingSeconds(decode=read.seconds, augment=time.perf_counter() - began - read.seconds)
        return ClipSample(
            frames=out, label=video.label, video=video.name, damage=read.damage, seconds=seconds, steps=steps
        )

    def _fixed(self, sample_id: int, out: Tensor) -> ClipSample:
        video = self.videos[sample_id]
        num_frames = probe(video.path).num_frames
        wanted = fixed_clips(
            num_frames, frames=self._frames, sampling=self._sampling, stride=self._stride, clips=self._clips
        )
        read, order = self._read(video, wanted.reshape(-1))
        crops = square_crops(
            read, resolution=self._resolution, scaling=self._scaling, crops=self._crops
        )  # (crops, distinct frames, S, S, 3)
        for number, places in enumerate(np.split(order, self._clips)):
            for crop, square in enumerate(crops):
                torch.index_select(square, 0, torch.from_numpy(places), out=out[number * self._crops + crop])
        return ClipSample(frames=out, label=video.label, video=video.name, damage=read.damage)

    def _blank(self, index: int | None) -> ClipSample:
        """Black frames; a test video keeps its label."""
        frames = torch.zeros(self._frames_shape, dtype=torch.uint8)
        if index is None:
            return ClipSample(frames=frames, label=IGNORED, video="")
        video = self.videos[index]
        return ClipSample(frames=frames, label=IGNORED if self._training else video.label, video=video.name)

    def _read(self, video: LabelledVideo, wanted: Indices) -> tuple[VideoFrames, Indices]:
        """The distinct frames, in the order of the file, each decoded once; and which of them each wanted one is."""
        distinct, order = np.unique(wanted, return_inverse=True)
        read = VideoFrames(
            video.path, distinct, short_side=self._short_side, scaling=self._scaling, backend=self._reader
        )
        return read, order


def _put_in_order(frames: Tensor, order: Indices) -> None:
    """Make frames (T, ...), of which the first are the distinct ones, those of each place of `order` (T,), in place."""
    if (order != np.arange(len(order))).any():
        frames.copy_(frames[torch.from_numpy(order)])
