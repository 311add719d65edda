"""Video-level class scores of an external classifier, which assign classes to a class-agnostic detector's segments.

Customary on ActivityNet and HACS: the detector finds actions of any class, and each segment gets the best classes of
its whole video. N detections, K classes.

File layouts, and how the published code (OpenTAD) fuses a detection's score s with a class's score c:
    cuhk: {"results": {video: [K scores]}, "class": [K names]}, CUHK's of the ActivityNet challenge 2017, videos without
        their "v_"; s * c.
    plain: the same or with "classes", or {"results": {video: [{"label", "score"}, ...]}}; sqrt(s * c).
    tcanet: as cuhk, but [[K logits]] (HACS); s * 2 softmax(logits).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from adatad_ds.data.video_names import VideoNames
from adatad_ds.detection.decoding import Candidates
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.system.json_text import read_json
from adatad_ds.system.unicode_text import TextLookup

Layout = Literal["cuhk", "plain", "tcanet"]


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """Class scores of each video.

    Attributes:
        classes: K names, in the annotations' Unicode form.
        scores: video -> (K,) float64, each >= 0.
        geometric: fuse by the square root of the product with the detection's score, instead of the product.
        topk: classes per detection.
    """

    classes: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    geometric: bool
    topk: int


def read_video_scores(
    path: str | Path, *, layout: Layout, topk: int, videos: Sequence[str], labels: Sequence[str]
) -> VideoScores:
    """Read a classifier's scores of videos.

    Args:
        path: the JSON file.
        layout: one of the layouts above.
        topk: classes per detection.
        videos: names of the wanted videos, with or without "v_" and extension.
        labels: annotated labels, all of which must be classes of the file.

    Raises:
        DataError: unreadable, of another layout, a missing video, or an annotated label that is not among its classes.
    """
    content = _read(path)
    results, names = content["results"], content.get("class", content.get("classes"))
    known = VideoNames(results)
    found = {video: results[name] for video in videos if (name := known.find(video)) is not None}
    missing = [video for video in videos if video not in found]
    if missing:
        raise DataError(
            f"test.external_scores: {path} has no scores of {len(missing)} of {len(videos)} videos: "
            f"{summarize_list(missing)}"
        )
    if names is None and layout == "plain":
        names = sorted({record["label"] for entry in results.values() for record in entry if _is_record(record)})
    if not names:
        raise DataError(f'test.external_scores: {path} does not name its classes; it must hold "class": [names]')
    annotated = TextLookup(labels)
    classes = tuple(annotated.find(name) or name for name in map(str, names))
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise DataError(f"test.external_scores: {path} names classes twice: {summarize_list(twice)}")
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise DataError(
            f"test.external_scores: {len(unknown)} annotated labels are not among the classes of {path}: "
            f"{summarize_list(unknown)}. Its {len(classes)} classes: {summarize_list(classes)}"
        )
    parsed = {video: _scores(entry, classes, layout) for video, entry in found.items()}
    faulty = [video for video, scores in parsed.items() if scores is None]
    if faulty:
        expected = {
            "cuhk": f"{len(classes)} numbers >= 0",
            "plain": f'{len(classes)} numbers >= 0, or records of "label", a class, and "score"',
            "tcanet": f"one list of {len(classes)} numbers",
        }
        raise DataError(
            f"test.external_scores: {path} is not in test.external_layout={layout}, with {expected[layout]} per video; "
            f"different in {summarize_list(faulty)}"
        )
    return VideoScores(
        classes=classes,
        scores={video: scores for video, scores in parsed.items() if scores is not None},
        geometric=layout == "plain",
        topk=topk,
    )


def fuse(detections: Candidates, video: str, external: VideoScores) -> Candidates:
    """Replace each class-agnostic detection by `topk` ones, of its video's best classes.

    Args:
        detections: N of one video; their labels are ignored.
        video: its name.
        external: the classifier's scores.

    Returns:
        N * min(topk, K) detections, by decreasing score, on ties the better class first; labels index
        `external.classes`.
    """
    scores = external.scores[video]
    best = np.argsort(-scores, kind="stable")[: external.topk]
    fused = torch.from_numpy(scores[best])[:, None] * detections.scores.double()[None, :]  # (topk, N)
    fused = (fused.sqrt() if external.geometric else fused).flatten().float()
    order = fused.sort(descending=True, stable=True).indices
    labels = torch.from_numpy(best).repeat_interleave(len(detections))
    return Candidates(
        segments_sec=detections.segments_sec.repeat(len(best), 1)[order], scores=fused[order], labels=labels[order]
    )


def _read(path: str | Path) -> Mapping[str, Any]:
    try:
        content = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"test.external_scores: cannot read {str(path)!r}: {error}. It assigns classes to segments; without it "
            "(--set test.external_scores=) class-agnostic segments are evaluated"
        ) from error
    results = content.get("results") if isinstance(content, Mapping) else None
    if not isinstance(results, Mapping) or not all(isinstance(entry, list) for entry in results.values()):
        raise DataError(f'test.external_scores: {path} must hold {{"results": {{VIDEO: [scores]}}, "class": [names]}}')
    names = content.get("class", content.get("classes", []))
    if not isinstance(names, list):
        raise DataError(f'test.external_scores: "class" of {path} must be a list of names, not {names!r:.60}')
    return content


def _scores(entry: list[Any], classes: Sequence[str], layout: Layout) -> np.ndarray | None:
    """A video's scores, (K,); None if they are not in this layout."""
    if layout == "plain" and all(map(_is_record, entry)):
        known = TextLookup(classes)
        by_label = {known.find(record["label"]): record["score"] for record in entry}
        if None in by_label:
            return None
        entry = [by_label.get(name, 0.0) for name in classes]
    if layout == "tcanet":
        entry = entry[0] if len(entry) == 1 and isinstance(entry[0], list) else []
    if len(entry) != len(classes) or not all(isinstance(value, int | float) for value in entry):
        return None
    scores = np.array(entry, dtype=np.float64)
    if layout == "tcanet":
        scores = np.exp(scores - scores.max())
        scores = 2 * scores / scores.sum()
    return scores if np.isfinite(scores).all() and (scores >= 0).all() else None


def _is_record(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("label"), str) and "score" in value
