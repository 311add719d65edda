"""Augmentations of colour and geometry by torchvision; one draw for all frames of a sample.

Frames are (F, 3, S, S) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

JITTER_FACTOR = (0.5, 1.5)  # brightness, contrast, saturation
JITTER_HUE = (-0.1 * 255 / 180, 0.1 * 255 / 180)  # turns: the published 0.1 counts 255 of OpenCV's 180 hues
RAND_AUGMENT_OPERATIONS = 2
RAND_AUGMENT_LEVEL = 0.9
GREY = [128.0, 128.0, 128.0]

Step = Callable[[Tensor], Tensor]


def rand_augment(side: int, rng: np.random.Generator) -> list[Step]:
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


def color_jitter(rng: np.random.Generator) -> list[Step]:
    """Brightness, contrast, saturation and hue in random order, as mmaction has it: cut to 0..255 only at the end.

    # differs: the order is drawn for each sample; there, once a process.
    """
    brightness, contrast, saturation = rng.uniform(*JITTER_FACTOR, size=3).tolist()
    hue = float(rng.uniform(*JITTER_HUE))
    operations: list[Step] = [
        lambda pixels: pixels * brightness,
        lambda pixels: torch.lerp(_grey(pixels).mean(dim=(-2, -1), keepdim=True), pixels, contrast),
        lambda pixels: torch.lerp(_grey(pixels), pixels, saturation),
        lambda pixels: F.adjust_hue(pixels.clamp(0, 255).to(torch.uint8), hue).float(),  # there, too, on bytes
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
