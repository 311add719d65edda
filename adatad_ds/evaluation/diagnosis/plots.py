"""Figures of an error analysis: profile, gains, missed segments, classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adatad_ds.evaluation.diagnosis.diagnosis import BANDS, Bins, Diagnosis
from adatad_ds.evaluation.diagnosis.matching import Kind
from adatad_ds.evaluation.plots.figures import PALETTE, PlainFigure, save_figure, short_name

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, _, _ = PALETTE
COLORS = {
    Kind.TRUE_POSITIVE: GREEN,
    Kind.DOUBLE_DETECTION: SKY,
    Kind.WRONG_LABEL: VERMILION,
    Kind.LOCALISATION: ORANGE,
    Kind.CONFUSION: PURPLE,
    Kind.BACKGROUND: "#BBBBBB",
}
MOST_CLASSES = 24  # drawn; of more, the best and the worst


def draw_profile(path: Path, diagnosis: Diagnosis) -> None:
    """Plot the shares of the kinds among each class's G best detections, the next G, and so on."""
    counts = diagnosis.profile()
    totals = counts.sum(axis=1)
    shares = 100 * counts / totals.clip(min=1)[:, None]
    figure = PlainFigure(8.6, 4.6)
    axis = figure.subplots()
    bottom = np.zeros(BANDS)
    for kind, color in COLORS.items():
        axis.bar(
            range(BANDS), shares[:, kind], bottom=bottom, width=0.86, color=color, edgecolor="white", linewidth=0.5
        )
        bottom += shares[:, kind]
    for band in np.flatnonzero(totals == 0).tolist():
        axis.text(band, 2, "none", ha="center", fontsize=8, color="0.4")
    names = ["1st G", "2nd G", "3rd G", *(f"{number}th G" for number in range(4, BANDS + 1))]
    axis.set_xticks(range(BANDS), [f"{name}\n{total:,}" for name, total in zip(names, totals, strict=True)], fontsize=8)
    axis.set_xlabel("detections of each class by score, in steps of its G ground-truth segments; below: how many")
    axis.set_ylabel("share of detections (%)")
    axis.set_ylim(0, 100)
    handles = [Patch(facecolor=color, label=kind.title) for kind, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    _finish(figure, [axis], path)


def draw_gains(path: Path, diagnosis: Diagnosis) -> None:
    """Plot the gain in average mAP from removing, and from fixing, each type of error."""
    gains = diagnosis.gains
    lines = np.arange(len(gains))
    figure = PlainFigure(8.6, 4.6)
    axis = figure.subplots()
    for offset, color, label, values in (
        (-0.19, SKY, "removed", [None if gain.removed is None else 100 * gain.removed.mean() for gain in gains]),
        (0.19, BLUE, "fixed", [100 * gain.fixed.mean() for gain in gains]),
    ):
        axis.barh(lines + offset, [value or 0 for value in values], height=0.36, color=color, label=label)
        for line, value in zip(lines, values, strict=True):
            if value is not None:
                axis.annotate(
                    f"{value:.1f}",
                    (max(value, 0), line + offset),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
    axis.set_yticks(lines, [gain.name for gain in gains])
    axis.invert_yaxis()
    axis.axhline(len(gains) - 2.5, color="0.8", linewidth=0.8)
    axis.set_xlim(0, max(1.0, 1.08 * axis.get_xlim()[1]))
    average = 100 * diagnosis.metrics.average_map
    axis.set_xlabel(f"gain in average mAP, percentage points (now {average:.2f} %)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    _finish(figure, [axis], path)


def draw_missed(path: Path, diagnosis: Diagnosis, bins: Bins) -> None:
    """Plot the share of missed ground-truth segments by size."""
    rows = diagnosis.missed_by(bins)
    titles = {
        "coverage": "share of the video's duration",
        "length": "length of the segment",
        "instances": "segments in the video",
    }
    figure = PlainFigure(11.5, 3.9)
    axes = figure.subplots(1, len(titles), sharey=True, width_ratios=[5, 5, 4])
    for axis, (name, title), color in zip(axes, titles.items(), (BLUE, ORANGE, PURPLE), strict=True):
        of_this = [row for row in rows if row.characteristic == name]
        shares = [100 * row.missed / max(row.ground_truth, 1) for row in of_this]
        axis.bar(range(len(of_this)), shares, width=0.8, color=color)
        for place, (row, share) in enumerate(zip(of_this, shares, strict=True)):
            text = f"{share:.0f} %" if row.ground_truth else "none"
            axis.annotate(
                text, (place, share), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8, color="0.2"
            )
        labels = [f"{row.size}\n{row.range}\nof {row.ground_truth:,}" for row in of_this]
        axis.set_xticks(range(len(of_this)), labels, fontsize=7.5)
        axis.set_xlabel(title)
    axes[0].set_ylabel("ground-truth segments missed (%)")
    axes[0].set_ylim(0, max(10.0, 1.1 * axes[0].get_ylim()[1]))
    _finish(figure, axes, path)


def drawn_classes(diagnosis: Diagnosis) -> np.ndarray:
    """Indices of the classes that `draw_classes` draws, by decreasing average AP."""
    order = np.argsort(-diagnosis.metrics.ap.mean(axis=0), kind="stable")
    half = MOST_CLASSES // 2
    return order if len(order) <= MOST_CLASSES else np.concatenate([order[:half], order[-half:]])


def draw_classes(path: Path, diagnosis: Diagnosis) -> None:
    """Plot AP, kinds of the G best detections, and share of missed segments, by class."""
    metrics = diagnosis.metrics
    drawn = drawn_classes(diagnosis)
    counts = diagnosis.class_kinds()[drawn]
    shares = 100 * counts / counts.sum(axis=1).clip(min=1)[:, None]
    average = 100 * metrics.ap.mean(axis=0)[drawn]
    missed = 100 * diagnosis.class_missed()[drawn] / metrics.truths[drawn]
    lines = np.arange(len(drawn))
    figure = PlainFigure(10.5, 1.9 + 0.24 * max(len(drawn), 3))
    axes = figure.subplots(1, 3, sharey=True, width_ratios=[3, 5, 3])
    for axis, values, label in ((axes[0], average, "average AP (%)"), (axes[2], missed, "segments missed (%)")):
        axis.barh(lines, values, height=0.75, color=BLUE)
        for line, value in zip(lines, values, strict=True):
            axis.annotate(
                f"{value:.0f}", (value, line), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        axis.set_xlim(0, 112)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel(label)
    left = np.zeros(len(drawn))
    for kind, color in COLORS.items():
        axes[1].barh(lines, shares[:, kind], left=left, height=0.75, color=color, edgecolor="white", linewidth=0.4)
        left += shares[:, kind]
    for line in np.flatnonzero(counts.sum(axis=1) == 0).tolist():
        axes[1].text(1, line, "no detections", va="center", fontsize=7.5, color="0.4")
    axes[1].set_xlim(0, 100)
    axes[1].set_xlabel("its G best detections (%)")
    names = [f"{short_name(metrics.classes[index])} ({metrics.truths[index]:,})" for index in drawn]
    axes[0].set_yticks(lines, names, fontsize=8)
    axes[0].set_ylim(len(drawn) - 0.4, -0.6)
    title = "classes by average AP, with the number G of their ground-truth segments"
    if len(drawn) < len(metrics.classes):
        half = len(drawn) // 2
        title += f": the {half} best and the {half} worst of {len(metrics.classes)}"
        for axis in axes:
            axis.axhline(half - 0.5, color="black", linewidth=0.8, linestyle=":")
    figure.suptitle(title, fontsize=9)
    handles = [Patch(facecolor=color, label=kind.title) for kind, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    _finish(figure, axes, path)


def _finish(figure: Figure, axes: Sequence[Axes], path: Path) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
