"""Suppression of a stream's candidates as they come: which detections no later window can change.

Suppression only ever lowers scores, and a candidate's by those kept before it, whose scores are higher. So a detection
of final score s depends on candidates of its class that overlap it and score at least s, and these again on such
candidates. Once none of them can overlap a candidate of a later window, the detection is that of the whole video; and
what scores less than the least score that is told can be left out from the beginning.

N candidates, M detections told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adatad_ds.detection.decoding import Candidates
from adatad_ds.detection.suppression import vote

Keep = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # see suppression.keep_best

_AT_ONCE = 256  # candidates compared with all others at a time


@dataclass(frozen=True)
class Settled:
    """Detections that are told now, by start.

    Attributes:
        detections: M of them, with their scores after suppression.
        final: (M,) bool, whether suppression of the whole video gives the same.
    """

    detections: Candidates
    final: torch.Tensor


class Settling:
    """Candidates of a stream that are not settled yet.

    `late` counts candidates that came too late to change what they should have changed.

    Args:
        keep: indices and scores that suppression keeps of segments (N, 2), scores (N,) and labels (N,), down to
            `least_score`.
        least_score: detections below are not told.
        per_class: candidates of different classes do not compete.
        voting_thresh: see `suppression.suppress`.
        max_delay_sec: a candidate that has been unsettled for so long is told as it is then, and is not final.
        begin_sec: segments are clipped to begin here at the earliest.
    """

    def __init__(
        self,
        *,
        keep: Keep,
        least_score: float,
        per_class: bool,
        voting_thresh: float,
        max_delay_sec: float,
        begin_sec: float,
    ) -> None:
        self._keep = keep
        self._least, self._per_class = np.float32(least_score), per_class
        self._voting_thresh = 0.0 if per_class else voting_thresh
        self._max_delay_sec, self._begin_sec = max_delay_sec, begin_sec
        self._horizon_sec = -np.inf
        self.late = 0
        self._segments = np.empty((0, 2), np.float32)
        self._scores, self._labels = np.empty(0, np.float32), np.empty(0, np.int64)
        self._told, self._since_sec = np.empty(0, bool), np.empty(0)
        # by class: ends of what is told or forgotten; what begins before the other may differ from the whole video's
        self._decided_until: dict[int, float] = {}
        self._doubtful_until: dict[int, float] = {}

    def __len__(self) -> int:
        """Candidates held."""
        return len(self._scores)

    def add(self, found: Candidates, *, now_sec: float, horizon_sec: float) -> Settled:
        """Add a window's candidates, and return what is settled now.

        Args:
            found: the window's, in the order of windows.
            now_sec: the window's end.
            horizon_sec: no candidate of a later window is expected to begin before; "final" means that none does.
                One that does, and begins before the end of what is already told, is counted as `late`; neither it nor
                what it overlaps from then on is final.
        """
        segments = found.segments_sec.numpy().astype(np.float32).clip(min=self._begin_sec)
        scores, labels = found.scores.numpy().astype(np.float32), found.labels.numpy()
        worth = scores >= (0 if self._voting_thresh else self._least)
        segments, scores, labels = segments[worth], scores[worth], labels[worth]
        decided = np.array([self._decided_until.get(group, -np.inf) for group in self._group(labels).tolist()])
        late = (scores >= self._least) & (segments[:, 0] < decided)
        self.late += int(late.sum())
        _raise(self._doubtful_until, self._group(labels[late]), segments[late, 1])
        self._segments = np.concatenate([self._segments, segments])
        self._scores = np.concatenate([self._scores, scores])
        self._labels = np.concatenate([self._labels, labels])
        self._told = np.concatenate([self._told, np.zeros(len(scores), bool)])
        self._since_sec = np.concatenate([self._since_sec, np.full(len(scores), now_sec)])
        self._horizon_sec = max(self._horizon_sec, horizon_sec)
        return self._settle(old=self._since_sec <= now_sec - self._max_delay_sec)

    def finish(self, *, end_sec: float) -> Settled:
        """The stream has ended at `end_sec`: all that is left, clipped to it."""
        self._segments = self._segments.clip(max=end_sec)
        self._horizon_sec = np.inf
        return self._settle(old=np.zeros(len(self), bool))

    def unsettled(self) -> Candidates:
        """What would be told if the stream ended now, by decreasing score."""
        strong = np.flatnonzero(self._scores >= self._least)
        kept, scores = self._keep(self._segments[strong], self._scores[strong], self._labels[strong])
        fresh = ~self._told[strong[kept]]
        return self._candidates(strong[kept][fresh], scores[fresh])

    def _settle(self, *, old: np.ndarray) -> Settled:
        strong = np.flatnonzero(self._scores >= self._least)
        kept, kept_scores = self._keep(self._segments[strong], self._scores[strong], self._labels[strong])
        kept = strong[kept]
        final_scores = np.full(len(self), self._least)
        final_scores[kept] = kept_scores
        open_ = self._may_change(final_scores)
        ready = ~self._told[kept] & (~open_ | old)[kept]
        told, scores = kept[ready], kept_scores[ready]
        doubtful = [self._doubtful_until.get(group, -np.inf) for group in self._group(self._labels[told]).tolist()]
        final = ~open_[told] & (self._segments[told, 0] >= np.array(doubtful))
        detections = self._candidates(told, scores)
        self._told[told] = True
        self._forget(open_=open_, old=old)
        order = np.argsort(detections.segments_sec[:, 0].numpy(), kind="stable")
        return Settled(
            Candidates(*(part[order] for part in (detections.segments_sec, detections.scores, detections.labels))),
            torch.from_numpy(final[order]),
        )

    def _may_change(self, final_scores: np.ndarray) -> np.ndarray:
        """Which candidates (N,) later windows may change: those past the horizon, and what depends on such."""
        start, end = self._segments.T
        strong, groups = self._scores >= self._least, self._group(self._labels)
        changes = strong & (end > self._horizon_sec)
        front = np.flatnonzero(changes)
        while len(front):
            part, front = front[:_AT_ONCE], front[_AT_ONCE:]
            touched = (np.minimum(end, end[part, None]) > np.maximum(start, start[part, None])) & strong & ~changes
            touched &= (groups == groups[part, None]) & (self._scores[part, None] >= final_scores)
            new = np.flatnonzero(touched.any(axis=0))
            changes[new] = True
            front = np.concatenate([front, new])
        return changes

    def _forget(self, *, open_: np.ndarray, old: np.ndarray) -> None:
        """Drop what lies before all that may change and all that may come; and the old, which others may miss."""
        groups, ends = self._group(self._labels), self._segments[:, 1]
        frontier = np.full(len(self), self._horizon_sec)
        for group in np.unique(groups):
            own = groups == group
            frontier[own] = min(self._segments[own & open_ & ~old, 0].min(initial=np.inf), self._horizon_sec)
        strong = self._scores >= self._least
        missed, dropped = old & strong & (ends > frontier), old | (ends <= frontier)
        _raise(self._doubtful_until, groups[missed], ends[missed])
        decided = strong & (self._told | dropped)
        _raise(self._decided_until, groups[decided], ends[decided])
        kept = ~dropped
        self._segments, self._scores, self._labels = self._segments[kept], self._scores[kept], self._labels[kept]
        self._told, self._since_sec = self._told[kept], self._since_sec[kept]

    def _group(self, labels: np.ndarray) -> np.ndarray:
        """Which candidates compete, by their labels."""
        return labels if self._per_class else np.zeros_like(labels)

    def _candidates(self, index: np.ndarray, scores: np.ndarray) -> Candidates:
        segments = self._segments[index]
        if self._voting_thresh:
            segments = vote(segments, self._segments, self._scores, self._voting_thresh)
        return Candidates(torch.from_numpy(segments), torch.from_numpy(scores), torch.from_numpy(self._labels[index]))


def _raise(until: dict[int, float], groups: np.ndarray, ends: np.ndarray) -> None:
    """Move each group's time on to the latest of these ends."""
    for group, end in zip(groups.tolist(), ends.tolist(), strict=True):
        until[group] = max(until.get(group, -np.inf), end)
