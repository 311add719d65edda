"""Transform decoded frames to the backbone's square input frames, with one random draw for all frames of a sample.

Frames are taken a few at a time, as they are decoded, and written where the sample is wanted, so that a sample's frames
exist once. F frames, h x w pixels before and S x S after; all frames uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adatad_ds.config.schema import Augmentation, Scaling
from adatad_ds.data.augmentation import operations
from adatad_ds.data.augmentation.colour import by_colour, by_pixel
from adatad_ds.data.decoding.scaling import scale

CHUNK_FRAMES = 8  # processed at once: fewer cost more calls, the float copies of more do not fit into caches

DEVICE_CHUNK_FRAMES = 64  # enough to keep a GPU busy; their float copies take some 100 MB at 224 px

CROP_AREA = (0.08, 1.0)  # share of the frame
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5

Step = Callable[[Tensor], Tensor]  # (n, 3, h, w) uint8 to (n, 3, h', w') uint8


class Pictures(Protocol):
    """F frames, one after the other: an array (F, h, w, 3), or frames that are being decoded."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, h, w, 3)."""
        ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What is cut out of each frame, in pixels, and scaled to S x S."""

    top: int
    left: int
    height: int
    width: int
    resolution: int
    scaling: Scaling

    def cut(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Of frames (h, w, 3), as (n, 3, S, S)."""
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        pixels = torch.from_numpy(np.stack([frame[rows, columns] for frame in frames])).permute(0, 3, 1, 2)
        return scale(pixels, height=self.resolution, width=self.resolution, scaling=self.scaling)


def augment(
    frames: Pictures,
    *,
    resolution: int,
    scaling: Scaling,
    kinds: Collection[Augmentation],
    rng: np.random.Generator,
    out: Tensor | None = None,
) -> Tensor:
    """Training augmentation, each kind drawn once for all frames of the sample; the order is fixed.

    Crop, flip, RandAugment (AdaTAD's, or AIM's for Something-Something with 4 operations of magnitude 7), colour jitter
    (AdaTAD), lighting (AIM's L/14 on Kinetics-400), random erasing (AIM, Something-Something).

    Args:
        frames: F of them, (h, w, 3).
        resolution: S.
        scaling: interpolation of crops.
        kinds: augmentations to apply; without the random crop, the centre is cropped.
        rng: the only source of randomness.
        out: (F, S, S, 3) uint8, where the result is written; None: into new memory.

    Returns:
        (F, S, S, 3) uint8.
    """
    crop = _draw_crop(frames, resolution=resolution, scaling=scaling, kinds=kinds, rng=rng)
    return _apply(frames, crop, draw_steps(resolution=resolution, kinds=kinds, rng=rng), out)


def crop_and_draw(
    frames: Pictures,
    *,
    resolution: int,
    scaling: Scaling,
    kinds: Collection[Augmentation],
    rng: np.random.Generator,
    out: Tensor | None = None,
) -> tuple[Tensor, tuple[Step, ...]]:
    """The first part of `augment`: cropped frames (F, S, S, 3), and what `apply_steps` has still to do."""
    crop = _draw_crop(frames, resolution=resolution, scaling=scaling, kinds=kinds, rng=rng)
    return _apply(frames, crop, (), out), draw_steps(resolution=resolution, kinds=kinds, rng=rng)


def apply_steps(frames: Tensor, steps: Sequence[Sequence[Step]]) -> None:
    """The second part of `augment`, in place and a few frames at a time, which bounds what it takes in memory.

    Args:
        frames: (B, ..., F, S, S, 3) uint8, on any device.
        steps: of each sample; none of it: nothing is left to do.
    """
    most = CHUNK_FRAMES if frames.device.type == "cpu" else DEVICE_CHUNK_FRAMES
    for sample, drawn in zip(frames, steps, strict=bool(steps)):
        for chunk in sample.flatten(0, -4).split(most) if drawn else ():
            pixels = chunk.permute(0, 3, 1, 2)  # (n, 3, S, S)
            for step in drawn:
                pixels = step(pixels)
            by_pixel(pixels, chunk)


def _draw_crop(
    frames: Pictures,
    *,
    resolution: int,
    scaling: Scaling,
    kinds: Collection[Augmentation],
    rng: np.random.Generator,
) -> Crop:
    height, width = frames.shape[1:3]
    if "random_resized_crop" in kinds:
        return _random_resized_crop(height, width, resolution, scaling, rng)
    return _center_crop(height, width, resolution, scaling)


def draw_steps(*, resolution: int, kinds: Collection[Augmentation], rng: np.random.Generator) -> tuple[Step, ...]:
    """Draw what follows on the crop in `augment`: steps that can be pickled, and run on any device."""
    steps: list[Step] = []
    if "flip" in kinds and rng.random() < FLIP_PROBABILITY:
        steps.append(partial(torch.flip, dims=[-1]))
    if "rand_augment" in kinds:
        steps += operations.rand_augment(resolution, rng)
    if "rand_augment_n4_m7" in kinds:
        steps += operations.rand_augment_n4_m7(resolution, rng)
    if "color_jitter" in kinds:
        steps += operations.color_jitter(rng)
    if "lighting" in kinds:
        steps.append(operations.lighting(rng))
    if "random_erasing" in kinds:
        steps += operations.random_erasing(resolution, rng)
    return (by_colour, *steps) if steps else ()


def center_crop(frames: Pictures, *, resolution: int, scaling: Scaling, out: Tensor | None = None) -> Tensor:
    """Crop the largest centred square of F frames (h, w, 3) and scale it: (F, S, S, 3), into `out` if that is given."""
    height, width = frames.shape[1:3]
    return _apply(frames, _center_crop(height, width, resolution, scaling), (), out)


def square_crops(frames: Pictures, *, resolution: int, scaling: Scaling, crops: Literal[1, 3]) -> Tensor:
    """Crop the largest squares along the longer side of frames (F, h, w, 3) and scale them: (crops, F, S, S, 3).

    One crop is the centre; three are left (or top), centre and right (or bottom), in equal steps, as mmaction's
    ThreeCrop: if an odd number of pixels is left over, the last one is in no crop.
    """
    height, width = frames.shape[1:3]
    side, places = min(height, width), {1: (1,), 3: (0, 1, 2)}[crops]  # in halves of the remaining pixels
    squares = [
        Crop(
            top=(height - side) // 2 * place,
            left=(width - side) // 2 * place,
            height=side,
            width=side,
            resolution=resolution,
            scaling=scaling,
        )
        for place in places
    ]
    out = torch.empty((crops, frames.shape[0], resolution, resolution, 3), dtype=torch.uint8)
    for begin, chunk in _chunks(frames):
        for view, square in zip(out, squares, strict=True):
            by_pixel(square.cut(chunk), view[begin : begin + len(chunk)])
    return out


def _apply(frames: Pictures, crop: Crop, steps: Sequence[Step], out: Tensor | None) -> Tensor:
    """Crop F frames, apply the steps, and write the result (F, S, S, 3)."""
    if out is None:
        out = torch.empty((frames.shape[0], crop.resolution, crop.resolution, 3), dtype=torch.uint8)
    for begin, chunk in _chunks(frames):
        pixels = crop.cut(chunk)
        for step in steps:
            pixels = step(pixels)
        by_pixel(pixels, out[begin : begin + len(chunk)])
    return out


def _chunks(frames: Pictures) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
    """A few frames at a time, with the number of the first."""
    coming, begin = iter(frames), 0
    while chunk := list(islice(coming, CHUNK_FRAMES)):
        yield begin, chunk
        begin += len(chunk)


def _center_crop(height: int, width: int, resolution: int, scaling: Scaling) -> Crop:
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return Crop(top=top, left=left, height=side, width=side, resolution=resolution, scaling=scaling)


def _random_resized_crop(height: int, width: int, resolution: int, scaling: Scaling, rng: np.random.Generator) -> Crop:
    for _ in range(CROP_TRIES):
        area = rng.uniform(*CROP_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            size = {"height": crop_height, "width": crop_width}
            return Crop(top=top, left=left, **size, resolution=resolution, scaling=scaling)
    return _center_crop(height, width, resolution, scaling)
