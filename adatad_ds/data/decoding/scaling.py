"""Scaling of frames: the one way for every reader, in training and in testing.

n frames, h x w pixels; all frames uint8.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from adatad_ds.config.schema import Scaling


def scale(frames: Tensor, *, height: int, width: int, scaling: Scaling) -> Tensor:
    """Frames (n, 3, h, w) at another size, (n, 3, height, width).

    "bilinear" weighs the four nearest pixels, as the pipelines do that the published checkpoints were trained with
    (OpenCV's INTER_LINEAR, equal to 1 grey level): smaller pictures alias. "antialias" averages over all pixels that
    one of the result covers. Enlarging, they are the same.
    """
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=scaling == "antialias")


def scaled_size(*, height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of frames scaled to a shorter side, rounded half up as OpenMMLab's pipelines round."""
    factor = short_side / min(height, width)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
