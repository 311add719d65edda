"""Candidates that compete: the best is taken, and lowers the scores of those that overlap it, again and again.

N candidates of a video, n of a group, R groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["gaussian", "linear", "hard"]

EPS = np.float32(1e-6)  # added to every length, as published: no division by zero, tIoU 0 between segments of length 0
_GONE = np.float32(-np.inf)  # score of candidates that were kept or dropped
_LEAST_WEIGHT = 1e-35  # not 0, so that -inf stays -inf
_WORTH_MOVING = 0.8  # share of the candidates left, up to which arrays are made smaller
_PAIRS = 2**15  # of a group's candidates, whose weights are found at once: what fits into caches
_HELD_PAIRS = 2**18  # whose weights are held: 1 MB
_WORTH_SORTING = 4  # candidates, from which it pays to look for the likely ones


@dataclass(frozen=True)
class Decay:
    """How overlaps lower scores.

    Attributes:
        weigh: turns tIoUs into weights, in place.
        lower: of scores and weights, the lower scores; keeps `_GONE`.
    """

    weigh: Callable[[np.ndarray], None]
    lower: np.ufunc


def make_decay(method: Method, sigma: float, tiou: float) -> Decay:
    """What a method does; see `suppression.suppress`."""
    log_least = math.log(_LEAST_WEIGHT)

    def gaussian(overlap: np.ndarray) -> None:
        np.multiply(overlap, overlap, out=overlap)
        np.multiply(overlap, -1 / sigma, out=overlap)
        if 1 / sigma > -log_least:
            np.maximum(overlap, log_least, out=overlap)
        np.exp(overlap, out=overlap)

    def linear(overlap: np.ndarray) -> None:
        overlap[...] = np.where(overlap >= tiou, np.maximum(1 - overlap, _LEAST_WEIGHT), 1)

    def hard(overlap: np.ndarray) -> None:
        overlap[...] = np.where(overlap >= tiou, -np.inf, np.inf)

    weigh = {"gaussian": gaussian, "linear": linear, "hard": hard}[method]
    return Decay(weigh, np.minimum if method == "hard" else np.multiply)


class Group:
    """Candidates that compete with one another, n of them.

    On small arrays NumPy's calls cost more than their work. So the weights by which a candidate, once taken, lowers the
    others' scores are found for several at once, those that are likely to be next.
    """

    def __init__(self, index: np.ndarray, segments: np.ndarray, scores: np.ndarray, *, decay: Decay) -> None:
        """The candidates `index` (n,) of a video's `segments` (N, 2) and `scores` (N,), all float32."""
        self._index, self._scores, self._boxes = index, scores[index], _boxes(segments[index])
        self._decay = decay
        self._weights: dict[int, np.ndarray] = {}  # (n,) by the position of the candidate that is taken

    def take_best(self, floors: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Take the best candidate and lower the scores of the others, until the best's is below its floor.

        Args:
            floors: for each candidate that may be taken, ascending.

        Returns:
            Indices of those taken, and their scores.
        """
        taken: list[int] = []
        taken_scores: list[float] = []
        index, scores, weights, lower, gone = self._index, self._scores, self._weights, self._decay.lower, float(_GONE)
        for floor in floors:
            best = int(scores.argmax())
            score = scores.item(best)
            if score < floor:
                break
            if best not in weights:
                self._compact(floor)
                index, scores = self._index, self._scores
                best = int(scores.argmax())
                self._add_weights(best)
            taken.append(index.item(best))
            taken_scores.append(score)
            scores[best] = gone
            lower(scores, weights.pop(best), out=scores)
        return np.array(taken, np.int64), np.array(taken_scores, np.float32)

    def _compact(self, least: float) -> None:
        """If there are many candidates, and a good part of them have scores below `least`, remove these."""
        if len(self._scores) ** 2 <= _HELD_PAIRS:
            return
        counts = self._scores >= least
        if np.count_nonzero(counts) <= _WORTH_MOVING * len(counts):
            self._index, self._scores, self._boxes = self._index[counts], self._scores[counts], self._boxes[:, counts]
            self._weights.clear()

    def _add_weights(self, best: int) -> None:
        """Find the weights of the best candidate, and of the next best that have none."""
        size = len(self._scores)
        count = min(size, _PAIRS // size)
        if (len(self._weights) + count) * size > _HELD_PAIRS:
            self._weights.clear()
        if count == size:
            likely = np.arange(size)
        elif count < _WORTH_SORTING:
            likely = np.array([best])
        else:
            scores = self._scores.copy()
            scores[list(self._weights)] = _GONE
            likely = np.argpartition(scores, -count)[-count:]
            likely[0] = best  # in place of the least of them; it may be missing, if others score the same
        weights = _weights(self._boxes[:, None], self._boxes[:, likely, None], decay=self._decay)
        self._weights.update(zip(likely.tolist(), weights, strict=True))


class Table:
    """Groups of candidates, side by side: in each row those that compete with one another, (R, n)."""

    def __init__(self, index: np.ndarray, segments: np.ndarray, scores: np.ndarray, *, decay: Decay) -> None:
        """As for `Group`; a row of `index` (R, n) for each group, padded with -1."""
        self._decay = decay
        self._hold(index, np.where(index < 0, _GONE, scores[index]), _boxes(segments[index]))

    def best_scores(self) -> np.ndarray:
        """Each row's best score, (R,)."""
        return self._scores.take(self._best)

    def take(self) -> np.ndarray:
        """Remove each row's best candidate, lower the scores of the others, and return its index, (R,)."""
        scores, best = self._scores, self._best
        scores.put(best, _GONE)
        best_boxes = self._boxes.reshape(3, -1).take(best, axis=1)[:, :, None]
        weights = _weights(self._boxes, best_boxes, decay=self._decay, out=self._weights, spare=self._spare)
        self._decay.lower(scores, weights, out=scores)
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
        self._weights, self._spare = np.empty_like(scores), np.empty_like(scores)
        self._first = np.arange(len(scores)) * scores.shape[1]
        self._find_best()

    def _find_best(self) -> None:
        """Flat position of each row's best candidate."""
        self._best = self._scores.argmax(axis=1) + self._first if self._scores.size else self._first


def _boxes(segments: np.ndarray) -> np.ndarray:
    """Starts, ends and lengths, (3, ...), of segments (..., 2)."""
    boxes = np.empty((3, *segments.shape[:-1]), np.float32)
    boxes[0], boxes[1] = segments[..., 0], segments[..., 1]
    boxes[2] = np.maximum(boxes[1] - boxes[0], 0) + EPS
    return boxes


def _weights(
    boxes: np.ndarray,
    kept: np.ndarray,
    *,
    decay: Decay,
    out: np.ndarray | None = None,
    spare: np.ndarray | None = None,
) -> np.ndarray:
    """What lowers the scores of candidates that overlap kept ones.

    Args:
        boxes: of the candidates, see `_boxes`.
        kept: of the kept ones; broadcast with the candidates'.
        decay: what follows from an overlap.
        out: where to put them.
        spare: memory of the same shape.
    """
    (start, end, length), (kept_start, kept_end, kept_length) = boxes, kept
    overlap = np.minimum(end, kept_end, out=out)
    union = np.maximum(start, kept_start, out=spare)
    np.minimum(union, overlap, out=union)  # no overlap below 0; of whole arrays faster than maximum(overlap, 0)
    np.subtract(overlap, union, out=overlap)
    np.add(length, kept_length, out=union)
    np.subtract(union, overlap, out=union)
    np.divide(overlap, union, out=overlap)
    decay.weigh(overlap)
    return overlap
