"""Colours of frames: by a table of 256 levels where a level's result depends on nothing else, else colour by colour.

The same functions run in the workers and on a GPU. Frames are (n, 3, h, w) uint8, in any layout of memory; fast where
each colour of them is contiguous, as `by_colour` lays them out. n frames, h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVELS = 256
HUE_ROUNDING = 255.999 / 255  # of torchvision: nearly down
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue


def by_colour(frames: Tensor) -> Tensor:
    """The same frames (n, 3, h, w), with the pixels of each colour contiguous over all frames."""
    pixels = frames.permute(0, 2, 3, 1)
    if frames.device.type != "cpu" or not pixels.is_contiguous():
        return frames.transpose(0, 1).contiguous().transpose(0, 1)
    import cv2  # several times as fast as PyTorch's copy

    count, height, width = pixels.shape[:3]
    planes = torch.empty((3, count * height, width), dtype=torch.uint8)
    cv2.split(pixels.reshape(-1, width, 3).numpy(), list(planes.numpy()))
    return planes.view(3, count, height, width).transpose(0, 1)


def by_pixel(frames: Tensor, out: Tensor) -> None:
    """Copy frames (n, 3, h, w), in any layout of memory, to (n, h, w, 3)."""
    planes = frames.transpose(0, 1)
    if frames.device.type != "cpu" or not planes.is_contiguous() or not out.is_contiguous():
        out.copy_(frames.permute(0, 2, 3, 1))
        return
    import cv2  # as above

    width = frames.shape[3]
    cv2.merge(list(planes.reshape(3, -1, width).numpy()), out.view(-1, width, 3).numpy())


def to_bytes(pixels: Tensor) -> Tensor:
    """Clip floating pixels to 0..255, in place, and drop their fractions."""
    return pixels.clamp_(0, LEVELS - 1).to(torch.int16).to(torch.uint8)  # directly, the CPU converts one by one


def look_up(frames: Tensor, tables: Tensor) -> Tensor:
    """Replace each level by its entry.

    Args:
        frames: (n, 3, h, w) uint8.
        tables: (n or 1, 3 or 1, 256) uint8, of each frame and colour.
    """
    tables = tables.expand(*frames.shape[:2], LEVELS)
    if frames.device.type != "cpu":
        return tables.gather(2, frames.flatten(2).long()).view(frames.shape)
    out = torch.empty_like(frames)
    source, target, entries = frames.numpy(), out.numpy(), tables.numpy()
    for place in np.ndindex(*frames.shape[:2]):
        # no level is out of range; "clip" only spares a copy
        np.take(entries[place], source[place], out=target[place], mode="clip")
    return out


def posterize(frames: Tensor, *, bits: int) -> Tensor:
    """Keep the highest `bits` of each level."""
    return frames & (LEVELS - (1 << (8 - bits)))


def solarize(frames: Tensor, *, threshold: float) -> Tensor:
    """Invert levels from `threshold` on."""
    bright = frames >= math.ceil(threshold)
    return frames ^ bright.to(torch.uint8).mul_(LEVELS - 1)


def invert(frames: Tensor) -> Tensor:
    """255 minus each level."""
    return ~frames


def brighten(frames: Tensor, *, factor: float) -> Tensor:
    """Multiply all levels."""
    return to_bytes(frames.float().mul_(factor))


def contrast(frames: Tensor, *, factor: float) -> Tensor:
    """Extrapolate from each frame's mean luma, whose pixels are whole numbers as in torchvision."""
    pixels = frames.float()
    means = luma(pixels).floor_().mean((1, 2))
    return to_bytes(pixels.mul_(factor).add_(means[:, None, None, None], alpha=1 - factor))


def saturate(frames: Tensor, *, factor: float) -> Tensor:
    """Extrapolate from the luma of each pixel, a whole number as in torchvision."""
    pixels = frames.float()
    grey = luma(pixels).floor_()
    return to_bytes(pixels.mul_(factor).add_(grey[:, None], alpha=1 - factor))


def autocontrast(frames: Tensor) -> Tensor:
    """Stretch each colour of each frame to 0..255."""
    darkest, brightest = (level(frames, dim=(2, 3))[..., None].float() for level in (torch.amin, torch.amax))
    flat = darkest == brightest  # is not stretched
    scale = (brightest - darkest).mul_(1 / (LEVELS - 1)).masked_fill_(flat, 1.0)
    return look_up(frames, to_bytes((_levels(frames) - darkest.masked_fill_(flat, 0.0)).div_(scale)))


def equalize(frames: Tensor) -> Tensor:
    """Spread the levels of each colour of each frame evenly, by Pillow's table."""
    count, pixels = frames.shape[0] * 3, frames.shape[2] * frames.shape[3]
    first = torch.arange(0, count * LEVELS, LEVELS, dtype=torch.int32, device=frames.device)
    numbered = frames.flatten(2).int().flatten(0, 1).add_(first[:, None])
    counts = torch.bincount(numbered.flatten(), minlength=count * LEVELS).view(count, LEVELS)
    below = counts.cumsum(1)
    brightest = counts.gather(1, below.argmax(1, keepdim=True))
    step = (pixels - brightest) // (LEVELS - 1)
    entries = ((below - counts + step // 2) // step.clamp(min=1)).clamp_(0, LEVELS - 1)
    entries[:, :1].zero_()
    entries = torch.where(step > 0, entries, torch.arange(LEVELS, device=frames.device))  # of few levels: unchanged
    return look_up(frames, entries.to(torch.uint8).view(-1, 3, LEVELS))


def luma(pixels: Tensor) -> Tensor:
    """Luma (n, h, w) of floating pixels (n, 3, h, w), not rounded."""
    red, green, blue = pixels.unbind(1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def turn_hue(frames: Tensor, *, turns: float) -> Tensor:
    """Turn the hue by at most a third of a turn; value and saturation stay.

    Then a pixel's highest and lowest levels stay, too, and each colour is the lowest level plus a share of the range
    between them: all of it up to a sixth of a turn from the colour's own hue, nothing from a third on. Levels are
    rounded as in torchvision.
    """
    colours = frames.transpose(0, 1).float().mul_(HUE_ROUNDING)  # (3, n, h, w)
    high, low = colours.amax(0), colours.amin(0)
    range_ = high - low
    hue = _hue(*colours, high=high, range_=range_).add_(range_, alpha=6 * turns)
    own = torch.arange(0, 6, 2, dtype=torch.float32, device=frames.device).view(3, 1, 1, 1)
    levels = torch.addcmul(hue, range_, own, value=-1).abs_()  # distance from each colour's own hue
    levels.sub_(range_, alpha=3.0).abs_().add_(low - range_)  # whichever way around the circle is shorter
    levels = torch.clamp(levels, low, high, out=levels)
    return levels.to(torch.int16).to(torch.uint8).transpose(0, 1)


def _hue(red: Tensor, green: Tensor, blue: Tensor, *, high: Tensor, range_: Tensor) -> Tensor:
    """Hue (n, h, w) float32, in sixths of a turn from -1 to 5, times the range of levels; overwrites the colours.

    It is counted from red, green or blue, whichever is `high`, the first of them where several are.
    """
    is_red, is_green = (red == high).float(), (green == high).float()
    is_green.addcmul_(is_green, is_red, value=-1)
    from_red = green - blue
    from_green = blue.sub_(red).add_(range_, alpha=2.0)
    from_blue = red.sub_(green).add_(range_, alpha=4.0)
    return from_red.sub_(from_blue).mul_(is_red).add_(from_green.sub_(from_blue).mul_(is_green)).add_(from_blue)


def jitter(
    frames: Tensor, *, order: Sequence[int], brightness: float, contrast: float, saturation: float, turns: float
) -> Tensor:
    """Brightness, contrast, saturation and hue, numbered from 0, in any order; bytes only before hue and at the end.

    What comes before the hue, and what comes after it, is one linear function of the pixel, its luma and its frame's
    mean luma.
    """
    factors = (brightness, contrast, saturation)
    place = order.index(3)
    frames = _linear(frames, [(kind, factors[kind]) for kind in order[:place]])
    frames = turn_hue(frames, turns=turns)
    return _linear(frames, [(kind, factors[kind]) for kind in order[place + 1 :]])


def _linear(frames: Tensor, steps: Sequence[tuple[int, float]]) -> Tensor:
    """Brightness (0), contrast (1) and saturation (2) by factors, one after the other, in one pass over the pixels."""
    if not steps:
        return frames
    # what the steps so far make of a pixel: own * pixel + grey * its luma + even * the mean luma of its frame
    own, grey, even = 1.0, 0.0, 0.0
    white = sum(LUMA)  # the luma of (1, 1, 1)
    for kind, factor in steps:
        rest = 1 - factor
        if kind == 1:
            even += rest / factor * (own + (grey + even) * white)
        elif kind == 2:
            grey, even = grey + rest / factor * (own + grey * white), even + rest / factor * even * white
        own, grey, even = own * factor, grey * factor, even * factor
    pixels = frames.float()
    shift = None
    if grey or even:
        lumas = luma(pixels)
        shift = lumas.mean((1, 2), keepdim=True).mul_(even) + lumas.mul_(grey)
    pixels.mul_(own)
    return to_bytes(pixels if shift is None else pixels.add_(shift[:, None]))


def _levels(frames: Tensor) -> Tensor:
    """(1, 1, 256) float32: 0 to 255."""
    return torch.arange(LEVELS, dtype=torch.float32, device=frames.device)[None, None]
