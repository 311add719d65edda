"""Pictures of detections on a time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, told apart by the colour-blind too; repeated when there are more classes.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MOST_LANES = 12  # rows of detections a video; more are drawn over one another


@dataclass(frozen=True, kw_only=True)
class TimelineVideo:
    """One video of a picture.

    Attributes:
        name: shown above it.
        duration_sec: length of its axis.
        ground_truth: (start s, end s, label) of each action.
        detections: records with `segment`, `label`, `score`.
    """

    name: str
    duration_sec: float
    ground_truth: Sequence[tuple[float, float, str]]
    detections: Sequence[Mapping[str, Any]]


def draw_timeline(path: Path, *, videos: Sequence[TimelineVideo], title: str) -> None:
    """Draw a PNG: for each video its ground truth, and below it the detections, the surer the darker."""
    labels = sorted(
        {label for video in videos for _, _, label in video.ground_truth}
        | {record["label"] for video in videos for record in video.detections}
    )
    color = {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}
    laid_out = [_lanes([record["segment"] for record in video.detections]) for video in videos]
    truth_lanes = [_lanes([(start, end) for start, end, _ in video.ground_truth]) for video in videos]
    rows = [
        max(truth, default=0) + max(lanes, default=0) + 2 for truth, lanes in zip(truth_lanes, laid_out, strict=True)
    ]
    heights = [0.75 + 0.16 * count for count in rows]
    figure = Figure(figsize=(12, sum(heights) + 1.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(len(videos), 1), 1, squeeze=False, height_ratios=heights or [1])[:, 0]
    for axis, video, truth, lanes in zip(axes, videos, truth_lanes, laid_out, strict=False):
        _draw_video(axis, video, truth, lanes, color)
    if len(videos):
        axes[-1].set_xlabel("time (s)")
    figure.suptitle(title, fontsize=11)
    handles = [Patch(color=color[label], label=label) for label in labels]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_video(
    axis: Axes, video: TimelineVideo, truth_lanes: list[int], lanes: list[int], color: Mapping[str, str]
) -> None:
    below = max(truth_lanes, default=0) + 1
    for (start, end, label), lane in zip(video.ground_truth, truth_lanes, strict=True):
        axis.barh(lane, end - start, left=start, height=0.8, color=color[label], edgecolor="black", linewidth=0.8)
    for record, lane in zip(video.detections, lanes, strict=True):
        start, end = record["segment"]
        sureness = 0.2 + 0.8 * min(max(record["score"], 0.0), 1.0)
        axis.barh(below + lane, end - start, left=start, height=0.7, color=color[record["label"]], alpha=sureness)
    last = below + max(lanes, default=0)
    axis.axhline(below - 0.5, color="0.8", linewidth=0.8)
    axis.set_ylim(last + 0.6, -0.6)
    axis.set_yticks([(below - 1) / 2, (below + last) / 2], ["ground truth", "detections"], fontsize=8)
    axis.set_xlim(0, video.duration_sec)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(video.name, fontsize=9, loc="left")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _lanes(segments: Sequence[Sequence[float]]) -> list[int]:
    """The first row for each segment in which it overlaps no earlier one."""
    ends: list[float] = []
    lanes = []
    for start, end in segments:
        free = [lane for lane, last in enumerate(ends) if last <= start]
        if free:
            lane = free[0]
            ends[lane] = end
        elif len(ends) < MOST_LANES:
            lane = len(ends)
            ends.append(end)
        else:
            lane = MOST_LANES - 1
        lanes.append(lane)
    return lanes
