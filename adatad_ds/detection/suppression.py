"""Suppression of duplicate detections: soft-NMS, hard NMS and segment voting, in NumPy.

N candidates of a video, M kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

    # differs: the published soft-NMS keeps the first of each class even below min_score; here nothing below is kept.
    eligible = np.flatnonzero(scores > min_score if method == "hard" and min_score > 0 else scores >= min_score)
    if per_class:
        eligible = eligible[labels[eligible].argsort(kind="stable")]
        groups = np.split(eligible, np.flatnonzero(np.diff(labels[eligible])) + 1)
    else:
        groups = [eligible]
    decay = _decay(method, sigma, tiou)
    piles = [_Pile(group, segments, scores, decay=decay, min_score=min_score) for group in groups if len(group) > 0]
    kept, kept_scores = _keep_best(piles, max_per_video)

    kept_segments = segments[kept]
    if voting_thresh > 0 and not per_class:
        kept_segments = _vote(kept_segments, segments, scores, voting_thresh)
    return Candidates(
        segments_sec=torch.from_numpy(kept_segments),
        scores=torch.from_numpy(kept_scores),
        labels=torch.from_numpy(labels[kept]),
    )


def _keep_best(piles: list[_Pile], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and scores of the first `limit` kept candidates, by decreasing score.

    Scores only ever decrease, so taking the best of all piles each time yields the kept candidates in their final
    order and can stop after `limit`; suppressing class by class would do far more work and discard it.
    """
    kept, kept_scores = [], []
    best = np.array([pile.best_score for pile in piles], dtype=np.float32)
    while len(kept) < limit and len(piles) > 0:
        chosen = int(best.argmax())
        if best[chosen] == _GONE:
            break
        kept_scores.append(best[chosen])
        kept.append(piles[chosen].take())
        best[chosen] = piles[chosen].best_score
    return np.array(kept, dtype=np.int64), np.array(kept_scores, dtype=np.float32)


class _Pile:
    """Candidates that compete with one another."""

    def __init__(
        self, index: np.ndarray, segments: np.ndarray, scores: np.ndarray, *, decay: Decay, min_score: float
    ) -> None:
        self._decay = decay
        self._min_score = np.float32(min_score)
        start, end = segments[index].T
        self._hold(index, scores[index], start, end, np.maximum(end - start, 0) + _EPS)
        self._find_best()

    def take(self) -> int:
        """Remove the best candidate, lower the scores of the others, and return its index."""
        best, scores, overlap, union = self._best, self._scores, self._overlap, self._union
        scores[best] = _GONE
        np.minimum(self._end, self._end[best], out=overlap)
        np.maximum(self._start, self._start[best], out=union)
        np.subtract(overlap, union, out=overlap)
        np.maximum(overlap, 0, out=overlap)
        np.add(self._length, self._length[best], out=union)
        np.subtract(union, overlap, out=union)
        np.divide(overlap, union, out=overlap)
        self._decay(scores, overlap)
        taken = int(self._index[best])
        self._takes += 1
        if self._takes == _TAKES_UNTIL_COMPACT:
            self._compact()
        self._find_best()
        return taken

    def _find_best(self) -> None:
        self._best = int(self._scores.argmax()) if len(self._scores) > 0 else -1
        score = self._scores[self._best] if len(self._scores) > 0 else _GONE
        self.best_score = score if score >= self._min_score else _GONE

    def _compact(self) -> None:
        """Remove candidates that are gone, to make later takes cheaper."""
        left = np.flatnonzero(self._scores >= self._min_score)
        self._hold(*(array[left] for array in (self._index, self._scores, self._start, self._end, self._length)))

    def _hold(
        self, index: np.ndarray, scores: np.ndarray, start: np.ndarray, end: np.ndarray, length: np.ndarray
    ) -> None:
        self._index, self._scores, self._length = index, scores, length
        self._start, self._end = np.ascontiguousarray(start), np.ascontiguousarray(end)
        self._overlap, self._union = np.empty_like(scores), np.empty_like(scores)
        self._takes = 0


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


def _vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, thresh: float) -> np.ndarray:
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
