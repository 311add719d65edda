"""Match detections with ground truth, and classify each detection as correct or as one of DETAD's error types.

N detections, G ground-truth segments, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np

from adatad_ds.data.annotations import Video
from adatad_ds.evaluation.metrics import greedy_matches, tiou_of_pairs

LOW_TIOU = 0.1  # a detection that overlaps less is on background


class Kind(IntEnum):
    """Type of a detection at a tIoU threshold."""

    TRUE_POSITIVE = 0
    DOUBLE_DETECTION = 1
    WRONG_LABEL = 2
    LOCALISATION = 3
    CONFUSION = 4
    BACKGROUND = 5

    @property
    def title(self) -> str:
        """Name in tables and figures."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Truths:
    """Ground truth: video and label indices (G,), segments_sec (G, 2), coverage of the video (G,), annotated actions
    in the video (G,)."""

    video: np.ndarray
    label: np.ndarray
    segments_sec: np.ndarray
    coverage: np.ndarray
    instances: np.ndarray

    @property
    def length_sec(self) -> np.ndarray:
        """(G,), rounded to a microsecond, so that 3 s is the same length at any start."""
        return (self.segments_sec[:, 1] - self.segments_sec[:, 0]).round(6)


@dataclass(frozen=True)
class Detections:
    """Detections by class and decreasing score: video, label, scores, place in the file (N,); segments_sec (N, 2)."""

    video: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    position: np.ndarray
    segments_sec: np.ndarray

    def places(self) -> np.ndarray:
        """Rank of each among all classes by decreasing score, ties in the order of the file, (N,)."""
        places = np.empty(len(self.scores), dtype=np.int64)
        places[np.lexsort((self.position, -self.scores))] = np.arange(len(places))
        return places


@dataclass(frozen=True)
class Nearest:
    """For each detection, the segment that it overlaps most, of any label; on ties one of its own label. All (N,).

    Attributes:
        truth: index of that segment, -1 without overlap.
        overlap: their tIoU.
        own: whether the segment has the detection's label.
    """

    truth: np.ndarray
    overlap: np.ndarray
    own: np.ndarray


def read_truths(videos: Sequence[Video], classes: Sequence[str]) -> Truths:
    index = {name: number for number, name in enumerate(classes)}
    rows = [
        (number, index[action.label], action.start_sec, action.end_sec, video.duration_sec, len(video.actions))
        for number, video in enumerate(videos)
        for action in video.actions
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Truths(
        video=table[:, 0].astype(np.int64),
        label=table[:, 1].astype(np.int64),
        segments_sec=table[:, 2:4],
        coverage=((table[:, 3] - table[:, 2]) / table[:, 4]).round(6),
        instances=table[:, 5].astype(np.int64),
    )


def read_detections(
    results: Mapping[str, Sequence[Mapping[str, Any]]], videos: Sequence[Video], classes: Sequence[str]
) -> Detections:
    index = {name: number for number, name in enumerate(classes)}
    video_index = {video.name: number for number, video in enumerate(videos)}
    rows = [
        (video_index[video], index[record["label"]], *record["segment"], record["score"])
        for video, records in results.items()
        if video in video_index
        for record in records
        if record["label"] in index
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    order = np.lexsort((-table[:, 4], table[:, 1]))  # stable: ties stay in the order of the file, as in the metric
    table = table[order]
    return Detections(
        video=table[:, 0].astype(np.int64),
        label=table[:, 1].astype(np.int64),
        scores=table[:, 4],
        position=order,
        segments_sec=table[:, 2:4],
    )


def match(
    detections: Detections, truths: Truths, *, thresholds: Sequence[float]
) -> tuple[Nearest, dict[float, np.ndarray]]:
    """Each detection's nearest segment; and for each threshold its matched segment, -1 for none, (N,)."""
    count = len(detections.video)
    nearest = Nearest(truth=np.full(count, -1), overlap=np.zeros(count), own=np.zeros(count, dtype=bool))
    taken = {threshold: np.full(count, -1) for threshold in thresholds}
    by_video = np.argsort(detections.video, kind="stable")  # stays by class and score within a video
    for rows in np.split(by_video, np.flatnonzero(np.diff(detections.video[by_video])) + 1):
        columns = np.flatnonzero(truths.video == detections.video[rows[0]]) if count else rows
        if not len(columns):
            continue
        overlap = tiou_of_pairs(detections.segments_sec[rows], truths.segments_sec[columns])  # (n, g)
        same = detections.label[rows, None] == truths.label[columns]
        best = overlap.max(axis=1)
        best_own = np.where(same, overlap, -1.0)
        own = best_own.max(axis=1) >= best
        column = np.where(own, best_own.argmax(axis=1), overlap.argmax(axis=1))
        nearest.overlap[rows], nearest.own[rows] = best, own
        nearest.truth[rows] = np.where(best > 0, columns[column], -1)
        for label in np.unique(truths.label[columns]):
            lines = np.flatnonzero(detections.label[rows] == label)
            segments = np.flatnonzero(truths.label[columns] == label)
            for threshold, line in taken.items():
                matched, by = greedy_matches(overlap[np.ix_(lines, segments)], threshold)
                line[rows[lines[matched]]] = columns[segments[by]]
    return nearest, taken


def kinds_at(nearest: Nearest, taken: np.ndarray, threshold: float) -> np.ndarray:
    """Kind of each detection by the table of docs/guides/errors.md, (N,)."""
    enough, low = nearest.overlap >= threshold, nearest.overlap >= LOW_TIOU
    return np.select(
        [taken >= 0, enough & nearest.own, enough, low & nearest.own, low],
        [Kind.TRUE_POSITIVE, Kind.DOUBLE_DETECTION, Kind.WRONG_LABEL, Kind.LOCALISATION, Kind.CONFUSION],
        default=Kind.BACKGROUND,
    )


def missed_segments(
    detections: Detections, truths: Truths, taken: np.ndarray, totals: np.ndarray, min_precision: float
) -> np.ndarray:
    """Segments without a true positive at a class precision above `min_precision`, (G,).

    Precision is normalised as in DETAD, as if every class had equally many segments, so that rare classes are not
    judged more strictly.
    """
    missed = np.ones(len(truths.label), dtype=bool)
    typical = totals.mean()
    for rows in by_class(detections.label, len(totals)):
        correct = taken[rows] >= 0
        found = correct.cumsum() * typical / totals[detections.label[rows]]
        precision = found / (found + (~correct).cumsum()).clip(min=1e-12)
        missed[taken[rows][correct & (precision > min_precision)]] = False
    return missed


def by_class(label: np.ndarray, classes: int) -> list[slice]:
    """Rows of each class; `label` is ascending."""
    bounds = np.searchsorted(label, np.arange(classes + 1))
    return [slice(start, end) for start, end in pairwise(bounds)]
