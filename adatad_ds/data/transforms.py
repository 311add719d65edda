"""From decoded frames to the square frames that the backbone sees; one draw for all frames of a sample.

F frames, h x w pixels before and S x S after; all frames uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adatad_ds.config import Augmentation

CHUNK_FRAMES = 32  # frames that pass through all steps at once: bounds the memory of their float copies

CROP_AREA = (0.08, 1.0)  # share of the frame
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
JITTER_FACTOR = (0.5, 1.5)  # brightness, contrast, saturation
JITTER_HUE = (-0.1, 0.1)  # turns
RAND_AUGMENT_OPERATIONS = 2
RAND_AUGMENT_LEVEL = 0.9
GREY = [128.0, 128.0, 128.0]

Step = Callable[[Tensor], Tensor]  # (n, 3, h, w) uint8 to (n, 3, h', w') uint8


def augment(
    frames: Tensor | NDArray[np.uint8], *, resolution: int, kinds: Collection[Augmentation], rng: np.random.Generator
) -> Tensor:
    """The published training augmentation: crop, flip, RandAugment, colour jitter, each drawn once for all frames.

    Args:
        frames: (F, h, w, 3).
        resolution: S.
        kinds: which of the four to apply; without the random crop, the centre is cropped.
        rng: the only source of randomness.

    Returns:
        (F, S, S, 3) uint8.
    """
    height, width = frames.shape[1:3]
    if "random_resized_crop" in kinds:
        steps = [_random_resized_crop(height, width, resolution, rng)]
    else:
        steps = [_center_crop(height, width, resolution)]
    if "flip" in kinds and rng.random() < FLIP_PROBABILITY:
        steps.append(F.horizontal_flip)
    if "rand_augment" in kinds:
        steps += _rand_augment(resolution, rng)
    if "color_jitter" in kinds:
        steps += _color_jitter(rng)
    return _apply(frames, steps, resolution)


def center_crop(frames: Tensor | NDArray[np.uint8], *, resolution: int) -> Tensor:
    """The largest centred square of frames (F, h, w, 3), scaled to (F, S, S, 3) where it is not S already."""
    height, width = frames.shape[1:3]
    return _apply(frames, [_center_crop(height, width, resolution)], resolution)


def square_crops(frames: Tensor | NDArray[np.uint8], *, resolution: int, crops: Literal[1, 3]) -> Tensor:
    """The largest squares of frames (F, h, w, 3) along their longer side, scaled: (crops, F, S, S, 3).

    One crop is the centre; three are the left (or top), the centre and the right (or bottom).
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    views = []
    for place in {1: (1,), 3: (0, 1, 2)}[crops]:  # halves of what is left over
        step = _crop_and_resize((height - side) * place // 2, (width - side) * place // 2, side, side, resolution)
        views.append(_apply(frames, [step], resolution))
    return torch.stack(views)


def _apply(frames: Tensor | NDArray[np.uint8], steps: list[Step], resolution: int) -> Tensor:
    source = torch.as_tensor(frames)
    out = torch.empty((len(source), resolution, resolution, 3), dtype=torch.uint8)
    for begin in range(0, len(source), CHUNK_FRAMES):
        chunk = source[begin : begin + CHUNK_FRAMES].permute(0, 3, 1, 2)  # (n, 3, h, w)
        for step in steps:
            chunk = step(chunk)
        out[begin : begin + CHUNK_FRAMES] = chunk.permute(0, 2, 3, 1)
    return out


def _crop_and_resize(top: int, left: int, height: int, width: int, resolution: int) -> Step:
    def step(frames: Tensor) -> Tensor:
        frames = frames[..., top : top + height, left : left + width]
        return frames if (height, width) == (resolution,) * 2 else F.resize(frames, [resolution] * 2, antialias=True)

    return step


def _center_crop(height: int, width: int, resolution: int) -> Step:
    side = min(height, width)
    return _crop_and_resize((height - side) // 2, (width - side) // 2, side, side, resolution)


def _random_resized_crop(height: int, width: int, resolution: int, rng: np.random.Generator) -> Step:
    for _ in range(CROP_TRIES):
        area = rng.uniform(*CROP_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            return _crop_and_resize(top, left, crop_height, crop_width, resolution)
    return _center_crop(height, width, resolution)


def _rand_augment(side: int, rng: np.random.Generator) -> list[Step]:
    """Two of fifteen operations near full strength: mmaction's "default" ImgAug, which AdaTAD trained with."""
    operations = _rand_augment_operations(side, rng)
    chosen = rng.choice(len(operations), size=RAND_AUGMENT_OPERATIONS, replace=False)
    return [operations[index] for index in sorted(chosen)]


def _rand_augment_operations(side: int, rng: np.random.Generator) -> list[Step]:
    level = RAND_AUGMENT_LEVEL
    signs = rng.choice([-1.0, 1.0], size=5)
    corner = rng.integers(side, size=2)  # of the square that is cut out
    enhanced = 1.8 * level + 0.1  # 1 leaves the frame as it is
    return [
        _affine(shear=[signs[0] * 17.19 * level, 0.0]),
        _affine(shear=[0.0, signs[1] * 17.19 * level]),
        _affine(translate=[int(signs[2] * 0.2 * level * side), 0]),
        _affine(translate=[0, int(signs[3] * 0.2 * level * side)]),
        _affine(angle=signs[4] * 30 * level),
        lambda frames: F.posterize(frames, bits=max(1, int(4 * level))),
        lambda frames: F.solarize(frames, threshold=256 * level),
        lambda frames: F.adjust_saturation(frames, enhanced),
        lambda frames: F.adjust_contrast(frames, enhanced),
        lambda frames: F.adjust_brightness(frames, enhanced),
        lambda frames: _sharpen(frames, enhanced),
        F.autocontrast,
        F.equalize,
        F.invert,
        _cut_out(*corner.tolist(), side=round(0.2 * level * side)),
    ]


def _affine(*, angle: float = 0.0, translate: Sequence[int] = (0, 0), shear: Sequence[float] = (0.0, 0.0)) -> Step:
    def step(frames: Tensor) -> Tensor:
        return F.affine(
            frames,
            angle=float(angle),
            translate=[float(pixels) for pixels in translate],
            scale=1.0,
            shear=[float(degrees) for degrees in shear],
            interpolation=F.InterpolationMode.BILINEAR,
            fill=GREY,
        )

    return step


def _sharpen(frames: Tensor, factor: float) -> Tensor:
    """Away from the 3 x 3 smoothed frame, borders kept; as torchvision's, whose convolution is 30 times slower."""
    exact = frames.to(torch.int16)
    rows = exact[..., :-2, :] + exact[..., 1:-1, :] + exact[..., 2:, :]
    inner = exact[..., 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).float().div_(13).round_()
    out = frames.clone()
    out[..., 1:-1, 1:-1] = smooth.lerp_(inner.float(), factor).clamp_(0, 255).to(torch.uint8)
    return out


def _cut_out(top: int, left: int, *, side: int) -> Step:
    def step(frames: Tensor) -> Tensor:
        frames = frames.clone()
        frames[..., top : top + side, left : left + side] = int(GREY[0])
        return frames

    return step


def _color_jitter(rng: np.random.Generator) -> list[Step]:
    brightness, contrast, saturation = rng.uniform(*JITTER_FACTOR, size=3).tolist()
    hue = float(rng.uniform(*JITTER_HUE))
    steps: list[Step] = [
        lambda frames: F.adjust_brightness(frames, brightness),
        lambda frames: F.adjust_contrast(frames, contrast),
        lambda frames: F.adjust_saturation(frames, saturation),
        lambda frames: F.adjust_hue(frames, hue),
    ]
    return [steps[index] for index in rng.permutation(len(steps))]
