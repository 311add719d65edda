"""Figure of a dataset: segment lengths, instances per class, video durations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from adatad_ds.evaluation.plots.figures import PALETTE, PlainFigure, plain_axis, save_figure, short_name

MOST_CLASSES = 30  # bars; the rest is counted
LEAST_ROWS = 8  # of the class axis, so that a single class gets no giant bar
FEWEST_BINS, MOST_BINS = 8, 30
MOST_SUBSETS = 4  # distinguishable in a histogram


@dataclass(frozen=True, kw_only=True, eq=False)
class SubsetShape:
    """Data of one subset to draw.

    Attributes:
        segments_sec: lengths of its segments.
        videos_sec: durations of its videos.
        classes: instances by class name.
    """

    segments_sec: NDArray[np.float64]
    videos_sec: NDArray[np.float64]
    classes: Mapping[str, int]


def draw_distributions(
    path: Path, *, subsets: Mapping[str, SubsetShape], limits_sec: Sequence[float], window_sec: float, title: str
) -> None:
    """Draw a PNG.

    Args:
        path: the file.
        subsets: data by subset name; the first few are drawn.
        limits_sec: segment lengths at which the next pyramid level takes over.
        window_sec: length of a window.
        title: title of the figure.
    """
    shown = dict(list(subsets.items())[:MOST_SUBSETS])
    totals: dict[str, int] = {}
    for shape in shown.values():
        for label, count in shape.classes.items():
            totals[label] = totals.get(label, 0) + count
    labels = sorted(totals, key=lambda label: (-totals[label], label))
    rows = max(min(len(labels), MOST_CLASSES), LEAST_ROWS)
    figure = PlainFigure(13, max(6.5, 1.6 + 0.27 * rows))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
    lengths, durations = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _histogram(lengths, {name: shape.segments_sec for name, shape in shown.items()})
    _mark_levels(lengths, limits_sec, window_sec)
    lengths.set(xlabel="length of a segment (s)", ylabel="segments")
    lengths.set_title("Segments, and the range of each pyramid level", loc="left", fontsize=10, pad=16)
    _histogram(durations, {name: shape.videos_sec for name, shape in shown.items()})
    durations.set(xlabel="duration of a video (s)", ylabel="videos")
    durations.set_title("Videos", loc="left", fontsize=10)
    _bars(figure.add_subplot(grid[:, 1]), labels, shown)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _histogram(axis: Axes, values: Mapping[str, NDArray[np.float64]]) -> None:
    """Histogram on a logarithmic axis."""
    every = np.concatenate([*values.values(), np.empty(0)])
    low, high = (float(every.min()), float(every.max())) if len(every) else (1.0, 10.0)
    if high < 1.5 * low:  # all alike
        low, high = low / 1.5, high * 1.5
    bins = min(max(int(3 * len(every) ** 0.5), FEWEST_BINS), MOST_BINS)
    edges = np.geomspace(low * 0.999, high * 1.001, bins + 1)
    axis.hist(
        list(values.values()),
        bins=list(edges),
        color=[PALETTE[index] for index in range(len(values))],
        label=[f"{name} ({len(members)})" for name, members in values.items()],
        linewidth=0,
    )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.15)  # room for the legend
    axis.legend(fontsize=8, loc="upper left", ncols=len(values), framealpha=1, edgecolor="none", borderpad=0.2)
    plain_axis(axis)


def _mark_levels(axis: Axes, limits_sec: Sequence[float], window_sec: float) -> None:
    """Mark the levels' limits with lines, their numbers between them, and the window's length."""
    low, high = axis.get_xlim()
    high = max(high, window_sec * 1.15)
    low = min(low, limits_sec[0] / 2) if limits_sec else low
    axis.set_xlim(low, high)
    for limit in limits_sec:
        axis.axvline(limit, color="0.25", linestyle="--", linewidth=0.9)
    axis.axvline(window_sec, color=PALETTE[3], linestyle="-", linewidth=1.6)
    edges = [low, *(limit for limit in limits_sec if low < limit < window_sec), window_sec]
    for level, (start, end) in enumerate(pairwise(edges)):
        axis.text(
            float(np.sqrt(start * end)),
            1.01,
            f"level {level}" if level == 0 else str(level),
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8,
            color="0.25",
        )
    axis.text(
        window_sec,
        1.01,
        "window",
        transform=axis.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=8,
        color=PALETTE[3],
    )


def _bars(axis: Axes, labels: Sequence[str], shown: Mapping[str, SubsetShape]) -> None:
    """Bars with the instances of the most frequent classes, one per subset."""
    drawn = labels[:MOST_CLASSES]
    height = 0.8 / max(len(shown), 1)
    for index, (name, shape) in enumerate(shown.items()):
        counts = [shape.classes.get(label, 0) for label in drawn]
        rows = np.arange(len(drawn)) - 0.4 + (index + 0.5) * height
        axis.barh(rows, counts, height=height, color=PALETTE[index], label=name)
    axis.set_yticks(range(len(drawn)), [short_name(label) for label in drawn], fontsize=8)
    axis.set_ylim(max(len(drawn), LEAST_ROWS) - 0.4, -0.6)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("instances")
    more = f", the {MOST_CLASSES} most frequent of {len(labels)}" if len(labels) > MOST_CLASSES else f" ({len(labels)})"
    axis.set_title(f"Classes{more}", loc="left", fontsize=10)
    if len(shown) > 1:
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    plain_axis(axis)
