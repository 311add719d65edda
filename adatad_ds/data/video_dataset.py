"""Shared by all datasets: a sample depends on (seed, epoch, sample id) alone, and an unreadable video stops nothing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from adatad_ds.data.augmentation.operations import Step
from adatad_ds.data.augmentation.transforms import apply_steps
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.decoding.video import VideoError

REPLACEMENTS = 20  # videos tried in place of an unreadable one

SampleKey = tuple[int, int]  # epoch, sample id


@dataclass(frozen=True, kw_only=True)
class LoadingSeconds:
    """Seconds of one worker: decoding and scaling, augmenting, copying samples into a batch."""

    decode: float = 0.0
    augment: float = 0.0
    copy: float = 0.0

    @staticmethod
    def total(parts: Iterable[LoadingSeconds], *, copy: float = 0.0) -> LoadingSeconds:
        """The sum of parts, and `copy` more."""
        known = list(parts)
        return LoadingSeconds(
            decode=sum(part.decode for part in known),
            augment=sum(part.augment for part in known),
            copy=sum(part.copy for part in known) + copy,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoSample:
    """Frames of one video, ready for the model.

    Attributes:
        frames: uint8, RGB last.
        video: name of the video that the frames are from.
        sample_id: index of the sample, -1 for padding.
        seed: 63 random bits for the model's own randomness.
        error: why the video that belongs here could not be read.
        damage: what is missing in the file that the frames are from.
        steps: augmentation that is left to the device.
        seconds: what loading it took.
        padding: only there to give all ranks the same number of samples.
    """

    frames: Tensor
    video: str
    sample_id: int = -1
    seed: int = 0
    error: str | None = None
    damage: Damage | None = None
    padding: bool = False
    steps: tuple[Step, ...] = ()
    seconds: LoadingSeconds = field(default_factory=lambda: LoadingSeconds())


def frames_on(device: torch.device, frames: Tensor, steps: Sequence[Sequence[Step]]) -> Tensor:
    """A batch's frames on a device, with the augmentation that workers left to it; `frames` are not modified."""
    moved = frames.to(device, non_blocking=True)
    if any(steps):
        moved = moved.clone() if moved is frames else moved
        apply_steps(moved, steps)
    return moved


def together(parts: Sequence[Tensor]) -> Tensor:
    """Parts of one shape as one tensor (B, ...): that whose rows they are, if there is one, or else a copy."""
    first = parts[0]
    rows = [first.data_ptr() + number * first.nbytes for number in range(len(parts))]
    if all(part.data_ptr() == row and part.is_contiguous() for part, row in zip(parts, rows, strict=True)):
        whole = (len(parts), *first.shape), (first.numel(), *first.stride())
        if first.storage_offset() + len(parts) * first.numel() <= first.untyped_storage().nbytes() // first.itemsize:
            return first.as_strided(*whole)
    return torch.stack(list(parts))


def _batch_memory(shape: Sequence[int]) -> Tensor:
    """New uint8 memory; in a worker process it is shared, so that it goes to the training process without a copy."""
    if get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(tuple(shape))


VideoT = TypeVar("VideoT")
SampleT = TypeVar("SampleT", bound=VideoSample)


class VideoDataset(Dataset[SampleT], ABC, Generic[VideoT, SampleT]):
    """Samples of videos, addressed as `dataset[epoch, sample_id]`; `dataset[None]` is a padding sample.

    In training, sample `i` is a random sample of video `i % videos`; if that is unreadable, of another random video. In
    testing, it is the fixed sample `i`. Where nothing can be read, the sample is blank and carries the error.

    Args:
        videos: all videos.
        training: random samples, or the fixed ones.
        seed: seed of everything random.
        repeats: samples of each video per training epoch.
        replacements: how many other videos are tried in place of an unreadable one in training.
    """

    def __init__(
        self,
        *,
        videos: Sequence[VideoT],
        training: bool,
        seed: int,
        repeats: int,
        replacements: int = REPLACEMENTS,
    ) -> None:
        self.videos = videos
        self._training, self._seed, self._repeats, self._replacements = training, seed, repeats, replacements

    def __len__(self) -> int:
        return len(self.videos) * (self._repeats if self._training else 1)

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample's frames."""
        return self._blank(None).frames.nbytes

    def __getitem__(self, key: SampleKey | None) -> SampleT:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | None]) -> list[SampleT]:
        """Several samples, whose frames lie one after the other in one tensor: a DataLoader asks for a batch so."""
        memory = _batch_memory((len(keys), *self._frames_shape))
        return [self._load(key, out) for key, out in zip(keys, memory, strict=True)]

    def _load(self, key: SampleKey | None, out: Tensor) -> SampleT:
        if key is None:
            return replace(self._blank(None), padding=True)
        epoch, sample_id = key
        rng = np.random.default_rng([self._seed, epoch, sample_id])
        seed = int(rng.integers(2**63))
        sample = self._training_sample(sample_id, rng, out) if self._training else self._test_sample(sample_id, out)
        return replace(sample, sample_id=sample_id, seed=seed)

    def _training_sample(self, sample_id: int, rng: np.random.Generator, out: Tensor) -> SampleT:
        index, error = sample_id % len(self.videos), None
        for _ in range(1 + self._replacements):
            try:
                return replace(self._random(index, rng, out), error=error)
            except VideoError as caught:
                error = error or str(caught)
                index = int(rng.integers(len(self.videos)))
        return replace(self._blank(sample_id % len(self.videos)), error=error)

    def _test_sample(self, sample_id: int, out: Tensor) -> SampleT:
        try:
            return self._fixed(sample_id, out)
        except VideoError as caught:
            return replace(self._blank(self._video_of(sample_id)), error=str(caught))

    def _video_of(self, sample_id: int) -> int:
        """Index of a test sample's video."""
        return sample_id

    @property
    @abstractmethod
    def _frames_shape(self) -> tuple[int, ...]:
        """Of the memory that each sample's frames are decoded into."""

    @abstractmethod
    def _random(self, index: int, rng: np.random.Generator, out: Tensor) -> SampleT:
        """A random, augmented sample of video `index`; its frames may be decoded into `out`.

        Raises:
            VideoError: the video cannot be read.
        """

    @abstractmethod
    def _fixed(self, sample_id: int, out: Tensor) -> SampleT:
        """A test sample; its frames may be decoded into `out`.

        Raises:
            VideoError: its video cannot be read.
        """

    @abstractmethod
    def _blank(self, index: int | None) -> SampleT:
        """A sample with black frames in the place of video `index`; None: of no video, for padding."""
