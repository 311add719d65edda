"""Shared by tests: scaling."""

from __future__ import annotations

import numpy as np


def of_four_neighbours(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's INTER_LINEAR, from its documentation: pixel centres at halves, borders repeated; in float64."""
    rows = (np.arange(height) + 0.5) * picture.shape[0] / height - 0.5
    columns = (np.arange(width) + 0.5) * picture.shape[1] / width - 0.5
    out = np.zeros((height, width, picture.shape[2]))
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            top, left = int(np.floor(row)), int(np.floor(column))
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = (1 - abs(row - top - dy)) * (1 - abs(column - left - dx))
                    inside = min(max(top + dy, 0), picture.shape[0] - 1), min(max(left + dx, 0), picture.shape[1] - 1)
                    out[y, x] += weight * picture[inside]
    return out
