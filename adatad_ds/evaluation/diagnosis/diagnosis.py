"""Error analysis of detections: false positives by type, missed segments, and the mAP gained by fixing each.

After DETAD (Alwassel, Caba Heilbron, Escorcia, Ghanem: Diagnosing Error in Temporal Action Detectors, ECCV 2018);
docs/guides/errors.md says where this differs. N detections, G ground-truth segments, K classes, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from adatad_ds.data.annotations import Video
from adatad_ds.evaluation.diagnosis.matching import (
    Detections,
    Kind,
    Nearest,
    Truths,
    by_class,
    kinds_at,
    match,
    missed_segments,
    read_detections,
    read_truths,
)
from adatad_ds.evaluation.metrics import Metrics, evaluate_detections, interpolated_precision

BANDS = 10  # of the profile: a class's G best detections, the next G, ...
MIN_PRECISION = 0.05  # a segment found only where the class's precision is at most this counts as missed
MISPLACED = (Kind.WRONG_LABEL, Kind.LOCALISATION, Kind.CONFUSION)  # on an existing segment: can be corrected
SIZES = ("XS", "S", "M", "L", "XL")


@dataclass(frozen=True)
class Bins:
    """Upper edges of the sizes XS, S, M and L; the rest is XL, or L without an edge for L."""

    coverage: tuple[float, ...]
    length_sec: tuple[float, ...]
    instances: tuple[int, ...]


BINS: Mapping[str, Bins] = {  # DETAD's
    "thumos14": Bins(coverage=(0.02, 0.04, 0.06, 0.08), length_sec=(3, 6, 12, 18), instances=(1, 40, 80)),
    "activitynet": Bins(coverage=(0.2, 0.4, 0.6, 0.8), length_sec=(30, 60, 120, 180), instances=(1, 4, 8)),
}


@dataclass(frozen=True)
class MissedBin:
    """Segments of one size: their number, and how many of them are missed."""

    characteristic: str
    size: str
    range: str
    ground_truth: int
    missed: int


@dataclass(frozen=True)
class Gain:
    """mAP gained by fixing one type of error, (T,) each.

    Attributes:
        name: the type of error.
        detections: number of such detections at the profile's threshold; for missed segments, their number.
        removed: gain from removing these detections; None for missed segments.
        fixed: gain from correcting their labels and segments; duplicates on a segment, and detections without an
            action, are removed.
    """

    name: str
    detections: int
    removed: np.ndarray | None
    fixed: np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """Results of `diagnose`.

    Attributes:
        metrics: metrics of the detections, from `evaluate_detections`.
        tiou: threshold of `kinds` and `missed`.
        min_precision: see MIN_PRECISION.
        truths: the ground truth.
        detections: detections of its videos and classes.
        nearest: nearest segment of each detection.
        kinds: (N,) Kind of each detection.
        missed: (G,) whether a segment is missed.
        gains: gain for each kind of false positive, for all of them, and for missed segments.
    """

    metrics: Metrics
    tiou: float
    min_precision: float
    truths: Truths
    detections: Detections
    nearest: Nearest
    kinds: np.ndarray
    missed: np.ndarray
    gains: tuple[Gain, ...]

    def bands(self) -> np.ndarray:
        """Each detection's band within its class, 0 for the G best, (N,)."""
        first = np.searchsorted(self.detections.label, np.arange(len(self.metrics.classes)))
        rank = np.arange(len(self.kinds)) - first[self.detections.label]
        return rank // self.metrics.truths[self.detections.label]

    def profile(self) -> np.ndarray:
        """Detections by band and kind, (BANDS, 6)."""
        bands = self.bands()
        return _crosstab(bands[bands < BANDS], self.kinds[bands < BANDS], shape=(BANDS, len(Kind)))

    def class_kinds(self) -> np.ndarray:
        """Each class's G best detections by kind, (K, 6)."""
        best = self.bands() == 0
        shape = (len(self.metrics.classes), len(Kind))
        return _crosstab(self.detections.label[best], self.kinds[best], shape=shape)

    def class_missed(self) -> np.ndarray:
        """Missed segments of each class, (K,)."""
        return np.bincount(self.truths.label[self.missed], minlength=len(self.metrics.classes))

    def mistaken(self) -> list[tuple[str, str, int, int]]:
        """Pairs of confused labels, the most common first: detected, annotated, counts among the G best and the
        BANDS * G best detections of a class."""
        names, bands = self.metrics.classes, self.bands()
        mixed = np.isin(self.kinds, (Kind.WRONG_LABEL, Kind.CONFUSION))
        first, all_of = (
            _crosstab(
                self.detections.label[mixed & (bands < most)],
                self.truths.label[self.nearest.truth[mixed & (bands < most)]],
                shape=(len(names), len(names)),
            )
            for most in (1, BANDS)
        )
        order = np.lexsort((-all_of.ravel(), -first.ravel()))[: np.count_nonzero(all_of)]
        pairs = zip(*np.unravel_index(order, all_of.shape), strict=True)
        return [(names[said], names[true], int(first[said, true]), int(all_of[said, true])) for said, true in pairs]

    def missed_by(self, bins: Bins) -> list[MissedBin]:
        """Ground truth and missed segments by coverage, length and number of instances in the video."""
        rows = []
        for name, values, edges, unit, scale in (
            ("coverage", self.truths.coverage, bins.coverage, " %", 100),
            ("length", self.truths.length_sec, bins.length_sec, " s", 1),
            ("instances", self.truths.instances, bins.instances, "", 1),
        ):
            size = np.searchsorted(edges, values, side="left")  # an edge belongs to the smaller size
            all_of = np.bincount(size, minlength=len(edges) + 1)
            missed = np.bincount(size[self.missed], minlength=len(edges) + 1)
            ranges = _ranges(edges, unit, scale, whole=name == "instances")
            parts = zip(SIZES[: len(edges) + 1], ranges, all_of, missed, strict=True)
            rows += [MissedBin(name, of, range_, int(total), int(gone)) for of, range_, total, gone in parts]
        return rows


def suitable_bins(truths: Truths) -> str:
    """Name of the bins in BINS to use: ActivityNet's, unless its XS would hold most segments."""
    return "thumos14" if np.median(truths.length_sec) <= BINS["activitynet"].length_sec[0] else "activitynet"


def diagnose(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    videos: Sequence[Video],
    *,
    average_tiou: Sequence[float],
    tiou: float = 0.5,
    min_precision: float = MIN_PRECISION,
) -> Diagnosis:
    """Classify detections and ground truth by error type.

    Args:
        results: video -> records with `segment` (start s, end s), `label`, `score`.
        videos: all evaluated videos, with their annotations.
        average_tiou: thresholds that mAP and its gains are averaged over.
        tiou: threshold for the kinds of detections.
        min_precision: see MIN_PRECISION; 0: any detection counts.

    Raises:
        DataError: there is no ground truth at all.
    """
    labelled = {v.name: [(action.start_sec, action.end_sec, action.label) for action in v.actions] for v in videos}
    metrics = evaluate_detections(results, labelled, tiou=average_tiou)
    truths = read_truths(videos, metrics.classes)
    detections = read_detections(results, videos, metrics.classes)
    nearest, taken = match(detections, truths, thresholds=sorted({*average_tiou, tiou}))
    kinds = {threshold: kinds_at(nearest, line, threshold) for threshold, line in taken.items()}
    missed = {
        threshold: missed_segments(detections, truths, line, metrics.truths, min_precision)
        for threshold, line in taken.items()
    }
    after = _Mending(
        detections=detections, truths=truths, nearest=nearest, totals=metrics.truths, place=detections.places()
    )
    return Diagnosis(
        metrics=metrics,
        tiou=tiou,
        min_precision=min_precision,
        truths=truths,
        detections=detections,
        nearest=nearest,
        kinds=kinds[tiou],
        missed=missed[tiou],
        gains=_gains(after, metrics, kinds, taken, missed, tiou=tiou),
    )


@dataclass(frozen=True)
class _Mending:
    """mAP after fixing some errors, with all other detections unchanged.

    Attributes:
        detections: all detections.
        truths: the ground truth.
        nearest: nearest segment of each detection.
        totals: segments of each class, (K,).
        place: rank of each detection among those of all classes by decreasing score, (N,).
    """

    detections: Detections
    truths: Truths
    nearest: Nearest
    totals: np.ndarray
    place: np.ndarray

    def removal(self, kinds: np.ndarray, which: Sequence[Kind]) -> float:
        """mAP without detections of these kinds."""
        kept = ~np.isin(kinds, which)
        return self._mean_ap(self.detections.label[kept], kinds[kept] == Kind.TRUE_POSITIVE)

    def fixing(self, kinds: np.ndarray, taken: np.ndarray, which: Sequence[Kind]) -> float:
        """mAP with the best detection of these kinds on each unmatched segment corrected, and the others removed."""
        wrong = np.isin(kinds, which)
        free = np.ones(len(self.truths.label), dtype=bool)
        free[taken[taken >= 0]] = False
        candidates = np.flatnonzero(wrong & np.isin(kinds, MISPLACED))
        candidates = candidates[free[self.nearest.truth[candidates]]]
        candidates = candidates[np.argsort(self.place[candidates])]
        targets, first = np.unique(self.nearest.truth[candidates], return_index=True)
        rows = np.concatenate([np.flatnonzero(~wrong), candidates[first]])
        label = np.concatenate([self.detections.label[~wrong], self.truths.label[targets]])
        correct = np.concatenate([taken[~wrong] >= 0, np.ones(len(targets), dtype=bool)])
        order = np.argsort(label * len(self.place) + self.place[rows], kind="stable")  # quick: almost in order
        return self._mean_ap(label[order], correct[order])

    def finding(self, taken: np.ndarray, missed: np.ndarray) -> float:
        """mAP with the missed segments found exactly, each ranked before all other detections of its class."""
        correct = np.concatenate([np.ones(missed.sum(), dtype=bool), (taken >= 0) & ~missed[taken]])
        label = np.concatenate([self.truths.label[missed], self.detections.label])
        order = np.argsort(label, kind="stable")
        return self._mean_ap(label[order], correct[order])

    def _mean_ap(self, label: np.ndarray, correct: np.ndarray) -> float:
        parts = zip(by_class(label, len(self.totals)), self.totals, strict=True)
        return float(np.mean([interpolated_precision(correct[None, rows], total)[0] for rows, total in parts]))


def _gains(
    after: _Mending,
    metrics: Metrics,
    kinds: Mapping[float, np.ndarray],
    taken: Mapping[float, np.ndarray],
    missed: Mapping[float, np.ndarray],
    *,
    tiou: float,
) -> tuple[Gain, ...]:
    """Gains for each kind of false positive, for all, and for missed segments; the mappings are by threshold."""
    false = [kind for kind in Kind if kind != Kind.TRUE_POSITIVE]
    wrong = {kind.title: [kind] for kind in false} | {"all false positives": false}

    def gain(mean_ap: list[float]) -> np.ndarray:
        return (np.array(mean_ap) - metrics.map_by_tiou).round(12)

    gains = [
        Gain(
            name=name,
            detections=int(np.isin(kinds[tiou], which).sum()),
            removed=gain([after.removal(kinds[t], which) for t in metrics.tiou]),
            fixed=gain([after.fixing(kinds[t], taken[t], which) for t in metrics.tiou]),
        )
        for name, which in wrong.items()
    ]
    found = gain([after.finding(taken[t], missed[t]) for t in metrics.tiou])
    return (*gains, Gain(name="missed segments", detections=int(missed[tiou].sum()), removed=None, fixed=found))


def _ranges(edges: Sequence[float], unit: str, scale: float, *, whole: bool) -> list[str]:
    """Bins as text: up to the first edge, from one edge to the next, above the last."""
    shown = [round(edge * scale, 6) for edge in edges]
    between = [f"{low + 1:g} to {high:g}" if whole else f"{low:g} to {high:g}{unit}" for low, high in pairwise(shown)]
    return [f"up to {shown[0]:g}{unit}" if not whole else f"{shown[0]:g}", *between, f"over {shown[-1]:g}{unit}"]


def _crosstab(first: np.ndarray, second: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Count how often each pair occurs."""
    return np.bincount(first * shape[1] + second, minlength=shape[0] * shape[1]).reshape(shape)
