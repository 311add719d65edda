"""Top-1 and top-5 accuracy of video recognition, from the logits of each video's views.

N videos, V views of a video (clips x crops), K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adatad_ds.errors import DataError, summarize_list
from adatad_ds.system.atomic import write_text

PREDICTIONS_FILE = "predictions.json"
TOP = 5  # the k of top-k accuracy, next to top-1


@dataclass(frozen=True)
class Recognition:
    """Results of an evaluation, as counts of videos.

    Attributes:
        classes: names by class index.
        videos: (K,) videos of each class.
        top1: (K,) videos whose most probable class is the true one.
        top5: (K,) videos whose true class is among the five most probable; all of them with at most five classes.
        confusion: (K, K) videos by true class (row) and most probable class (column).
        unanswered: (K,) videos without logits, because they could not be read; they count as wrong.
    """

    classes: tuple[str, ...]
    videos: NDArray[np.int64]
    top1: NDArray[np.int64]
    top5: NDArray[np.int64]
    confusion: NDArray[np.int64]
    unanswered: NDArray[np.int64]

    @property
    def top1_accuracy(self) -> float:
        """As a share of all videos."""
        return float(self.top1.sum() / self.videos.sum())

    @property
    def top5_accuracy(self) -> float:
        """As a share of all videos."""
        return float(self.top5.sum() / self.videos.sum())

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """Top-1 accuracy of each class (K,); NaN for a class without videos."""
        return np.where(self.videos > 0, self.top1 / np.maximum(self.videos, 1), np.nan)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean top-1 accuracy over the classes that have videos."""
        return float(np.nanmean(self.class_accuracy))

    def to_dict(self) -> dict[str, float]:
        """`top1`, `top5`, `mean_class_top1`, each from 0 to 1."""
        values = {"top1": self.top1_accuracy, "top5": self.top5_accuracy}
        return values | {"mean_class_top1": self.mean_class_accuracy}

    def table(self) -> str:
        """Accuracies in %, as text."""
        rows = [
            ("top-1", self.top1_accuracy),
            (f"top-{TOP}", self.top5_accuracy),
            ("mean of classes, top-1", self.mean_class_accuracy),
        ]
        lines = [f"{name:<24}{100 * value:7.2f} %" for name, value in rows]
        lost = int(self.unanswered.sum())
        note = f", {lost} of them unreadable and counted as wrong" if lost else ""
        return "\n".join([*lines, f"{int(self.videos.sum())} videos of {len(self.classes)} classes{note}"])

    def per_class(self) -> list[dict[str, str | float]]:
        """`class`, `videos`, `top1`, `top5`, `unanswered` and `confused_with` of each class that has videos.

        The last is the class that its videos are most often mistaken for; empty if none.
        """
        rows = []
        for index, name in enumerate(self.classes):
            count = int(self.videos[index])
            if not count:
                continue
            others = self.confusion[index].copy()
            others[index] = 0
            row: dict[str, str | float] = {"class": name, "videos": count}
            row |= {"top1": float(self.top1[index] / count), "top5": float(self.top5[index] / count)}
            row["unanswered"] = int(self.unanswered[index])
            row["confused_with"] = self.classes[int(others.argmax())] if others.any() else ""
            rows.append(row)
        return rows

    def per_class_table(self) -> str:
        """`per_class` as text."""
        rows = self.per_class()
        width = max(len(str(row["class"])) for row in rows)
        lines = [f"{'class':{width}} {'videos':>7} {'top-1 %':>8} {'top-5 %':>8}  most often mistaken for"]
        for row in rows:
            shares = f"{100 * float(row['top1']):>8.2f} {100 * float(row['top5']):>8.2f}"
            lines.append(f"{row['class']:{width}} {row['videos']:>7} {shares}  {row['confused_with']}".rstrip())
        return "\n".join(lines)


def view_average(logits: ArrayLike) -> NDArray[np.float64]:
    """Class probabilities of videos (..., K) from their views' logits (..., V, K): the mean of the views' softmax."""
    exact = np.asarray(logits, dtype=np.float64)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=-2)


def recognition_accuracy(
    logits: Mapping[str, ArrayLike], truth: Mapping[str, int], *, classes: Sequence[str]
) -> Recognition:
    """Measure the accuracy of predictions.

    Args:
        logits: (V, K) of videos by name; V may differ between videos.
        truth: class index of each video of the test set.
        classes: names by class index.

    Raises:
        DataError: no videos, or logits of unknown videos, of the wrong shape, or not finite.
    """
    if not truth:
        raise DataError("there is no video to measure the accuracy on")
    strangers = [name for name in logits if name not in truth]
    if strangers:
        raise DataError(f"{len(strangers)} predicted videos are not in the test set: {summarize_list(strangers)}")
    count = len(classes)
    videos, top1, top5, unanswered = np.zeros((4, count), dtype=np.int64)
    confusion = np.zeros((count, count), dtype=np.int64)
    for name, label in truth.items():
        videos[label] += 1
        if name not in logits:
            unanswered[label] += 1
            continue
        views = np.asarray(logits[name], dtype=np.float64)
        if views.ndim != 2 or not len(views) or views.shape[1] != count:
            raise DataError(f"{name}: logits of shape {views.shape} instead of (views, {count} classes)")
        if not np.isfinite(views).all():
            raise DataError(f"{name}: logits that are not finite")
        ranking = np.argsort(-view_average(views), kind="stable")  # on ties, the first class
        place = int(np.flatnonzero(ranking == label)[0])
        top1[label] += place == 0
        top5[label] += place < TOP
        confusion[label, ranking[0]] += 1
    return Recognition(
        classes=tuple(classes), videos=videos, top1=top1, top5=top5, confusion=confusion, unanswered=unanswered
    )


def write_predictions(
    path: Path,
    logits: Mapping[str, ArrayLike],
    truth: Mapping[str, int],
    *,
    classes: Sequence[str],
    damaged: Mapping[str, str],
) -> None:
    """Write each test video's true class and its five most probable classes (none for an unreadable video).

    Args:
        path: the JSON file, replaced atomically.
        logits: (V, K) of videos by name.
        truth: class index of each video of the test set.
        classes: names by class index.
        damaged: what is missing in damaged files, by video; written under "damaged" if there are any.
    """
    results = {}
    for name, label in truth.items():
        probable = view_average(logits[name]) if name in logits else np.empty(0)
        best = np.argsort(-probable, kind="stable")[:TOP]
        predicted = [{"label": classes[int(index)], "score": round(float(probable[index]), 4)} for index in best]
        results[name] = {"label": classes[label], "predictions": predicted}
    write_text(path, json.dumps({"results": results} | ({"damaged": damaged} if damaged else {})))
