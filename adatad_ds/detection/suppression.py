"""Suppression of overlapping detections: Gaussian, linear, hard; per class or class-agnostic; segment voting.

Soft-NMS (arXiv 1704.04503). NumPy, no compiler: all classes advance together, one pick of each an iteration.

K groups (classes, or one), M candidates of the largest group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from adatad_ds.detection.decoding import Candidates

Method = Literal["gaussian", "linear", "hard"]
_EPS = np.float32(1e-6)  # seconds added to every duration, so that a segment of no length divides by something


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
    """Keep the best of overlapping candidates of one video, best first.

    Args:
        candidates: of all the video's windows.
        method: `gaussian` and `linear` lower the scores of what a pick overlaps, `hard` removes it.
        sigma: of `gaussian`: a score is multiplied by exp(-tIoU^2 / sigma).
        tiou: `linear` multiplies by 1 - tIoU, and `hard` removes, from this overlap on.
        min_score: what scores less is dropped.
        max_per_video: the most that are kept, of each class and altogether.
        per_class: whether only detections of the same class suppress each other.
        voting_thresh: class-agnostic only: each kept segment becomes the mean of the candidates that overlap it at
            least so much, weighted by score; 0: off.
    """
    if len(candidates) == 0:
        return candidates
    segments = candidates.segments_sec.numpy().astype(np.float32)
    scores = candidates.scores.numpy().astype(np.float32)
    labels = candidates.labels.numpy()
    kept, kept_scores = _pick(
        segments,
        scores,
        labels if per_class else np.zeros_like(labels),
        method=method,
        sigma=sigma,
        tiou=tiou,
        min_score=min_score,
        most=max_per_video,
    )
    order = np.argsort(-kept_scores, kind="stable")[:max_per_video]
    kept, kept_scores = kept[order], kept_scores[order]
    kept_segments = segments[kept]
    if not per_class and voting_thresh > 0:
        kept_segments = _vote(kept_segments, segments, scores, voting_thresh)
    return Candidates(
        segments_sec=torch.from_numpy(kept_segments),
        scores=torch.from_numpy(kept_scores),
        labels=torch.from_numpy(labels[kept]),
    )


def _pick(
    segments: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    method: Method,
    sigma: float,
    tiou: float,
    min_score: float,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the kept candidates and their lowered scores; each pick suppresses within its group."""
    rows, current = _padded_groups(scores, groups)  # (K, M): candidate indices, and scores with -1 where none is left
    start, end = segments[rows, 0], segments[rows, 1]
    length = end - start + _EPS
    if min_score > 0:
        current[current < min_score] = -1
    lines = np.arange(len(rows))
    kept: list[np.ndarray] = []
    kept_scores: list[np.ndarray] = []
    for _ in range(min(most, rows.shape[1])):
        best = current.argmax(axis=1)
        best_scores = current[lines, best]
        alive = best_scores >= 0
        if not alive.any():
            break
        if not alive.all():  # finished groups leave, so that later iterations are smaller
            rows, current, start, end, length = (array[alive] for array in (rows, current, start, end, length))
            best, best_scores, lines = best[alive], best_scores[alive], np.arange(len(rows))
        kept.append(rows[lines, best])
        kept_scores.append(best_scores)
        current[lines, best] = -1
        overlap = np.minimum(end, end[lines, best][:, None]) - np.maximum(start, start[lines, best][:, None])
        np.maximum(overlap, 0, out=overlap)
        overlap /= length + length[lines, best][:, None] - overlap  # now tIoU
        _lower(current, overlap, method=method, sigma=sigma, tiou=tiou)
        if min_score > 0:
            current[current < min_score] = -1
    return np.concatenate(kept or [rows[:0, 0]]), np.concatenate(kept_scores or [scores[:0]])


def _lower(scores: np.ndarray, overlap: np.ndarray, *, method: Method, sigma: float, tiou: float) -> None:
    """Multiply the scores of what is left (>= 0) in place; the marker -1 stays negative."""
    if method == "gaussian":
        np.multiply(overlap, overlap, out=overlap)
        overlap /= -sigma
        factor = np.exp(overlap, out=overlap)
        np.multiply(scores, factor, out=scores, where=scores > 0)
    elif method == "linear":
        np.multiply(scores, 1 - overlap, out=scores, where=(overlap >= tiou) & (scores > 0))
    else:
        scores[overlap >= tiou] = -1


def _padded_groups(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates by group, best first: indices (K, M), and scores (K, M) with -1 in the padding."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    members = [index[np.argsort(-scores[index], kind="stable")] for index in members]
    width = max(map(len, members))
    rows = np.zeros((len(members), width), dtype=np.int64)
    padded = np.full((len(members), width), -1, dtype=np.float32)
    for line, index in enumerate(members):
        rows[line, : len(index)] = index
        padded[line, : len(index)] = scores[index]
    return rows, padded


def _vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, thresh: float) -> np.ndarray:
    """Each kept segment as the score-weighted mean of all candidates that overlap it by `thresh` (box voting)."""
    overlap = np.minimum(kept[:, None, 1], segments[None, :, 1]) - np.maximum(kept[:, None, 0], segments[None, :, 0])
    np.maximum(overlap, 0, out=overlap)
    kept_length, length = kept[:, 1] - kept[:, 0], segments[:, 1] - segments[:, 0]
    union = kept_length[:, None] + length[None, :] - overlap
    weight = np.where(overlap >= thresh * np.maximum(union, _EPS), scores[None, :], 0)
    total = weight.sum(axis=1, keepdims=True)
    return np.where(total > 0, weight @ segments / np.where(total > 0, total, 1), kept).astype(np.float32)
