"""Decode the heads' outputs into candidate detections in seconds.

B windows, P points, K classes, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    *,
    scores: Tensor,
    valid: Tensor,
    segments_of: Callable[[Tensor, Tensor], Tensor],
    grid: TimeGrid,
    score_thresh: float,
    topk: int,
    levels: Sequence[int] = (),
    min_duration: float = 0.0,
) -> Candidates:
    """The best (point, class) pairs of one window, in seconds, not yet clipped to the video.

    Args:
        scores: (P, K), after the sigmoid.
        valid: (P,) bool; other points are ignored.
        segments_of: of points (N,) and classes (N,), on the CPU, to segments (N, 2) in grid units.
        grid: position of the window in its video.
        score_thresh: only pairs with a score above this are kept.
        topk: maximum number of pairs kept.
        levels: points of each level, summing to P; each level keeps `topk` pairs. (): all together do.
        min_duration: only segments longer than this are kept, in grid units; 0: all.
    """
    num_classes = scores.shape[1]
    flat = scores.float().cpu().flatten()
    # not NaN: no comparison with it holds
    above = ((flat > score_thresh) & valid.cpu().repeat_interleave(num_classes)).nonzero().squeeze(1)
    ends = torch.tensor([points * num_classes for points in levels or [len(scores)]]).cumsum(0)
    parts = above.tensor_split(torch.searchsorted(above, ends)[:-1].tolist())
    best = torch.cat([part[_falling(flat[part])[:topk]] for part in parts])
    best = best[_falling(flat[best])]
    point, label = best // num_classes, best % num_classes
    segments = segments_of(point, label).double().cpu()
    kept = segments.isfinite().all(dim=1) & flat[best].isfinite()
    if min_duration > 0:
        kept &= segments[:, 1] - segments[:, 0] > min_duration
    seconds = grid.to_sec(segments[kept])
    return Candidates(segments_sec=seconds.float(), scores=flat[best][kept], labels=label[kept])


def _falling(scores: Tensor) -> Tensor:
    """Order by decreasing score; ties keep theirs."""
    return scores.sort(descending=True, stable=True).indices


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
