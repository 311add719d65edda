"""Suppression of duplicate detections: soft-NMS, hard NMS and segment voting, in NumPy.

N candidates of a video, M kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from adatad_ds.detection.decoding import Candidates

Method = Literal["gaussian", "linear", "hard"]
Decay = Callable[[np.ndarray, np.ndarray], None]  # (scores, tIoU with the kept candidate): lowers scores in place

_EPS = np.float32(1e-6)  # added to every length, as published: no division by zero, tIoU 0 between segments of length 0
_GONE = np.float32(-np.inf)  # score of candidates that were kept or dropped
_LEAST_WEIGHT = 1e-35  # not 0, so that -inf stays -inf
_TAKES_UNTIL_COMPACT = 16
_WORTH_MOVING = 0.8  # share of a table left, up to which it is made smaller
_VOTES = 2**20  # (kept, candidate) pairs that vote at once: a few MB


def suppress(
    candidates: Candidates,
    *,
    method: Method,
    sigma: float,
    tiou: float,
    min_score: float,
    max_per_video: int,
    per_class: bool,
    voting_thresh: float,
) -> Candidates:
    """Keep the best candidates and lower the scores of those that overlap them (soft-NMS, arXiv 1704.04503).

    Repeatedly, the best remaining candidate is kept; the scores of all others (of its class) are multiplied by
    exp(-tIoU^2 / sigma) (gaussian) or, where tIoU >= `tiou`, by 1 - tIoU (linear), or they are dropped (hard).

    Args:
        candidates: of all windows of one video.
        method: how overlapping candidates are suppressed.
        sigma: width of the Gaussian.
        tiou: overlap from which candidates are suppressed; linear and hard only.
        min_score: candidates below are dropped; with the hard method also those at it. 0: none.
        max_per_video: maximum number of candidates kept.
        per_class: candidates of different classes do not compete.
        voting_thresh: class-agnostic suppression only: a kept segment becomes the score-weighted mean of all candidates
            that overlap it by at least this tIoU. 0: off.

    Returns:
        Kept candidates, by decreasing score; ties keep their order.
    """
    segments = candidates.segments_sec.numpy().astype(np.float32)
    scores = candidates.scores.numpy().astype(np.float32)
    labels = candidates.labels.numpy()
    kept, kept_scores = keep_best(
        segments,
        scores,
        labels,
        method=method,
        sigma=sigma,
        tiou=tiou,
        min_score=min_score,
        max_per_video=max_per_video,
        per_class=per_class,
    )
    kept_segments = segments[kept]
    if voting_thresh > 0 and not per_class:
        kept_segments = vote(kept_segments, segments, scores, voting_thresh)
    return Candidates(
        segments_sec=torch.from_numpy(kept_segments),
        scores=torch.from_numpy(kept_scores),
        labels=torch.from_numpy(labels[kept]),
    )


def keep_best(
    segments: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    method: Method,
    sigma: float,
    tiou: float,
    min_score: float,
    max_per_video: int,
    per_class: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,) of the candidates that `suppress` keeps, and their scores (M,), by decreasing score.

    Args:
        segments: (N, 2) float32.
        scores: (N,) float32.
        labels: (N,).
        method: this and the rest as for `suppress`.
        sigma: see there.
        tiou: see there.
        min_score: see there.
        max_per_video: see there.
        per_class: see there.
    """
    # differs: the published soft-NMS keeps the first of each class even below min_score; here nothing below is kept.
    eligible = np.flatnonzero(scores > min_score if method == "hard" and min_score > 0 else scores >= min_score)
    groups = labels if per_class else np.zeros_like(labels)
    decay = _decay(method, sigma, tiou)
    kept, kept_scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for index in _similar_in_size(eligible, groups[eligible]):
        table = _Table(index, segments, scores, decay=decay)
        kept, kept_scores = _keep_best_of(
            table, kept, kept_scores, limit=max_per_video, min_score=np.float32(min_score)
        )
    return _first(kept, kept_scores, groups, limit=max_per_video)


def _similar_in_size(eligible: np.ndarray, groups: np.ndarray) -> Iterator[np.ndarray]:
    """Tables (R, n) of the eligible candidates' indices, a row per group, padded with -1; sizes within a factor of 2.

    Args:
        eligible: indices of candidates, (N,).
        groups: their groups, (N,).
    """
    order = groups.argsort(kind="stable")
    by_size: dict[int, list[np.ndarray]] = {}
    for row in np.split(eligible[order], np.flatnonzero(np.diff(groups[order])) + 1):
        if len(row) > 0:
            by_size.setdefault(len(row).bit_length(), []).append(row)
    for _, similar in sorted(by_size.items(), reverse=True):  # large groups raise the least score that counts soonest
        table = np.full((len(similar), max(map(len, similar))), -1)
        for line, row in zip(table, similar, strict=True):
            line[: len(row)] = row
        yield table


def _keep_best_of(
    table: _Table, kept: np.ndarray, kept_scores: np.ndarray, *, limit: int, min_score: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Add what a table keeps to what others have kept, as far as it may be among the first `limit`.

    Scores only ever decrease. So what is kept of a group comes by decreasing score, and a group has nothing more to
    give once its best score is below the least that counts: the `limit`-th of those kept or about to be kept.
    """
    found, found_scores = [kept], [kept_scores]
    count, least = len(kept), min_score
    for takes in itertools.count():
        if takes % _TAKES_UNTIL_COMPACT == 0:
            best = table.best_scores()
            if count + len(best) > limit:
                reached = np.concatenate([*found_scores, best])
                least = max(least, np.partition(reached, -limit)[-limit])
            table.compact(least)
        best = table.best_scores()
        if len(best) == 0 or best.max() < least:
            break
        found_scores.append(best)
        found.append(table.take())
        count += len(best)
    index, scores = np.concatenate(found), np.concatenate(found_scores)
    counts = scores >= least
    return index[counts], scores[counts]


def _first(kept: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `limit` by decreasing score; of equal scores by group, then in the order in which they were kept."""
    order = np.lexsort((groups[kept], -scores))[:limit]
    return kept[order], scores[order]


class _Table:
    """Groups of candidates, side by side: in each row those that compete with one another, (R, n)."""

    def __init__(self, index: np.ndarray, segments: np.ndarray, scores: np.ndarray, *, decay: Decay) -> None:
        self._decay = decay
        start, end = np.moveaxis(segments[index], 2, 0)
        boxes = np.stack([start, end, np.maximum(end - start, 0) + _EPS])
        self._hold(index, np.where(index < 0, _GONE, scores[index]), boxes)

    def best_scores(self) -> np.ndarray:
        """Each row's best score, (R,)."""
        return self._scores.take(self._best)

    def take(self) -> np.ndarray:
        """Remove each row's best candidate, lower the scores of the others, and return its index, (R,)."""
        scores, overlap, union, best = self._scores, self._overlap, self._union, self._best
        start, end, length = self._boxes
        best_start, best_end, best_length = self._boxes.reshape(3, -1).take(best, axis=1)[:, :, None]
        scores.put(best, _GONE)
        np.minimum(end, best_end, out=overlap)
        np.maximum(start, best_start, out=union)
        np.subtract(overlap, union, out=overlap)
        np.maximum(overlap, 0, out=overlap)
        np.add(length, best_length, out=union)
        np.subtract(union, overlap, out=union)
        np.divide(overlap, union, out=overlap)
        self._decay(scores, overlap)
        taken = self._index.take(best)
        self._find_best()
        return taken

    def compact(self, least: np.float32) -> None:
        """Remove candidates with scores below `least`, to make later takes cheaper."""
        counts = self._scores >= least
        sizes = counts.sum(axis=1)
        rows, width = np.flatnonzero(sizes), sizes.max(initial=0)
        if len(rows) == len(sizes) and width > _WORTH_MOVING * counts.shape[1]:
            return
        place = np.arange(width) < sizes[rows, None]
        index, scores = np.zeros(place.shape, np.int64), np.full(place.shape, _GONE)
        boxes = np.ones((3, *place.shape), np.float32)
        index[place], scores[place], boxes[:, place] = self._index[counts], self._scores[counts], self._boxes[:, counts]
        self._hold(index, scores, boxes)

    def _hold(self, index: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> None:
        self._index, self._scores, self._boxes = index, scores, np.ascontiguousarray(boxes)
        self._overlap, self._union = np.empty_like(scores), np.empty_like(scores)
        self._first = np.arange(len(scores)) * scores.shape[1]
        self._find_best()

    def _find_best(self) -> None:
        """Flat position of each row's best candidate."""
        self._best = self._scores.argmax(axis=1) + self._first if self._scores.size else self._first


def _decay(method: Method, sigma: float, tiou: float) -> Decay:
    log_least = math.log(_LEAST_WEIGHT)

    def gaussian(scores: np.ndarray, overlap: np.ndarray) -> None:
        np.multiply(overlap, overlap, out=overlap)
        np.multiply(overlap, -1 / sigma, out=overlap)
        if 1 / sigma > -log_least:
            np.maximum(overlap, log_least, out=overlap)
        np.exp(overlap, out=overlap)
        np.multiply(scores, overlap, out=scores)

    def linear(scores: np.ndarray, overlap: np.ndarray) -> None:
        np.multiply(scores, np.maximum(1 - overlap, _LEAST_WEIGHT), out=scores, where=overlap >= tiou)

    def hard(scores: np.ndarray, overlap: np.ndarray) -> None:
        np.copyto(scores, _GONE, where=overlap >= tiou)

    return {"gaussian": gaussian, "linear": linear, "hard": hard}[method]


def vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, thresh: float) -> np.ndarray:
    """Mean of the segments that overlap each kept one by at least `thresh`, weighted by original score, (M, 2)."""
    voted = kept.copy()
    rows = max(1, _VOTES // max(1, len(segments)))
    start, end = segments.T
    for first in range(0, len(kept), rows):
        part = slice(first, first + rows)
        kept_start, kept_end = kept[part, :1], kept[part, 1:]
        overlap = (np.minimum(kept_end, end) - np.maximum(kept_start, start)).clip(min=0)  # (rows, N)
        union = (kept_end - kept_start) + (end - start) - overlap
        votes = (overlap >= thresh * union.clip(min=_EPS)) * scores
        total = votes.sum(axis=1, keepdims=True)
        np.divide(votes @ segments, total, out=voted[part], where=total > 0)  # segments of length 0 get no votes
    return voted
