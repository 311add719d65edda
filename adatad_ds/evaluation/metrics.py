"""Mean average precision over temporal-IoU thresholds, and Recall@kx.

As in ActivityNet's evaluation: the detections of a class, by decreasing score, are each matched with the unmatched
ground truth that they overlap most, if enough; precision is interpolated as in Pascal VOC 2011.

N detections, G ground-truth segments, K classes, L recall levels of a plotted curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adatad_ds.errors import DataError
from adatad_ds.evaluation.operating_point import OperatingPoint, best_operating_point

Truth = Mapping[str, Sequence[tuple[float, float, str]]]  # video -> (start s, end s, label)
OPERATING_TIOU = 0.5  # the best F1 is that at the nearest threshold
RECALL_LEVELS = np.linspace(0, 1, 101)  # of the stored curves; AP itself uses every detection


@dataclass(frozen=True)
class Metrics:
    """Results of an evaluation, from 0 to 1.

    Attributes:
        tiou: thresholds.
        classes: classes that occur in the ground truth.
        truths: (K,) ground-truth segments of each class.
        ap: (thresholds, K) average precision.
        precision: (thresholds, K, L) best precision at a recall of at least `RECALL_LEVELS`, 0 where not reached.
        recall: k -> (thresholds, K) share of ground truth found among the k * G best detections of its video.
        operating_point: the score of the best F1; None: no detection is correct.
    """

    tiou: tuple[float, ...]
    classes: tuple[str, ...]
    truths: np.ndarray
    ap: np.ndarray
    precision: np.ndarray
    recall: dict[int, np.ndarray]
    operating_point: OperatingPoint | None = None

    @property
    def map_by_tiou(self) -> np.ndarray:
        """Mean over classes, (thresholds,)."""
        return self.ap.mean(axis=1)

    @property
    def average_map(self) -> float:
        """Mean over classes and thresholds."""
        return float(self.map_by_tiou.mean())

    def instance_recall(self, k: int) -> np.ndarray:
        """Recall@kx over all ground-truth segments, as on Ego4D's server, (thresholds,)."""
        return self.recall[k] @ self.truths / self.truths.sum()

    def to_dict(self) -> dict[str, float]:
        """`average_mAP` and `mAP@T`; for each k `recall@T@k`, the mean over classes, and `instance_recall@T@k`.

        Also the best F1, `best_F1@T`, and its score threshold, `best_F1_threshold@T`.
        """
        values = {"average_mAP": self.average_map}
        values |= {f"mAP@{tiou:g}": float(value) for tiou, value in zip(self.tiou, self.map_by_tiou, strict=True)}
        for k, recall in self.recall.items():
            means = recall.mean(axis=1)
            values |= {f"recall@{tiou:g}@{k}": float(v) for tiou, v in zip(self.tiou, means, strict=True)}
            alike = zip(self.tiou, self.instance_recall(k), strict=True)
            values |= {f"instance_recall@{tiou:g}@{k}": float(v) for tiou, v in alike}
        if point := self.operating_point:
            values |= {f"best_F1@{point.tiou:g}": point.f1, f"best_F1_threshold@{point.tiou:g}": point.score}
        return values

    def table(self) -> str:
        """mAP in % by threshold, aligned; then recall by class and by segment, if measured."""
        rows = [("tIoU", *(f"{tiou:.2f}" for tiou in self.tiou), "average")]
        rows.append(("mAP %", *(f"{100 * value:.2f}" for value in self.map_by_tiou), f"{100 * self.average_map:.2f}"))
        for k, recall in self.recall.items():
            for name, values in ((f"R@{k}x %", recall.mean(axis=1)), (f"by segment R@{k}x %", self.instance_recall(k))):
                rows.append((name, *(f"{100 * value:.2f}" for value in values), f"{100 * values.mean():.2f}"))
        return _aligned(rows)

    def per_class(self) -> list[dict[str, str | float]]:
        """`class`, `ground_truth`, `AP@T` for each threshold T, `average_AP` and `recall@T@k` of each class."""
        rows = []
        for column, name in enumerate(self.classes):
            row: dict[str, str | float] = {"class": name, "ground_truth": int(self.truths[column])}
            row |= {f"AP@{tiou:g}": float(value) for tiou, value in zip(self.tiou, self.ap[:, column], strict=True)}
            row["average_AP"] = float(self.ap[:, column].mean())
            for k, recall in self.recall.items():
                values = zip(self.tiou, recall[:, column], strict=True)
                row |= {f"recall@{tiou:g}@{k}": float(value) for tiou, value in values}
            rows.append(row)
        return rows

    def per_class_table(self) -> str:
        """Each class's AP in %, aligned, the best class first."""
        rows: list[Sequence[str]] = [("class", "ground truth", *(f"{tiou:.2f}" for tiou in self.tiou), "average AP %")]
        average = self.ap.mean(axis=0)
        for column in np.argsort(-average, kind="stable"):
            cells = (f"{100 * value:.2f}" for value in (*self.ap[:, column], average[column]))
            rows.append((self.classes[column], str(self.truths[column]), *cells))
        return _aligned(rows)


def evaluate_detections(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    truth: Truth,
    *,
    tiou: Sequence[float],
    recall_topk: Sequence[int] = (),
) -> Metrics:
    """Measure detections.

    Args:
        results: video -> records with `segment` (start s, end s), `label`, `score`. Records of other videos, or of
            classes without ground truth, are ignored.
        truth: ground truth of every evaluated video. Classes without ground truth are left out of the means.
        tiou: thresholds.
        recall_topk: the k of Recall@kx.

    Raises:
        DataError: there is no ground truth at all.
    """
    classes = tuple(sorted({label for segments in truth.values() for _, _, label in segments}))
    if not classes:
        raise DataError(
            "the evaluated videos have no annotated action, so there is nothing to measure detections against"
        )
    detections = _detections_by_class(results, classes, videos=list(truth))
    ap = np.zeros((len(tiou), len(classes)))
    precision = np.zeros((len(tiou), len(classes), len(RECALL_LEVELS)))
    truths = np.zeros(len(classes), dtype=np.int64)
    recall = {k: np.zeros((len(tiou), len(classes))) for k in recall_topk}
    line, correct = int(np.argmin(np.abs(np.array(tiou) - OPERATING_TIOU))), []
    for column, name in enumerate(classes):
        segments = {
            index: np.array([(start, end) for start, end, label in truth[video] if label == name])
            for index, video in enumerate(truth)
            if any(label == name for _, _, label in truth[video])
        }
        truths[column] = total = sum(map(len, segments.values()))
        matched = _correct(detections[column], segments, tiou)
        ap[:, column], precision[:, column] = _average_precision(matched, total)
        correct.append(matched[line])
        for k, values in recall.items():
            values[:, column] = _recall(detections[column], segments, total, tiou, k)
    point = best_operating_point(
        np.concatenate([of_class.scores for of_class in detections]),
        np.concatenate(correct),
        total=int(truths.sum()),
        tiou=tiou[line],
    )
    return Metrics(
        tiou=tuple(tiou),
        classes=classes,
        truths=truths,
        ap=ap,
        precision=precision,
        recall=recall,
        operating_point=point,
    )


@dataclass(frozen=True)
class _ClassDetections:
    """Detections of one class, by decreasing score: video index (N,), segments (N, 2), scores (N,)."""

    video: np.ndarray
    segments: np.ndarray
    scores: np.ndarray


def _detections_by_class(
    results: Mapping[str, Sequence[Mapping[str, Any]]], classes: Sequence[str], *, videos: Sequence[str]
) -> list[_ClassDetections]:
    video_index = {video: index for index, video in enumerate(videos)}
    class_index = {name: index for index, name in enumerate(classes)}
    rows = [
        (class_index[record["label"]], video_index[video], record["segment"][0], record["segment"][1], record["score"])
        for video, records in results.items()
        if video in video_index
        for record in records
        if record["label"] in class_index
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    table = table[np.argsort(-table[:, 4], kind="stable")]
    split = [table[table[:, 0] == index] for index in range(len(classes))]
    return [
        _ClassDetections(video=part[:, 1].astype(np.int64), segments=part[:, 2:4], scores=part[:, 4]) for part in split
    ]


def _correct(detections: _ClassDetections, truth: Mapping[int, np.ndarray], tiou: Sequence[float]) -> np.ndarray:
    """Which detections of a class are correct at each threshold, (thresholds, N)."""
    correct = np.zeros((len(tiou), len(detections.video)), dtype=bool)
    for video, segments in truth.items():
        members = np.flatnonzero(detections.video == video)
        overlap = tiou_of_pairs(detections.segments[members], segments)
        for line, threshold in enumerate(tiou):
            rows, _ = greedy_matches(overlap, threshold)
            correct[line, members[rows]] = True
    return correct


def _average_precision(correct: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """AP of a class at each threshold, and precision at the recall levels (thresholds, L)."""
    lines, count = correct.shape
    at_levels = np.zeros((lines, len(RECALL_LEVELS)))
    envelope = _envelope(correct)
    found = correct.cumsum(axis=1)
    needed = np.ceil(RECALL_LEVELS * total - 1e-6)  # correct detections
    for line in range(lines):
        first = np.searchsorted(found[line], needed)  # first detection that reaches the level
        reached = first < count
        at_levels[line, reached] = envelope[line, first[reached]]
    return interpolated_precision(correct, total), at_levels


def interpolated_precision(correct: np.ndarray, total: int) -> np.ndarray:
    """AP of one class.

    Args:
        correct: (thresholds, N) which of its detections, by decreasing score, are correct.
        total: number of its ground-truth segments.

    Returns:
        (thresholds,).
    """
    return (_envelope(correct) * correct).sum(axis=1) / total


def _envelope(correct: np.ndarray) -> np.ndarray:
    """Best precision at a recall of at least each detection's, (thresholds, N)."""
    precision = correct.cumsum(axis=1) / np.arange(1, correct.shape[1] + 1)
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def greedy_matches(overlap: np.ndarray, threshold: float) -> tuple[list[int], list[int]]:
    """Greedily match detections (rows, by decreasing score) with ground truth (columns), in one round per match.

    Args:
        overlap: (N, G) tIoU of one class in one video.
        threshold: minimum tIoU.

    Returns:
        The matched rows, ascending, and the column of each.
    """
    enough = np.where(overlap >= threshold, overlap, -1.0)
    rows: list[int] = []
    columns: list[int] = []
    row = 0
    while row < len(enough):
        ahead = (enough[row:] >= 0).any(axis=1)
        if not ahead.any():
            break
        row += int(ahead.argmax())
        rows.append(row)
        best = enough.shape[1] - 1 - int(enough[row, ::-1].argmax())  # on ties the last, as in the devkits
        columns.append(best)
        enough[:, best] = -1
        row += 1
    return rows, columns


def _recall(
    detections: _ClassDetections, truth: Mapping[int, np.ndarray], total: int, tiou: Sequence[float], k: int
) -> np.ndarray:
    """Share of a class's ground truth found by the k * G best detections of its video, at each threshold."""
    found = np.zeros(len(tiou))
    for video, segments in truth.items():
        best = np.flatnonzero(detections.video == video)[: k * len(segments)]
        if len(best):
            reached = tiou_of_pairs(detections.segments[best], segments).max(axis=0)
            found += [(reached >= threshold).sum() for threshold in tiou]
    return found / total


def tiou_of_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Temporal IoU of all pairs, (N, G); 0 if both have length 0."""
    overlap = np.minimum(first[:, None, 1], second[None, :, 1]) - np.maximum(first[:, None, 0], second[None, :, 0])
    overlap = overlap.clip(min=0)
    union = (first[:, 1] - first[:, 0])[:, None] + (second[:, 1] - second[:, 0])[None, :] - overlap
    return overlap / union.clip(min=1e-8)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as text, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
