"""Transform decoded frames to the backbone's square input frames, with one random draw for all frames of a sample.

F frames, h x w pixels before and S x S after; all frames uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adatad_ds.config.schema import Augmentation, Scaling
from adatad_ds.data.augmentation import operations
from adatad_ds.data.augmentation.colour import by_colour, by_pixel
from adatad_ds.data.decoding.scaling import scale

CHUNK_FRAMES = 4  # processed at once: their float copies fit into a core's cache

DEVICE_CHUNK_FRAMES = 64  # enough to keep a GPU busy; their float copies take some 100 MB at 224 px

CROP_AREA = (0.08, 1.0)  # share of the frame
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5

Step = Callable[[Tensor], Tensor]  # (n, 3, h, w) uint8 to (n, 3, h', w') uint8


def augment(
    frames: Tensor | NDArray[np.uint8],
    *,
    resolution: int,
    scaling: Scaling,
    kinds: Collection[Augmentation],
    rng: np.random.Generator,
) -> Tensor:
    """Training augmentation, each kind drawn once for all frames of the sample; the order is fixed.

    Crop, flip, RandAugment (AdaTAD's, or AIM's for Something-Something with 4 operations of magnitude 7), colour jitter
    (AdaTAD), lighting (AIM's L/14 on Kinetics-400), random erasing (AIM, Something-Something).

    Args:
        frames: (F, h, w, 3).
        resolution: S.
        scaling: interpolation of crops.
        kinds: augmentations to apply; without the random crop, the centre is cropped.
        rng: the only source of randomness.

    Returns:
        (F, S, S, 3) uint8.
    """
    crop = _draw_crop(frames, resolution=resolution, scaling=scaling, kinds=kinds, rng=rng)
    return _apply(frames, [crop, *draw_steps(resolution=resolution, kinds=kinds, rng=rng)], resolution)


def crop_and_draw(
    frames: Tensor | NDArray[np.uint8],
    *,
    resolution: int,
    scaling: Scaling,
    kinds: Collection[Augmentation],
    rng: np.random.Generator,
) -> tuple[Tensor, tuple[Step, ...]]:
    """The first part of `augment`: cropped frames (F, S, S, 3), and what `apply_steps` has still to do."""
    crop = _draw_crop(frames, resolution=resolution, scaling=scaling, kinds=kinds, rng=rng)
    return _apply(frames, [crop], resolution), draw_steps(resolution=resolution, kinds=kinds, rng=rng)


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
    frames: Tensor | NDArray[np.uint8],
    *,
    resolution: int,
    scaling: Scaling,
    kinds: Collection[Augmentation],
    rng: np.random.Generator,
) -> Step:
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


def center_crop(frames: Tensor | NDArray[np.uint8], *, resolution: int, scaling: Scaling) -> Tensor:
    """Crop the largest centred square of frames (F, h, w, 3) and scale it to (F, S, S, 3)."""
    height, width = frames.shape[1:3]
    return _apply(frames, [_center_crop(height, width, resolution, scaling)], resolution)


def square_crops(
    frames: Tensor | NDArray[np.uint8], *, resolution: int, scaling: Scaling, crops: Literal[1, 3]
) -> Tensor:
    """Crop the largest squares along the longer side of frames (F, h, w, 3) and scale them: (crops, F, S, S, 3).

    One crop is the centre; three are left (or top), centre and right (or bottom), in equal steps, as mmaction's
    ThreeCrop: if an odd number of pixels is left over, the last one is in no crop.
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    views = []
    for place in {1: (1,), 3: (0, 1, 2)}[crops]:  # in halves of the remaining pixels
        step = _crop_and_resize(
            (height - side) // 2 * place, (width - side) // 2 * place, side, side, resolution, scaling
        )
        views.append(_apply(frames, [step], resolution))
    return torch.stack(views)


def _apply(frames: Tensor | NDArray[np.uint8], steps: list[Step], resolution: int) -> Tensor:
    source = torch.as_tensor(frames)
    out = torch.empty((len(source), resolution, resolution, 3), dtype=torch.uint8)
    for begin in range(0, len(source), CHUNK_FRAMES):
        chunk = source[begin : begin + CHUNK_FRAMES].permute(0, 3, 1, 2)  # (n, 3, h, w)
        for step in steps:
            chunk = step(chunk)
        by_pixel(chunk, out[begin : begin + CHUNK_FRAMES])
    return out


def _crop_and_resize(top: int, left: int, height: int, width: int, resolution: int, scaling: Scaling) -> Step:
    return partial(
        _cropped, rows=(top, top + height), columns=(left, left + width), resolution=resolution, scaling=scaling
    )


def _cropped(
    frames: Tensor, *, rows: tuple[int, int], columns: tuple[int, int], resolution: int, scaling: Scaling
) -> Tensor:
    cut = frames[..., slice(*rows), slice(*columns)]
    return scale(cut, height=resolution, width=resolution, scaling=scaling)


def _center_crop(height: int, width: int, resolution: int, scaling: Scaling) -> Step:
    side = min(height, width)
    return _crop_and_resize((height - side) // 2, (width - side) // 2, side, side, resolution, scaling)


def _random_resized_crop(height: int, width: int, resolution: int, scaling: Scaling, rng: np.random.Generator) -> Step:
    for _ in range(CROP_TRIES):
        area = rng.uniform(*CROP_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            return _crop_and_resize(top, left, crop_height, crop_width, resolution, scaling)
    return _center_crop(height, width, resolution, scaling)
