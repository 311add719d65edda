"""Ensembles: candidates of several detectors together, before they are suppressed.

Detectors may differ in backbone, head and windows. `inference/averaged.py` averages their outputs at each point
instead, as OpenTAD's `fuse_list`, which needs the same points and keeps no candidate's own boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from adatad_ds.detection.decoding import Candidates, merge_candidates
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.evaluation.candidates_file import SavedCandidates, VideoCandidates
from adatad_ds.system.unicode_text import TextLookup

MOST_DIFFERENT = 0.02  # share by which two detectors may differ in a video's length


def fuse_candidates(parts: Sequence[SavedCandidates], *, weights: Sequence[float] = ()) -> SavedCandidates:
    """All detectors' candidates of each video, with the settings and the order of classes of the first.

    Args:
        parts: of each detector; a video that only some have keeps theirs.
        weights: factors on the detectors' scores; (): 1 each.

    Raises:
        DataError: other classes, no video in common, or other videos of the same name.
    """
    first = parts[0]
    weights = weights or [1.0] * len(parts)
    for part in parts[1:]:
        if other := sorted(set(_as_in(first, part)) ^ set(first.classes)):
            raise DataError(
                f"{part.name} and {first.name} cannot be fused, as they have different classes: "
                f"{summarize_list(other, limit=5, separator=', ')}"
            )
        if first.videos and not part.videos.keys() & first.videos.keys():
            raise DataError(f"{part.name} and {first.name} cannot be fused, as they have no video in common")
    fused: dict[str, VideoCandidates] = {}
    for part, weight in zip(parts, weights, strict=True):
        labels = torch.tensor([first.classes.index(name) for name in _as_in(first, part)], dtype=torch.int64)
        for video, found in part.videos.items():
            candidates = Candidates(
                segments_sec=found.candidates.segments_sec,
                scores=found.candidates.scores * weight,
                labels=labels[found.candidates.labels],
            )
            known = fused.get(video)
            if known is None:
                fused[video] = replace(found, candidates=candidates)
                continue
            if abs(found.duration_sec - known.duration_sec) > MOST_DIFFERENT * known.duration_sec:
                raise DataError(
                    f"{video} lasts {known.duration_sec:.1f} s for {first.name}, but {found.duration_sec:.1f} s for "
                    f"{part.name}: these are different videos"
                )
            damage = "; ".join(dict.fromkeys(text for text in (known.damage, found.damage) if text))
            fused[video] = replace(known, candidates=merge_candidates([known.candidates, candidates]), damage=damage)
    name = " + ".join(part.name for part in parts)
    return SavedCandidates(name=name, config=first.config, classes=first.classes, videos=fused)


def _as_in(first: SavedCandidates, part: SavedCandidates) -> list[str]:
    """The classes of a part, in the Unicode form of the first's."""
    known = TextLookup(first.classes)
    return [known.find(name) or name for name in part.classes]


def describe_fusion(parts: Sequence[SavedCandidates]) -> list[str]:
    """What is said of detectors that were fused: which videos some of them lack."""
    everywhere = set.intersection(*(set(part.videos) for part in parts))
    lines = []
    for part in parts:
        if alone := sorted(set(part.videos) - everywhere):
            lines.append(
                f"{part.name} has {len(alone)} videos that not all others have: "
                f"{summarize_list(alone, limit=5, separator=', ')}"
            )
    return lines
