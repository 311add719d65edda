"""Score threshold for showing detections: a detector's operating point, found by evaluation.

N detections of all classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

SHOWN_SCORE = 0.3  # for a detector that was not evaluated


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The score threshold with the best F1 over the detections of all classes.

    Attributes:
        score: minimum score of a detection.
        f1: 2 * precision * recall / (precision + recall), from 0 to 1.
        precision: share of these detections that are correct.
        recall: share of the annotated segments that they find.
        tiou: minimum overlap of a correct detection.
    """

    score: float
    f1: float
    precision: float
    recall: float
    tiou: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Inverse of `to_dict`; None for None."""
        return None if values is None else cls(**{name: float(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, float]:
        """Attributes by name, JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"best F1 {100 * self.f1:.2f} % at tIoU {self.tiou:.2f}: detections of score {self.score:g} or more "
            f"(precision {100 * self.precision:.2f} %, recall {100 * self.recall:.2f} %)"
        )


@dataclass(frozen=True)
class ShownFrom:
    """Minimum score of shown detections, and the reason for it as text."""

    score: float
    reason: str

    @classmethod
    def choose(cls, wanted: float | None, known: OperatingPoint | None) -> Self:
        """The score given by the user, else that of the best F1, else `SHOWN_SCORE`."""
        if wanted is not None:
            return cls(wanted, "as requested")
        if known is not None:
            return cls(known.score, f"the best F1 in its evaluation, {100 * known.f1:.0f} %")
        return cls(SHOWN_SCORE, "the default: no evaluation has found a better one")

    def passes(self, record: Mapping[str, Any]) -> bool:
        """Whether a detection is shown."""
        return record["score"] >= self.score

    def summary(self, records: Sequence[Mapping[str, Any]]) -> str:
        """How many of a video's detections are shown; if none, the best score."""
        count = sum(map(self.passes, records))
        text = f"{count} of score {self.score:g} or more ({self.reason})"
        return text if count or not records else f"{text}; the best has {max(r['score'] for r in records):g}"


def best_operating_point(scores: np.ndarray, correct: np.ndarray, *, total: int, tiou: float) -> OperatingPoint | None:
    """The score of the best F1, on ties the highest; None if no detection is correct.

    Args:
        scores: (N,).
        correct: (N,) which of them are correct, matched by decreasing score.
        total: number of annotated segments.
        tiou: threshold at which they were matched.
    """
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], correct[order].cumsum()
    if not len(found) or not found[-1]:
        return None
    counted = np.arange(1, len(found) + 1)
    f1 = 2 * found / (counted + total)
    last_of_equals = np.append(scores[1:] < scores[:-1], True)  # a threshold includes all detections with that score
    best = int(np.argmax(np.where(last_of_equals, f1, -1.0)))
    return OperatingPoint(
        score=float(scores[best]),
        f1=float(f1[best]),
        precision=float(found[best] / counted[best]),
        recall=float(found[best] / total),
        tiou=tiou,
    )
