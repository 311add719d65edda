"""Augmentations of colour and geometry, drawn once for all frames of a sample.

AdaTAD and AIM were trained with imgaug 0.4.0 and OpenMMLab's pipelines; tests/unit/data/imgaug.npz holds imgaug's
results on a picture. What is drawn is a list of steps, each a function of frames (n, 3, S, S) uint8 with its drawn
arguments, on whatever device they are; steps can be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from adatad_ds.data.augmentation import colour
from adatad_ds.data.augmentation.vectors import filled
from adatad_ds.data.augmentation.warping import GREY, inverse_affine, warp, warp_as_pillow
from adatad_ds.data.decoding.scaling import scale

JITTER_FACTOR = (0.5, 1.5)  # brightness, contrast, saturation
JITTER_HUE = (-0.1 * 255 / 180, 0.1 * 255 / 180)  # turns: the published 0.1 counts 255 of OpenCV's 180 hues

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
Span = tuple[int, int]


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
    signs = rng.choice([-1.0, 1.0], size=5).tolist()
    enhanced = 1.8 * LEVEL + 0.1  # 1: unchanged
    shift, shear = 0.2 * LEVEL * side, 17.19 * LEVEL
    return [
        partial(warp, matrix=inverse_affine(shear=(signs[0] * shear, 0.0))),
        partial(warp, matrix=inverse_affine(shear=(0.0, signs[1] * shear))),
        partial(warp, matrix=inverse_affine(translate=(signs[2] * shift, 0.0))),
        partial(warp, matrix=inverse_affine(translate=(0.0, signs[3] * shift))),
        partial(warp, matrix=inverse_affine(angle=signs[4] * 30 * LEVEL)),
        partial(colour.posterize, bits=max(1, int(4 * LEVEL))),
        partial(colour.solarize, threshold=256 * LEVEL),
        partial(colour.saturate, factor=enhanced),
        partial(colour.contrast, factor=enhanced),
        partial(colour.brighten, factor=enhanced),
        partial(_sharpen, factor=enhanced),
        colour.autocontrast,
        colour.equalize,
        colour.invert,
        _cut_out(rng.random(2).tolist(), share=0.2 * LEVEL, side=side),
    ]


def _operations_n4_m7(side: int, rng: np.random.Generator) -> list[Step]:
    signs = rng.choice([-1.0, 1.0], size=9)
    color, contrast, brightness, sharpness = (1 + signs[:4] * 0.9 * M / M_SCALE).tolist()  # 1: unchanged
    shear = (signs[4:6] * math.degrees(0.3) * M / M_SCALE).tolist()
    shift = (signs[6:8] * 0.33 * M / M_SCALE * side).tolist()
    corner = (-side / 2, -side / 2)
    return [
        _unchanged,
        colour.autocontrast,
        colour.equalize,
        colour.invert,
        partial(warp_as_pillow, matrix=inverse_affine(angle=float(signs[8]) * 30 * M / M_SCALE)),
        partial(colour.posterize, bits=8 - int(6 * M / M_SCALE)),
        partial(colour.solarize, threshold=256 - int(256 * M / M_SCALE)),
        partial(colour.saturate, factor=color),
        partial(colour.contrast, factor=contrast),
        partial(colour.brighten, factor=brightness),
        partial(_sharpen, factor=sharpness),
        partial(warp_as_pillow, matrix=inverse_affine(shear=(shear[0], 0.0), center=corner)),
        partial(warp_as_pillow, matrix=inverse_affine(shear=(0.0, shear[1]), center=corner)),
        partial(warp_as_pillow, matrix=inverse_affine(translate=(shift[0], 0.0), center=corner)),
        partial(warp_as_pillow, matrix=inverse_affine(translate=(0.0, shift[1]), center=corner)),
        _cut_out(rng.random(2).tolist(), share=20 / 32 * M / M_SCALE, side=side),
        _blur,
        partial(_sharpen, factor=0.0),
    ]


def _unchanged(frames: Tensor) -> Tensor:
    return frames


def _crop_edges(side: int, rng: np.random.Generator) -> Step:
    """Crop up to M of 224 pixels from each edge, and resize to the old size."""
    top, right, bottom, left = (round(cut / M_CROP_SIDE * side) for cut in rng.uniform(0, M, size=4))
    return partial(_crop_and_resize, top=top, bottom=side - bottom, left=left, right=side - right, side=side)


def _crop_and_resize(frames: Tensor, *, top: int, bottom: int, left: int, right: int, side: int) -> Tensor:
    return scale(frames[..., top:bottom, left:right], height=side, width=side, scaling="bilinear")


def _sharpen(frames: Tensor, factor: float) -> Tensor:
    """Extrapolate from the 3 x 3 smoothed frame, borders unchanged, as torchvision does."""
    exact = frames.to(torch.int16)
    rows = exact[..., :-2, :] + exact[..., 1:-1, :]
    rows.add_(exact[..., 2:, :])
    inner = exact[..., 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4).float().div_(13).round_()
    out = frames.clone()
    out[..., 1:-1, 1:-1] = colour.to_bytes(smooth.lerp_(inner.float(), factor))
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

    return partial(_paint, rows=(top, bottom), columns=(left, right), levels=(GREY, GREY, GREY))


def _paint(frames: Tensor, *, rows: Span, columns: Span, levels: Sequence[int]) -> Tensor:
    frames = frames.clone()
    for plane, level in zip(frames.unbind(1), levels, strict=True):
        plane[:, slice(*rows), slice(*columns)].fill_(level)
    return frames


def color_jitter(rng: np.random.Generator) -> list[Step]:
    """Brightness, contrast, saturation and hue in random order, as in mmaction: clipped to 0..255 only at the end.

    # differs: the order is drawn per sample; there, once per process.
    """
    brightness, contrast, saturation = rng.uniform(*JITTER_FACTOR, size=3).tolist()
    turns = float(rng.uniform(*JITTER_HUE))
    order = rng.permutation(4).tolist()
    return [
        partial(
            colour.jitter, order=order, brightness=brightness, contrast=contrast, saturation=saturation, turns=turns
        )
    ]


def lighting(rng: np.random.Generator) -> Step:
    """Shift all colours along the principal components of ImageNet's colours: mmaction's ColorJitter with its defaults.

    # differs: here frames are rounded and clipped to 0..255; the authors continue with the unrounded values.
    """
    along = rng.normal(0, LIGHTING_STD, size=3) * LIGHTING_VALUES
    return partial(_shift, levels=(np.array(LIGHTING_VECTORS) @ along).tolist())


def _shift(frames: Tensor, *, levels: Sequence[float]) -> Tensor:
    shift = filled(levels, device=frames.device)[:, None, None]
    return colour.to_bytes(frames.float().add_(shift).round_())


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
            rows, columns = (top, top + height), (left, left + width)
            return [partial(_paint, rows=rows, columns=columns, levels=ERASING_COLOUR)]
    return []
