"""Straightforward versions of what the package does in NumPy, one row or one pair at a time: oracles and baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Segment = Sequence[float]
Results = Mapping[str, Sequence[Mapping[str, Any]]]
Truth = Mapping[str, Sequence[tuple[float, float, str]]]
Row = tuple[float, float, float, int]  # start, end, score, class


def tiou(first: Segment, second: Segment) -> float:
    """Temporal IoU, as the metric has it."""
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / max(first[1] - first[0] + second[1] - second[0] - shared, 1e-8)


def average_precision(results: Results, truth: Truth, *, label: str, threshold: float) -> float:
    """AP of one class: one detection after the other, best first, as the devkits go.

    Each takes the ground truth of its video that it overlaps most among those still free (of equals the last), if by
    `threshold` or more. Precision is interpolated as in Pascal VOC 2011.
    """
    free = {(video, i) for video, segments in truth.items() for i, s in enumerate(segments) if s[2] == label}
    total = len(free)
    rows = [
        (record["score"], video, record["segment"])
        for video, records in results.items()
        for record in records
        if video in truth and record["label"] == label
    ]
    hits = []
    for _, video, segment in sorted(rows, key=lambda row: -row[0]):  # stable
        reach = [(tiou(segment, s), i) for i, s in enumerate(truth[video]) if (video, i) in free]
        best = max(reach, default=(-1.0, -1))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            free.remove((video, best[1]))
    precision, found = [], 0
    for count, hit in enumerate(hits, start=1):
        found += hit
        precision.append(found / count)
    envelope, best_so_far = [], 0.0
    for value in reversed(precision):
        best_so_far = max(best_so_far, value)
        envelope.append(best_so_far)
    return sum(value for value, hit in zip(reversed(envelope), hits, strict=True) if hit) / total


def recall_at(results: Results, truth: Truth, *, label: str, threshold: float, k: int) -> float:
    """Share of a class's ground truth that the k * G best detections of its video and class reach."""
    found = total = 0
    for video, segments in truth.items():
        own = [segment for segment in segments if segment[2] == label]
        records = [record for record in results.get(video, ()) if record["label"] == label]
        best = sorted(records, key=lambda record: -record["score"])[: k * len(own)]
        for segment in own:
            total += 1
            found += any(tiou(record["segment"], segment) >= threshold for record in best)
    return found / total


def suppress(
    rows: Sequence[Row],
    *,
    method: str,
    sigma: float,
    threshold: float,
    min_score: float,
    per_class: bool,
    limit: int | None = None,
) -> list[Row]:
    """Greedy suppression, one candidate and one pair at a time: kept rows, by falling score, the first `limit`."""
    left = [list(row) for row in rows if row[2] >= min_score]
    kept: list[Any] = []
    while left and (limit is None or len(kept) < limit):
        best = max(left, key=lambda row: row[2])  # the first of equals
        left.remove(best)
        kept.append(tuple(best))
        survivors = []
        for row in left:
            if per_class and row[3] != best[3]:
                survivors.append(row)
                continue
            overlap = _suppression_tiou(best, row)
            if method == "gaussian":
                weight = math.exp(-(overlap**2) / sigma)
            elif overlap < threshold:
                weight = 1.0
            else:
                weight = 1 - overlap if method == "linear" else None
            if weight is not None and row[2] * weight >= min_score:
                row[2] *= weight
                survivors.append(row)
        left = survivors
    return kept


def _suppression_tiou(first: Sequence[float], second: Sequence[float]) -> float:
    overlap = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return overlap / (first[1] - first[0] + second[1] - second[0] - overlap + 2e-6)
