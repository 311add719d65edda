"""What check_data finds in a data set, in words and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import Video
from adatad_ds.data.inspection.survey import Lengths, Suggestion, count_classes, fit
from adatad_ds.errors import summarize_list
from adatad_ds.evaluation.plots.distributions import SubsetShape, draw_distributions

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)

Videos = Mapping[str, Sequence[Video]]  # annotated ones, by subset


def describe(videos: Videos, lengths: Mapping[str, Lengths], *, train: str, test: str) -> list[str]:
    """Subsets and lengths, for reading."""
    lines = []
    for subset, members in videos.items():
        use = " (training)" * (subset == train) + " (test)" * (subset == test)
        hours = sum(video.duration_sec for video in members) / 3600
        lines.append(f"{subset}{use}: {len(members)} videos, {hours:.2f} h, {len(lengths[subset].sec)} segments")
        if len(lengths[subset].sec):
            marks = np.quantile(lengths[subset].sec, QUANTILES)
            row = "  ".join(f"{share:.0%} {mark:.2f}" for share, mark in zip(QUANTILES, marks, strict=True))
            lines.append(f"  lengths in seconds, by quantile: {row}")
    return lines


def describe_classes(videos: Videos, classes: Sequence[str], train: str, *, limit: int | None) -> list[str]:
    """Instances of the classes that training has most of, or of all."""
    counts = count_classes(videos, classes)
    width = max(map(len, classes), default=0)
    rows = [
        f"{label:<{width}}  " + "  ".join(f"{counts[subset][label]:>6}" for subset in counts)
        for label in sorted(classes, key=lambda name: -counts[train][name])
    ]
    return [
        f"{len(classes)} classes; instances in {', '.join(counts)}:",
        f"  {summarize_list(rows, limit=limit or len(rows), separator=chr(10) + '  ')}",
    ]


def describe_fit(what: str, lengths: Lengths, config: Config) -> list[str]:
    """How a recipe's window and pyramid fit the training segments."""
    result = fit(lengths, config)
    levels = ", ".join(f"{share:.0%}" for share in result.per_level)
    return [
        "",
        f"{what}, on the training segments:",
        f"  {result.longer:.1%} longer than a window, {result.under_step:.1%} shorter than a feature step, "
        f"{result.outside:.1%} with a half-length outside of all regression ranges",
        f"  by pyramid level, from the finest: {levels}",
    ]


def draw(
    path: Path,
    videos: Videos,
    classes: Sequence[str],
    lengths: Mapping[str, Lengths],
    suggestion: Suggestion,
    *,
    first: tuple[str, str],
) -> None:
    """The picture of the data, training and test subset first, with the suggested pyramid."""
    train = lengths[first[0]]
    step_sec = suggestion.feature_stride_frames / float(np.median(train.frames / train.sec))
    counts = count_classes(videos, classes)
    shapes = {
        subset: SubsetShape(
            segments_sec=lengths[subset].sec,
            videos_sec=np.array([video.duration_sec for video in videos[subset]]),
            classes=counts[subset],
        )
        for subset in dict.fromkeys((*first, *videos))
    }
    draw_distributions(
        path,
        subsets=shapes,
        limits_sec=[2 * end * step_sec for _, end in suggestion.regression_range[:-1]],
        window_sec=suggestion.window_size * step_sec,
        title=f"{sum(map(len, videos.values()))} videos; dashed: where the suggested pyramid changes level",
    )
