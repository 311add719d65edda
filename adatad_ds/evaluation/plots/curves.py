"""Figures of metrics: precision against recall, average precision by class, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adatad_ds.evaluation.accuracy import Recognition
from adatad_ds.evaluation.metrics import RECALL_LEVELS, Metrics
from adatad_ds.evaluation.plots.figures import PALETTE, PlainFigure, plain_axis, short_name

MOST_CURVES = 6  # in one axis: thresholds, classes
CLASS_TIOU = 0.5  # of single classes' curves, or the nearest threshold
LINES = ("-", "--", "-.", ":")
COLORS = tuple(color for color in PALETTE if color != "#F0E442")  # yellow lines are too faint on white
UNDER_NUMBERS = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # so that no line runs through them
MOST_AT_EITHER_END = 20  # classes: so many of the best and of the worst
MOST_CONFUSED = 20  # classes
LEAST_ROWS = 8  # of the class axis, so that a single class gets no giant bar


def precision_recall_figure(metrics: Metrics, *, title: str) -> Figure:
    """Plot precision against recall in %: class means at a few thresholds, and the most annotated classes at one.

    Precision is interpolated as in AP: the best at this recall or above.
    """
    count = len(metrics.classes)
    figure = PlainFigure(10 if count > 1 else 6, 5)
    figure.suptitle(title, fontsize=11)
    means = figure.add_subplot(1, 2 if count > 1 else 1, 1)
    _curves(
        means,
        [metrics.precision[line].mean(axis=0) for line in _spread(len(metrics.tiou))],
        [
            f"tIoU {metrics.tiou[line]:.2f}: {100 * metrics.map_by_tiou[line]:.1f}"
            for line in _spread(len(metrics.tiou))
        ],
    )
    means.set_title(f"Mean of {count} classes" if count > 1 else metrics.classes[0], loc="left", fontsize=10)
    _legend(means, "mAP (%)")
    if count > 1:
        _most_annotated(figure.add_subplot(1, 2, 2), metrics)
    return figure


def class_ap_figure(metrics: Metrics, *, title: str) -> Figure:
    """Plot each class's AP in %, averaged over thresholds, in decreasing order; of many, the best and the worst."""
    average = 100 * metrics.ap.mean(axis=0)
    order = np.argsort(-average, kind="stable")
    cut = len(order) > 2 * MOST_AT_EITHER_END
    shown = np.concatenate([order[:MOST_AT_EITHER_END], order[-MOST_AT_EITHER_END:]]) if cut else order
    rows = np.arange(len(shown), dtype=np.float64)
    rows[MOST_AT_EITHER_END:] += cut  # a gap between the ends
    names = [f"{short_name(metrics.classes[column])} ({metrics.truths[column]})" for column in shown]
    figure = PlainFigure(8, 1.6 + 0.2 * max(rows[-1] + 1, LEAST_ROWS))
    axis = figure.subplots()
    axis.barh(rows, average[shown], height=0.75, color=PALETTE[0])
    for row, value in zip(rows, average[shown], strict=True):
        axis.text(value + 0.7, row, f"{value:.1f}", va="center", fontsize=7, bbox=UNDER_NUMBERS)
    if len(order) > 1:
        mean = 100 * metrics.average_map
        axis.axvline(mean, color=PALETTE[3], linestyle="--", linewidth=1)
        axis.text(mean, 1.002, f"mean {mean:.1f}", transform=axis.get_xaxis_transform(), color=PALETTE[3], fontsize=8)
    if cut:
        between = f"… {len(order) - len(shown)} classes between …"
        axis.text(1, MOST_AT_EITHER_END, between, va="center", fontsize=8, color="0.35")
    axis.set_yticks(rows, names, fontsize=8)
    axis.set_ylim(max(rows[-1] + 1, LEAST_ROWS) - 0.4, -0.6)
    axis.set_xlim(0, 107)  # room for the numbers
    axis.set_xticks(range(0, 101, 20))
    low, high = min(metrics.tiou), max(metrics.tiou)
    over = f"mean of tIoU {low:.2f} to {high:.2f}" if high > low else f"tIoU {low:.2f}"
    axis.set_xlabel(f"average precision (%), {over}")
    axis.set_ylabel("class (annotated segments)", fontsize=9)
    plain_axis(axis)
    which = f"the {MOST_AT_EITHER_END} best and the {MOST_AT_EITHER_END} worst of {len(order)} classes"
    figure.suptitle(
        f"{title}: {which if cut else f'{len(order)} classes' if len(order) > 1 else '1 class'}", fontsize=11
    )
    return figure


def confusion_figure(recognition: Recognition, *, title: str) -> Figure:
    """Plot the confusion matrix in % of each class's videos; of many classes, the most often mistaken ones."""
    mistakes = recognition.confusion.sum(axis=1) - np.diag(recognition.confusion)
    cut = len(mistakes) > MOST_CONFUSED
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CONFUSED]) if cut else np.arange(len(mistakes))
    counts = recognition.confusion[np.ix_(shown, shown)]
    shares = 100 * counts / np.maximum(recognition.videos[shown, None], 1)
    names = [short_name(recognition.classes[index]) for index in shown]
    side = 2.2 + 0.32 * max(len(shown), LEAST_ROWS)
    figure = PlainFigure(side + 1, side)
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=100, cmap="cividis")
    figure.colorbar(image, label="videos of the class (%)", shrink=0.8)
    for row, column in zip(*np.nonzero(counts), strict=True):
        ink = "black" if shares[row, column] > 55 else "white"
        axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axis.set_xticks(range(len(shown)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), names, fontsize=8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    which = f", the {MOST_CONFUSED} most mistaken of {len(mistakes)} classes" if cut else ""
    figure.suptitle(f"{title}{which}", fontsize=11)
    return figure


def _most_annotated(axis: Axes, metrics: Metrics) -> None:
    line = int(np.argmin(np.abs(np.array(metrics.tiou) - CLASS_TIOU)))
    shown = np.argsort(-metrics.truths, kind="stable")[:MOST_CURVES]
    _curves(
        axis,
        [metrics.precision[line, column] for column in shown],
        [
            f"{short_name(metrics.classes[column])} ({metrics.truths[column]}): {100 * metrics.ap[line, column]:.1f}"
            for column in shown
        ],
    )
    which = f"The {len(shown)} most annotated classes" if len(metrics.classes) > len(shown) else "Every class"
    axis.set_title(f"{which} at tIoU {metrics.tiou[line]:.2f}", loc="left", fontsize=10)
    _legend(axis, "class (annotated segments): AP (%)")


def _curves(axis: Axes, precisions: Sequence[NDArray[np.float64]], labels: Sequence[str]) -> None:
    for index, (precision, label) in enumerate(zip(precisions, labels, strict=True)):
        axis.plot(
            100 * RECALL_LEVELS,
            100 * precision,
            color=COLORS[index],
            linestyle=LINES[index % len(LINES)],
            linewidth=1.6,
            label=label,
        )
    axis.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 100), ylim=(0, 103))
    axis.grid(color="0.9")
    plain_axis(axis)


def _legend(axis: Axes, title: str) -> None:
    """Add a legend below the axis: good curves need its upper right, poor ones its lower left."""
    axis.legend(
        handles=list(axis.lines),  # given explicitly, since names that begin with _ are skipped by default
        title=title,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=2,
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        handlelength=3,
    )


def _spread(count: int) -> list[int]:
    """At most `MOST_CURVES` of `count` indices, evenly spread, with the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_CURVES))})
