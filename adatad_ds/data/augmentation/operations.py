"""Augmentations of colour and geometry, drawn once for all frames of a sample.

AdaTAD and AIM were trained with imgaug 0.4.0 and OpenMMLab's pipelines; tests/unit/data/imgaug.npz holds imgaug's
results on a picture. Frames are (F, 3, S, S) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2 import functional as F

from adatad_ds.data.decoding.scaling import scale

JITTER_FACTOR = (0.5, 1.5)  # brightness, contrast, saturation
JITTER_HUE = (-0.1 * 255 / 180, 0.1 * 255 / 180)  # turns: the published 0.1 counts 255 of OpenCV's 180 hues
GREY = [128.0, 128.0, 128.0]

OPERATIONS = 2  # of RandAugment in mmaction's "default"
LEVEL = 0.9
N, M = 4, 7  # operations and magnitude of RandAugment in imgaug
M_SCALE = 30  # magnitude of full strength
M_CROP_SIDE = 224  # frame side that the crop's pixels refer to

LIGHTING_STD = 0.1
LIGHTING_VALUES = (55.46, 4.794, 1.148)  # of the covariance of ImageNet's colours (Krizhevsky et al., 2012), 0..255
LIGHTING_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # in columns

ERASING_PROBABILITY = 0.25
ERASING_AREA = (0.02, 1 / 3)  # share of the frame
ERASING_ASPECT = (0.3, 1 / 0.3)  # height to width
ERASING_TRIES = 10
ERASING_COLOUR = (123, 117, 104)  # CLIP's mean, as the authors erase normalised frames with zeros

Step = Callable[[Tensor], Tensor]


def rand_augment(side: int, rng: np.random.Generator) -> list[Step]:
    """Two of fifteen operations near full strength: mmaction's "default" ImgAug, used by AdaTAD."""
    operations = _operations(side, rng)
    chosen = rng.choice(len(operations), size=OPERATIONS, replace=False)
    return [operations[index] for index in sorted(chosen)]


def rand_augment_n4_m7(side: int, rng: np.random.Generator) -> list[Step]:
    """A small crop, then four of eighteen weaker operations in random order: imgaug's, used by AIM on
    Something-Something.

    imgaug's also flips half of the samples; here that is "flip".
    """
    operations = _operations_n4_m7(side, rng)
    chosen = rng.choice(len(operations), size=N, replace=False)
    return [_crop_edges(side, rng), *(operations[index] for index in chosen)]


def _operations(side: int, rng: np.random.Generator) -> list[Step]:
    """The fifteen operations of `rand_augment`.

    # differs: the authors draw the five signs once per process; here each sample draws them.
    """
    signs = rng.choice([-1.0, 1.0], size=5)
    enhanced = 1.8 * LEVEL + 0.1  # 1: unchanged
    shift, shear = 0.2 * LEVEL * side, 17.19 * LEVEL
    return [
        _warp(shear=(signs[0] * shear, 0.0)),
        _warp(shear=(0.0, signs[1] * shear)),
        _warp(translate=(signs[2] * shift, 0.0)),
        _warp(translate=(0.0, signs[3] * shift)),
        _warp(angle=signs[4] * 30 * LEVEL),
        lambda frames: F.posterize(frames, bits=max(1, int(4 * LEVEL))),
        lambda frames: F.solarize(frames, threshold=256 * LEVEL),
        lambda frames: F.adjust_saturation(frames, enhanced),
        lambda frames: F.adjust_contrast(frames, enhanced),
        lambda frames: F.adjust_brightness(frames, enhanced),
        lambda frames: _sharpen(frames, enhanced),
        F.autocontrast,
        F.equalize,
        F.invert,
        _cut_out(rng.random(2).tolist(), share=0.2 * LEVEL, side=side),
    ]


def _operations_n4_m7(side: int, rng: np.random.Generator) -> list[Step]:
    signs = rng.choice([-1.0, 1.0], size=9)
    color, contrast, brightness, sharpness = (1 + signs[:4] * 0.9 * M / M_SCALE).tolist()  # 1: unchanged
    shear = signs[4:6] * math.degrees(0.3) * M / M_SCALE
    shift = signs[6:8] * 0.33 * M / M_SCALE * side
    corner = [0.0, 0.0]
    return [
        lambda frames: frames,
        F.autocontrast,
        F.equalize,
        F.invert,
        _warp(angle=signs[8] * 30 * M / M_SCALE, center=None, as_pillow=True),
        lambda frames: F.posterize(frames, bits=8 - int(6 * M / M_SCALE)),
        lambda frames: F.solarize(frames, threshold=256 - int(256 * M / M_SCALE)),
        lambda frames: F.adjust_saturation(frames, color),
        lambda frames: F.adjust_contrast(frames, contrast),
        lambda frames: F.adjust_brightness(frames, brightness),
        lambda frames: _sharpen(frames, sharpness),
        _warp(shear=(shear[0], 0.0), center=corner, as_pillow=True),
        _warp(shear=(0.0, shear[1]), center=corner, as_pillow=True),
        _warp(translate=(shift[0], 0.0), center=corner, as_pillow=True),
        _warp(translate=(0.0, shift[1]), center=corner, as_pillow=True),
        _cut_out(rng.random(2).tolist(), share=20 / 32 * M / M_SCALE, side=side),
        _blur,
        lambda frames: _sharpen(frames, 0.0),
    ]


def _warp(
    *,
    angle: float = 0.0,
    translate: Sequence[float] = (0.0, 0.0),
    shear: Sequence[float] = (0.0, 0.0),
    center: list[float] | None = None,
    as_pillow: bool = False,
) -> Step:
    """An affine warp about a point (x, y), by default the centre; angles in degrees, `translate` in pixels.

    As imgaug does with OpenCV: bilinear, black outside; `as_pillow`: nearest pixels, grey outside.
    """
    return lambda frames: F.affine(
        frames,
        angle=float(angle),
        translate=[float(pixels) for pixels in translate],
        scale=1.0,
        shear=[float(degrees) for degrees in shear],
        interpolation=F.InterpolationMode.NEAREST if as_pillow else F.InterpolationMode.BILINEAR,
        fill=GREY if as_pillow else None,
        center=center,
    )


def _crop_edges(side: int, rng: np.random.Generator) -> Step:
    """Crop up to M of 224 pixels from each edge, and resize to the old size."""
    top, right, bottom, left = (round(cut / M_CROP_SIDE * side) for cut in rng.uniform(0, M, size=4))

    def step(frames: Tensor) -> Tensor:
        frames = frames[..., top : side - bottom, left : side - right]
        return scale(frames, height=side, width=side, scaling="bilinear")

    return step


def _sharpen(frames: Tensor, factor: float) -> Tensor:
    """Extrapolate from the 3 x 3 smoothed frame, borders unchanged; like torchvision's, but 30 times faster."""
    exact = frames.to(torch.int16)
    rows = exact[..., :-2, :] + exact[..., 1:-1, :] + exact[..., 2:, :]
    inner = exact[..., 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).float().div_(13).round_()
    out = frames.clone()
    out[..., 1:-1, 1:-1] = smooth.lerp_(inner.float(), factor).clamp_(0, 255).to(torch.uint8)
    return out


def _blur(frames: Tensor) -> Tensor:
    """Mean of the 16 pixels around the 3 x 3 neighbourhood, borders unchanged: Pillow's BLUR."""
    exact = frames.float()
    ring = 25 * avg_pool2d(exact, 5, stride=1) - 9 * avg_pool2d(exact, 3, stride=1)[..., 1:-1, 1:-1]
    out = frames.clone()
    out[..., 2:-2, 2:-2] = (ring / 16 + 0.5).to(torch.uint8)
    return out


def _cut_out(center: Sequence[float], *, share: float, side: int) -> Step:
    """Paint a grey square of `share` of the side around a relative point (y, x), clipped to the frame."""
    (top, bottom), (left, right) = (
        (int(max(0, (place - share / 2) * side)), int(max(0, (place + share / 2) * side))) for place in center
    )

    def step(frames: Tensor) -> Tensor:
        frames = frames.clone()
        frames[..., top:bottom, left:right] = int(GREY[0])
        return frames

    return step


def color_jitter(rng: np.random.Generator) -> list[Step]:
    """Brightness, contrast, saturation and hue in random order, as in mmaction: clipped to 0..255 only at the end.

    # differs: the order is drawn per sample; there, once per process.
    """
    brightness, contrast, saturation = rng.uniform(*JITTER_FACTOR, size=3).tolist()
    hue = float(rng.uniform(*JITTER_HUE))
    operations: list[Step] = [
        lambda pixels: pixels * brightness,
        lambda pixels: torch.lerp(_grey(pixels).mean(dim=(-2, -1), keepdim=True), pixels, contrast),
        lambda pixels: torch.lerp(_grey(pixels), pixels, saturation),
        lambda pixels: F.adjust_hue(pixels.clamp(0, 255).to(torch.uint8), hue).float(),  # on bytes, as there
    ]
    order = rng.permutation(len(operations))

    def step(frames: Tensor) -> Tensor:
        pixels = frames.float()
        for index in order:
            pixels = operations[index](pixels)
        return pixels.clamp_(0, 255).to(torch.uint8)

    return [step]


def _grey(pixels: Tensor) -> Tensor:
    """Luma (n, 1, h, w) of RGB (n, 3, h, w)."""
    red, green, blue = pixels.unbind(dim=-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)


def lighting(rng: np.random.Generator) -> Step:
    """Shift all colours along the principal components of ImageNet's colours: mmaction's ColorJitter with its defaults.

    # differs: here frames are rounded and clipped to 0..255; the authors continue with the unrounded values.
    """
    along = rng.normal(0, LIGHTING_STD, size=3) * LIGHTING_VALUES
    shift = torch.tensor(np.array(LIGHTING_VECTORS) @ along, dtype=torch.float32)[:, None, None]
    return lambda frames: (frames + shift).round_().clamp_(0, 255).to(torch.uint8)


def random_erasing(side: int, rng: np.random.Generator) -> list[Step]:
    """Erase a rectangle with the mean colour in a quarter of the samples (Zhong et al., 2020; timm's version)."""
    if rng.random() >= ERASING_PROBABILITY:
        return []
    for _ in range(ERASING_TRIES):
        area = rng.uniform(*ERASING_AREA) * side**2
        aspect = math.exp(rng.uniform(*np.log(ERASING_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < side and width < side:
            top, left = (int(rng.integers(side - extent, endpoint=True)) for extent in (height, width))
            return [_erase(top, left, height, width)]
    return []


def _erase(top: int, left: int, height: int, width: int) -> Step:
    def step(frames: Tensor) -> Tensor:
        frames = frames.clone()
        colour = torch.tensor(ERASING_COLOUR, dtype=torch.uint8)
        frames[..., top : top + height, left : left + width] = colour[:, None, None]
        return frames

    return step
