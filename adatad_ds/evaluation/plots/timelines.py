"""Figures of detections on a time axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from adatad_ds.data.annotations import Video
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.plots.figures import (
    OTHER_COLOR,
    Look,
    PlainFigure,
    class_looks,
    drawable,
    plain_axis,
    save_figure,
    short_name,
)

LONG_SEC = 120.0  # above, the axis shows hours, minutes and seconds
MOST_ROWS = 12  # of `draw_detections`, one per class
MOST_LANES = 12  # rows of detections at full height; more share that height
MOST_CLASSES = 12  # with their own look, unless more are annotated
LEGEND_WIDTH = 120  # characters
FEWEST_SHOWN = 10  # detections per video, if it has so many


@dataclass(frozen=True, kw_only=True)
class TimelineVideo:
    """One video of a figure.

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

    @classmethod
    def of(cls, video: Video, detections: Sequence[Mapping[str, Any]]) -> TimelineVideo:
        """An annotated video with these detections."""
        ground_truth = [(action.start_sec, action.end_sec, action.label) for action in video.actions]
        return cls(name=video.name, duration_sec=video.duration_sec, ground_truth=ground_truth, detections=detections)


def timeline_videos(
    results: Mapping[str, Sequence[Mapping[str, Any]]], *, videos: Sequence[Video]
) -> list[TimelineVideo]:
    """Videos with their best detections: twice as many as annotated actions, but at least ten.

    There is no score threshold, so that the first evaluations of a training show something too.
    """
    return [
        TimelineVideo.of(
            video,
            sorted(results[video.name], key=lambda record: -record["score"])[
                : max(2 * len(video.actions), FEWEST_SHOWN)
            ],
        )
        for video in videos
    ]


def draw_timeline(path: Path, *, videos: Sequence[TimelineVideo], title: str) -> None:
    """Draw a PNG: each video's ground truth and, below it, the detections; a higher score is darker."""
    save_figure(timeline_figure(videos, title=title), path)


def timeline_figure(videos: Sequence[TimelineVideo], *, title: str) -> Figure:
    """The figure of `draw_timeline`."""
    looks = _looks(videos)
    truth_lanes = [_lanes([(start, end) for start, end, _ in video.ground_truth]) for video in videos]
    detection_lanes = [_lanes([record["segment"] for record in video.detections]) for video in videos]
    heights = [
        0.75 + 0.16 * (max(truth, default=0) + min(max(lanes, default=0), MOST_LANES) + 2)
        for truth, lanes in zip(truth_lanes, detection_lanes, strict=True)
    ]
    handles = [
        Patch(facecolor=look.color, hatch=look.hatch, edgecolor=look.ink, label=short_name(label))
        for label, look in sorted(looks.items())
        if look.color != OTHER_COLOR
    ]
    if others := len(looks) - len(handles):
        handles.append(Patch(facecolor=OTHER_COLOR, edgecolor="white", label=f"{others} other classes"))
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(LEGEND_WIDTH // (longest + 6), 6, len(handles)))
    legend_height = 0.2 * ceil(len(handles) / columns)
    figure = PlainFigure(10, sum(heights) + 1.0 + legend_height)
    axes = figure.subplots(max(len(videos), 1), 1, squeeze=False, height_ratios=heights or [1])[:, 0]
    for axis, video, truth, lanes in zip(axes, videos, truth_lanes, detection_lanes, strict=False):
        _draw_video(axis, video, truth, lanes, looks)
    if len(videos):
        axes[-1].set_xlabel("time (s)")
    figure.suptitle(title, fontsize=11)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def draw_detections(
    path: Path, *, name: str, duration_sec: float, detections: Sequence[Mapping[str, Any]], shown: ShownFrom
) -> None:
    """Draw a PNG of one video's detections: one row per class, each detection as high as its score.

    Args:
        path: the file.
        name: name of the video.
        duration_sec: length of the video.
        detections: records with `segment`, `label`, `score`.
        shown: its score is drawn as a dashed line; detections below it are pale.
    """
    best: dict[str, float] = {}
    for record in detections:
        best[record["label"]] = max(best.get(record["label"], 0.0), record["score"])
    labels = sorted(best, key=lambda label: (-best[label], label))[:MOST_ROWS]
    rows = max(1, len(labels))
    figure, looks = PlainFigure(12, 1.3 + 0.85 * rows), class_looks(labels or [""])
    axes = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
    for index, axis in enumerate(axes):
        label = labels[index] if labels else ""
        own = [record for record in detections if record["label"] == label]
        _draw_class(axis, label, own, look=looks[label], shown=shown)
    axes[-1].set_xlim(0, max(duration_sec, 1e-3))
    axes[-1].xaxis.set_major_locator(MultipleLocator(_tick_sec(duration_sec)))
    long = duration_sec > LONG_SEC
    if long:
        axes[-1].xaxis.set_major_formatter(FuncFormatter(_hours))
    axes[-1].set_xlabel("time (h:min:s)" if long else "time (s)")
    figure.supylabel("score (0 to 1) by class", fontsize=10)
    classes = f", the best {MOST_ROWS} of {len(best)} classes" if len(best) > MOST_ROWS else ""
    counted = f"{len(detections)} detection{'' if len(detections) == 1 else 's'}"
    figure.suptitle(f"{drawable(name)}: {counted}{classes}\n{shown.summary(detections)}, dashed line", fontsize=11)
    save_figure(figure, path)


def _draw_class(
    axis: Axes, label: str, detections: Sequence[Mapping[str, Any]], *, look: Look, shown: ShownFrom
) -> None:
    """Draw one row; the highest scores are drawn last, on top."""
    ordered = sorted(detections, key=lambda record: record["score"])
    for sure in (False, True):  # no pale one has a higher score than a sure one
        alike = [(*record["segment"], record["score"]) for record in ordered if shown.passes(record) == sure]
        areas = PolyCollection(
            [[(start, 0), (start, score), (end, score), (end, 0)] for start, end, score in alike],
            facecolor=(look.color, 0.3 if sure else 0.06),
            hatch=look.hatch if sure else "",
            edgecolor="0.3",  # light colours need one
            linewidth=0.5 if sure else 0,
        )
        tops = LineCollection(
            [[(start, score), (end, score)] for start, end, score in alike],
            color=look.color,
            alpha=1.0 if sure else 0.35,
            linewidth=3.0 if sure else 1.0,
            capstyle="butt",
        )
        axis.add_collection(areas, autolim=False)
        axis.add_collection(tops, autolim=False)
    axis.axhline(shown.score, color="0.45", linewidth=0.8, linestyle="--")
    axis.set_ylim(0, 1.05)
    axis.set_yticks([0, 0.5, 1])
    axis.set_title(short_name(label), fontsize=9, loc="left", pad=2)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    plain_axis(axis)


def _tick_sec(duration_sec: float) -> float:
    """Seconds between ticks, for at most a dozen ticks."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    return next((step for step in steps if duration_sec <= 12 * step), 3600 * max(1, round(duration_sec / 3600 / 12)))


def _hours(seconds: float, _: int) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _draw_video(
    axis: Axes, video: TimelineVideo, truth_lanes: list[int], lanes: list[int], looks: Mapping[str, Look]
) -> None:
    below = max(truth_lanes, default=0) + 1
    for (start, end, label), lane in zip(video.ground_truth, truth_lanes, strict=True):
        axis.barh(
            lane,
            end - start,
            left=start,
            height=0.8,
            facecolor=looks[label].color,
            hatch=looks[label].hatch,
            edgecolor=looks[label].ink,
            linewidth=0.6,
        )
    lane_height = min(1.0, MOST_LANES / (max(lanes, default=0) + 1))
    for record, lane in zip(video.detections, lanes, strict=True):
        start, end = record["segment"]
        sureness = 0.2 + 0.8 * min(max(record["score"], 0.0), 1.0)
        middle = below - 0.5 + (lane + 0.5) * lane_height
        axis.barh(
            middle,
            end - start,
            left=start,
            height=0.7 * lane_height,
            facecolor=looks[record["label"]].color,
            hatch=looks[record["label"]].hatch,
            edgecolor=looks[record["label"]].ink,
            linewidth=0,
            alpha=sureness,
        )
    last = below - 0.5 + (max(lanes, default=0) + 1) * lane_height
    axis.axhline(below - 0.5, color="0.8", linewidth=0.8)
    axis.set_ylim(last + 0.1, -0.6)
    axis.set_yticks([(below - 1) / 2, (below - 0.5 + last) / 2], ["ground truth", "detections"], fontsize=8)
    axis.set_xlim(0, video.duration_sec)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(drawable(video.name), fontsize=9, loc="left")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _looks(videos: Sequence[TimelineVideo]) -> dict[str, Look]:
    """Look of each class: annotated classes first, whatever is detected, the most annotated with their own colours."""
    annotated = Counter(label for video in videos for _, _, label in video.ground_truth)
    detected = Counter(record["label"] for video in videos for record in video.detections)
    labels = sorted(annotated, key=lambda label: (-annotated[label], label))
    labels += sorted(detected.keys() - annotated.keys(), key=lambda label: (-detected[label], label))
    return class_looks(labels, most=max(len(annotated), MOST_CLASSES))


def _lanes(segments: Sequence[Sequence[float]]) -> list[int]:
    """For each segment the first row in which it overlaps no earlier segment."""
    taken: list[list[Sequence[float]]] = []
    lanes = []
    for segment in segments:
        start, end = segment
        free = (n for n, row in enumerate(taken) if all(end <= other[0] or other[1] <= start for other in row))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append(segment)
        lanes.append(lane)
    return lanes
