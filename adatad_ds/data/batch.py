"""A window as a sample, and samples collated into a batch for the model.

B batch, F frames, S pixels of a side, T feature steps, G actions of a window.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adatad_ds.data.augmentation.operations import Step
from adatad_ds.data.decoding.damage import Damage
from adatad_ds.data.video_dataset import LoadingSeconds, VideoSample, together
from adatad_ds.data.windows import VideoWindow
from adatad_ds.detection.timegrid import TimeGrid


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample(VideoSample):
    """One window; `frames` is (F, S, S, 3) uint8.

    Attributes:
        valid: feature steps (T,) bool that are not padding.
        segments_grid: actions (G, 2) float32 in feature steps.
        labels: class indices (G,) int64.
        grid: converts between seconds and feature steps.
    """

    valid: Tensor
    segments_grid: Tensor
    labels: Tensor
    grid: TimeGrid


def window_sample(
    window: VideoWindow, frames: Tensor, *, steps: int, video: str, damage: Damage | None, sample_id: int = -1
) -> Sample:
    """A window of T = `steps` feature steps and its frames as a sample."""
    return Sample(
        frames=frames,
        valid=torch.arange(steps) < window.valid_steps,
        segments_grid=torch.from_numpy(window.segments_grid),
        labels=torch.from_numpy(window.labels),
        grid=window.grid,
        video=video,
        sample_id=sample_id,
        damage=damage,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B samples: frames (B, F, S, S, 3) uint8, valid (B, T) bool, seeds (B,) int64; the rest in lists of length B.

    `more_frames` are the same windows as further detectors of an ensemble read them, a tensor for each reading.
    """

    frames: Tensor
    valid: Tensor
    segments: list[Tensor]
    labels: list[Tensor]
    grids: list[TimeGrid]
    videos: list[str]
    sample_ids: list[int]
    seeds: Tensor
    errors: list[str | None]
    damage: list[Damage | None]
    padding: list[bool]
    steps: list[tuple[Step, ...]] = field(default_factory=list)  # augmentation left to the device
    more_frames: list[Tensor] = field(default_factory=list)
    seconds: LoadingSeconds = field(default_factory=LoadingSeconds)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, for asynchronous transfer to a GPU; called by the DataLoader."""
        return replace(
            self,
            frames=self.frames.pin_memory(),
            valid=self.valid.pin_memory(),
            more_frames=[frames.pin_memory() for frames in self.more_frames],
        )

    def inputs(self, device: torch.device) -> list[Tensor]:
        """Frames, valid steps and `more_frames` on a device, in the order in which models take them."""
        return [each.to(device, non_blocking=True) for each in (self.frames, self.valid, *self.more_frames)]

    def blank_unreadable(self, errors: Sequence[Sequence[str | None]]) -> Batch:
        """Blank the samples that some rank could not read, if several ranks hold different frames of the same windows.

        Args:
            errors: the `errors` of each rank's batch. A single rank has already replaced unreadable samples, and its
                batch is returned unchanged.
        """
        if len(errors) == 1:
            return self
        found = [next(filter(None, each), None) for each in zip(*errors, strict=True)]
        unread = torch.tensor([error is not None for error in found])
        if not unread.any():
            return self
        return replace(
            self,
            errors=found,
            valid=self.valid & ~unread[:, None],
            segments=[s[:0] if bad else s for s, bad in zip(self.segments, unread.tolist(), strict=True)],
            labels=[s[:0] if bad else s for s, bad in zip(self.labels, unread.tolist(), strict=True)],
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Collate samples into a batch."""
    began = time.perf_counter()
    frames = together([sample.frames for sample in samples])
    copy_sec = time.perf_counter() - began
    return Batch(
        frames=frames,
        valid=torch.stack([sample.valid for sample in samples]),
        segments=[sample.segments_grid for sample in samples],
        labels=[sample.labels for sample in samples],
        grids=[sample.grid for sample in samples],
        videos=[sample.video for sample in samples],
        sample_ids=[sample.sample_id for sample in samples],
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        errors=[sample.error for sample in samples],
        damage=[sample.damage for sample in samples],
        padding=[sample.padding for sample in samples],
        steps=[sample.steps for sample in samples],
        seconds=LoadingSeconds.total((sample.seconds for sample in samples), copy=copy_sec),
    )
