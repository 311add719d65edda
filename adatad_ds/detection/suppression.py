"""Suppression of duplicate detections: soft-NMS, hard NMS and segment voting, in NumPy.

N candidates of a video, M kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from adatad_ds.detection.competition import EPS, Group, Method, Table, make_decay
from adatad_ds.detection.decoding import Candidates

_TAKES_UNTIL_COMPACT = 16
_ONE_BY_ONE = 4  # groups of similar size, up to which each has its turn; of more, all have theirs at once
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
    segments = candidates.segments_sec.numpy().astype(np.float32, copy=False)
    scores = candidates.scores.numpy().astype(np.float32, copy=False)
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
    decay, least = make_decay(method, sigma, tiou), np.float32(min_score)
    kept, kept_scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for similar in _similar_in_size(eligible, groups[eligible]):
        if len(similar) > _ONE_BY_ONE:
            table = Table(_padded(similar), segments, scores, decay=decay)
            kept, kept_scores = _keep_best_of(table, kept, kept_scores, limit=max_per_video, min_score=least)
            continue
        for index in similar:  # few: a row is taken from faster than a table
            floors = _floors(kept_scores, size=len(index), limit=max_per_video, min_score=least)
            found, found_scores = Group(index, segments, scores, decay=decay).take_best(floors)
            kept, kept_scores = np.append(kept, found), np.append(kept_scores, found_scores)
    return _first(kept, kept_scores, groups, limit=max_per_video)


def _similar_in_size(eligible: np.ndarray, groups: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Groups of eligible candidates' indices, those together whose sizes are within a factor of 2.

    Args:
        eligible: indices of candidates, (N,).
        groups: their groups, (N,).
    """
    order = groups.argsort(kind="stable")
    ordered, borders = eligible[order], np.flatnonzero(np.diff(groups[order])) + 1
    by_size: dict[int, list[np.ndarray]] = {}
    for first, last in itertools.pairwise([0, *borders.tolist(), len(ordered)]):
        if first < last:
            by_size.setdefault((last - first).bit_length(), []).append(ordered[first:last])
    for _, similar in sorted(by_size.items(), reverse=True):  # large groups raise the least score that counts soonest
        yield similar


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """A table of R groups' indices, (R, n), padded with -1."""
    table = np.full((len(rows), max(map(len, rows))), -1)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def _floors(kept_scores: np.ndarray, *, size: int, limit: int, min_score: np.float32) -> list[float]:
    """Least scores with which a group's candidates, one after the other, may be among the first `limit`.

    Its t-th candidate may not if limit - t others, kept of other groups, are better.
    """
    others = np.sort(kept_scores)[-limit:]
    free = min(size, limit - len(others))  # of the places; a limit may be larger than any number of candidates
    return [float(min_score)] * free + others[: size - free].tolist()


def _keep_best_of(
    table: Table, kept: np.ndarray, kept_scores: np.ndarray, *, limit: int, min_score: np.float32
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


def vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, thresh: float) -> np.ndarray:
    """Mean of the segments that overlap each kept one by at least `thresh`, weighted by original score, (M, 2).

    # differs: ActionFormer's code multiplies the weights by these overlaps, OpenTAD's and TriDet's does not.
    """
    voted = kept.copy()
    rows = max(1, _VOTES // max(1, len(segments)))
    start, end = segments.T
    for first in range(0, len(kept), rows):
        part = slice(first, first + rows)
        kept_start, kept_end = kept[part, :1], kept[part, 1:]
        overlap = (np.minimum(kept_end, end) - np.maximum(kept_start, start)).clip(min=0)  # (rows, N)
        union = (kept_end - kept_start) + (end - start) - overlap
        votes = (overlap >= thresh * union.clip(min=EPS)) * scores
        total = votes.sum(axis=1, keepdims=True)
        np.divide(votes @ segments, total, out=voted[part], where=total > 0)  # segments of length 0 get no votes
    return voted
