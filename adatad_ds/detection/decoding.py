"""Decode the heads' outputs into candidate detections in seconds.

B windows, P points, K classes, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatad_ds.detection.timegrid import TimeGrid


@dataclass(frozen=True)
class Candidates:
    """Scored segments of one video, on the CPU.

    Attributes:
        segments_sec: (N, 2) float32, start and end in seconds.
        scores: (N,) float32.
        labels: (N,) int64.
    """

    segments_sec: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def decode_segments(points: Tensor, distances: Tensor) -> Tensor:
    """Segments given by points and distances: t - d_start * stride, t + d_end * stride.

    Args:
        points: (P, 4), see `make_points`.
        distances: (..., P, 2) in strides.

    Returns:
        (..., P, 2) in grid units.
    """
    time, stride = points[:, 0], points[:, 3]
    start = time - distances[..., 0] * stride
    end = time + distances[..., 1] * stride
    return torch.stack([start, end], dim=-1)


def select_candidates(
    *, segments_grid: Tensor, scores: Tensor, valid: Tensor, grid: TimeGrid, score_thresh: float, topk: int
) -> Candidates:
    """The best (point, class) pairs of one window, in seconds, not yet clipped to the video.

    Args:
        segments_grid: (P, 2).
        scores: (P, K), after the sigmoid.
        valid: (P,) bool; other points are ignored.
        grid: position of the window in its video.
        score_thresh: only pairs with a score above this are kept.
        topk: maximum number of pairs kept.
    """
    segments_grid, scores = segments_grid[valid].float().cpu(), scores[valid].float().cpu()
    finite = segments_grid.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    segments_grid, scores = segments_grid[finite], scores[finite]
    num_classes = scores.shape[1]
    flat = scores.flatten()
    above = (flat > score_thresh).nonzero().squeeze(1)
    best = above[flat[above].sort(descending=True, stable=True).indices[:topk]]
    point = best // num_classes
    seconds = grid.to_sec(segments_grid[point].double())
    return Candidates(segments_sec=seconds.float(), scores=flat[best], labels=best % num_classes)


def merge_candidates(parts: Sequence[Candidates]) -> Candidates:
    """Concatenate the candidates of a video's windows."""
    return Candidates(
        segments_sec=torch.cat([part.segments_sec for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
    )


def clip_to_video(candidates: Candidates, *, duration_sec: float) -> Candidates:
    """Clip segments to the video."""
    return replace(candidates, segments_sec=candidates.segments_sec.clamp(min=0, max=duration_sec))
