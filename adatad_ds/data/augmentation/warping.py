"""Affine warps of frames: where each pixel comes from is computed once, for all frames and colours.

Frames are (n, 3, h, w) uint8. n frames, h x w pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adatad_ds.data.augmentation.vectors import filled

GREY = 128

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]  # from a result's (x, y, 1) to a frame's (x, y)


def inverse_affine(
    *,
    angle: float = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
    center: tuple[float, float] = (0.0, 0.0),
) -> Matrix:
    """The inverse of a warp that shears, turns and moves, as torchvision's affine defines it.

    Args:
        angle: degrees, clockwise.
        translate: pixels (x, y).
        shear: degrees (x, y).
        center: fixed point (x, y) of turning and shearing, in pixels from the frame's centre.
    """
    turn, (shear_x, shear_y) = math.radians(angle), (math.radians(degrees) for degrees in shear)
    a, c = math.cos(turn - shear_y) / math.cos(shear_y), math.sin(turn - shear_y) / math.cos(shear_y)
    b, d = -a * math.tan(shear_x) - math.sin(turn), -c * math.tan(shear_x) + math.cos(turn)
    x, y = center[0] + translate[0], center[1] + translate[1]  # a d - b c is 1
    return (d, -b, center[0] - d * x + b * y), (-c, a, center[1] + c * x - a * y)


def warp(frames: Tensor, *, matrix: Matrix) -> Tensor:
    """Bilinear, black outside, as imgaug warps with OpenCV; by OpenCV itself on the CPU, three times as fast.

    PyTorch and OpenCV differ by one level at most, where a value lies between two.
    """
    if frames.device.type == "cpu":
        return _by_opencv(frames, matrix)
    return by_grid(frames, matrix)


def _by_opencv(frames: Tensor, matrix: Matrix) -> Tensor:
    import cv2  # here, as only warps need it

    if cv2.getNumThreads() != torch.get_num_threads():
        cv2.setNumThreads(torch.get_num_threads())  # one in a worker
    height, width = frames.shape[2:]
    turn = np.array(matrix)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    turn[:, 2] += middle - turn[:, :2] @ middle  # from pixels to pixels, counted from a corner
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    frames = frames.contiguous() if frames.stride(3) != 1 else frames
    out = torch.empty_like(frames)
    source, target = frames.numpy(), out.numpy()
    for place in np.ndindex(*frames.shape[:2]):
        cv2.warpAffine(source[place], turn, (width, height), dst=target[place], flags=flags)
    return out


def by_grid(frames: Tensor, matrix: Matrix) -> Tensor:
    """`warp` by PyTorch, on any device."""
    grid = _sources(matrix, frames).div_(_half_size(frames))
    planes = frames.transpose(0, 1).flatten(0, 1)[None].float()  # (1, 3 n, h, w), all by the same grid
    warped = F.grid_sample(planes, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    warped = warped.round_().to(torch.int16).to(torch.uint8)
    return warped.view(3, -1, *frames.shape[2:]).transpose(0, 1)


def warp_as_pillow(frames: Tensor, *, matrix: Matrix) -> Tensor:
    """Nearest pixels, grey outside."""
    height, width = frames.shape[2:]
    x, y = (_sources(matrix, frames) + _half_size(frames) - 0.5).round_().long().unbind(-1)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    source = (y * width + x).masked_fill_(outside, 0).flatten()
    pixels = frames.transpose(0, 1).flatten(2).index_select(2, source).view(3, -1, height, width)
    return pixels.masked_fill_(outside, GREY).transpose(0, 1)


def _sources(matrix: Matrix, frames: Tensor) -> Tensor:
    """Where each pixel of the result lies in a frame, (h, w, 2) float32: x and y in pixels from the centre."""
    height, width = frames.shape[2:]
    rows, columns = (
        torch.linspace((1 - size) * 0.5, (size - 1) * 0.5, steps=size, device=frames.device) for size in (height, width)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return places @ filled([*matrix[0], *matrix[1]], device=frames.device).view(2, 3).T


def _half_size(frames: Tensor) -> Tensor:
    height, width = frames.shape[2:]
    return filled([0.5 * width, 0.5 * height], device=frames.device)
