"""Points of the pyramid and their training targets (ActionFormer, arXiv 2202.07925, section 3.3).

B windows, G ground-truth segments of a window, P points of all levels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SIMILAR_DURATION = 1e-3  # grid units: segments whose durations differ by less tie


@dataclass(frozen=True)
class Targets:
    """Training targets of a batch's points.

    Attributes:
        classes: (B, P, K) float32, multi-hot; all zero on background.
        distances: (B, P, 2) float32, to start and end, in strides of the point's level; 0 on background.
        positive: (B, P) bool, points that have a class and lie inside the video.
    """

    classes: Tensor
    distances: Tensor
    positive: Tensor

    @cached_property
    def pairs(self) -> tuple[Tensor, ...]:
        """Window, point and class of each class of a positive, (N,) each; how many, the host waits for a GPU to say."""
        return (self.classes * self.positive[..., None]).nonzero(as_tuple=True)


def make_points(
    *,
    level_lengths: Sequence[int],
    strides: Sequence[int],
    regression_ranges: Sequence[tuple[float, float]],
    point_offset: bool,
    device: torch.device,
) -> Tensor:
    """Points of all levels, (P, 4) float32: time, minimum and maximum distance to regress (grid units), stride.

    Args:
        level_lengths: points of each level.
        strides: grid units between two points of each level.
        regression_ranges: minimum and maximum distance of each level.
        point_offset: put points in the middle of their stride rather than at its start.
        device: device of the result.
    """
    levels = []
    for length, stride, (least, greatest) in zip(level_lengths, strides, regression_ranges, strict=True):
        time = torch.arange(length, dtype=torch.float32, device=device) * stride
        if point_offset:
            time = time + 0.5 * stride
        constant = torch.tensor([least, greatest, stride], dtype=torch.float32, device=device)
        levels.append(torch.cat([time[:, None], constant.expand(length, 3)], dim=1))
    return torch.cat(levels)


def assign_targets(
    *,
    points: Tensor,
    valid: Tensor,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    center_radius: float,
    filter_similar_gt: bool,
) -> Targets:
    """Assign ground truth to points.

    A point matches a segment if it lies inside it and within `center_radius` strides of its centre, and the larger of
    its two distances is in the level's range. The shortest match gives the distances; its classes and those of all
    matches that tie with it are the point's classes.

    Args:
        points: (P, 4), see `make_points`.
        valid: (B, P) bool.
        segments: of each window, (G, 2) in grid units; G may be 0.
        labels: of each window, (G,) int64.
        num_classes: K.
        center_radius: in strides.
        filter_similar_gt: False: every match gives its class, not only those tied with the shortest.
    """
    assigned = [
        _assign_window(points, window_segments, window_labels, num_classes, center_radius, filter_similar_gt)
        for window_segments, window_labels in zip(segments, labels, strict=True)
    ]
    classes = torch.stack([window_classes for window_classes, _ in assigned])
    distances = torch.stack([window_distances for _, window_distances in assigned])
    return Targets(classes=classes, distances=distances, positive=(classes.sum(dim=-1) > 0) & valid)


def _assign_window(
    points: Tensor, segments: Tensor, labels: Tensor, num_classes: int, center_radius: float, filter_similar_gt: bool
) -> tuple[Tensor, Tensor]:
    """Classes (P, K) and distances (P, 2) of one window."""
    if len(segments) == 0:
        return points.new_zeros(len(points), num_classes), points.new_zeros(len(points), 2)
    time, least, greatest, stride = points[:, None, :].unbind(-1)  # each (P, 1)
    start, end = segments[None].unbind(-1)  # each (1, G)
    to_boundaries = torch.stack([time - start, end - time], dim=-1)  # (P, G, 2)

    center = 0.5 * (start + end)
    after = time > torch.maximum(center - center_radius * stride, start)
    before = time < torch.minimum(center + center_radius * stride, end)
    farthest = to_boundaries.amax(dim=-1)
    matches = after & before & (farthest >= least) & (farthest <= greatest)  # (P, G)

    durations = (end - start).expand_as(matches).masked_fill(~matches, torch.inf)
    shortest, chosen = durations.min(dim=1)
    taken = matches & (durations <= shortest[:, None] + SIMILAR_DURATION) if filter_similar_gt else matches
    one_hot = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()  # F.one_hot waits for a GPU
    classes = (taken.float() @ one_hot).clamp(max=1)
    distances = to_boundaries[torch.arange(len(points), device=points.device), chosen] / stride
    return classes, torch.where(matches.any(dim=1, keepdim=True), distances, 0.0)
