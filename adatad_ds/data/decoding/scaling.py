"""Scaling of frames, the same for every decoder, in training and testing.

n frames, h x w pixels; all frames uint8.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adatad_ds.config.schema import Scaling


def scale(frames: Tensor, *, height: int, width: int, scaling: Scaling) -> Tensor:
    """Resize frames (n, 3, h, w) to (n, 3, height, width).

    "bilinear" interpolates between the four nearest pixels, as the pipelines of the published checkpoints do (OpenCV's
    INTER_LINEAR, equal to 1 grey level): downscaling aliases. "antialias" averages over all pixels covered by one of
    the result. For upscaling they are the same.
    """
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=scaling == "antialias")


def scale_frame(frame: NDArray[np.uint8], *, height: int, width: int, scaling: Scaling) -> NDArray[np.uint8]:
    """Resize one frame (h, w, 3) to (height, width, 3), as `scale`."""
    if frame.shape[:2] == (height, width):
        return frame
    pixels = torch.from_numpy(frame)[None].permute(0, 3, 1, 2)
    pixels = scale(pixels, height=height, width=width, scaling=scaling)[0].permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())


def scaled_size(*, height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of frames scaled to a given shorter side, rounded half up as in OpenMMLab's pipelines."""
    factor = short_side / min(height, width)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
