"""Submission files of challenges: EPIC-Kitchens-100 action detection, and Ego4D moment queries.

Formats as read by the challenges' evaluation code: github.com/epic-kitchens/C2-Action-Detection (version "0.2", 97
verbs and 300 nouns by class id), github.com/EGO4D/episodic-memory, folder MQ (version "1.0").
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adatad_ds.data.video_names import VideoNames
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.evaluation.detections_file import read_results

VERBS, NOUNS = 97, 300  # classes of EPIC-Kitchens-100
EPIC_MEMBER = "test.json"  # name that the server expects in the zip
SUPERVISION_LEVELS = range(6)  # github.com/epic-kitchens/sls

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # video -> records of segment, label, score


@dataclass(frozen=True, kw_only=True)
class ActionPairing:
    """How verbs and nouns are combined into actions.

    AdaTAD's authors combine the two detectors at every point: over its 10 best verbs and nouns, the score is the square
    root of the product, the segment the mean. Here detections have been suppressed already, so a verb is combined with
    the nouns that overlap it.

    Attributes:
        tiou: minimum overlap of a verb's and a noun's segment.
        nouns_per_verb: nouns combined with each verb detection, those of the best joint score.
        verb_weight: w of verb^w * noun^(1-w); 0.5 is the square root of the product.
        sigma: sigma of the Gaussian suppression of equal actions.
        min_score: actions below are dropped.
        max_per_video: maximum number of actions per video.
    """

    tiou: float = 0.5
    nouns_per_verb: int = 10
    verb_weight: float = 0.5
    sigma: float = 0.4
    min_score: float = 0.001
    max_per_video: int = 30_000


def epic_submission(
    verbs: Results,
    nouns: Results,
    *,
    verb_ids: Mapping[str, int],
    noun_ids: Mapping[str, int],
    pairing: ActionPairing,
    sls_pt: int,
    sls_tl: int,
    sls_td: int,
) -> dict[str, Any]:
    """The test.json of EPIC-Kitchens-100's action detection challenge.

    Args:
        verbs: detections of the verb run.
        nouns: detections of the noun run, in the same videos.
        verb_ids: class id by label, for labels that do not contain it; see `read_class_ids`.
        noun_ids: the same for nouns.
        pairing: how both are combined into actions.
        sls_pt: supervision level of pretraining, 0 to 5.
        sls_tl: supervision level of training labels, 0 to 5.
        sls_td: supervision level of training data, 0 to 5.

    Raises:
        DataError: different videos, labels without a class id, or invalid levels.
    """
    levels = {"sls_pt": sls_pt, "sls_tl": sls_tl, "sls_td": sls_td}
    if wrong := [f"{name} = {level}" for name, level in levels.items() if level not in SUPERVISION_LEVELS]:
        raise DataError(f"supervision levels must be 0 to 5, not {', '.join(wrong)}")
    if differing := sorted(set(verbs) ^ set(nouns)):
        raise DataError(
            f"verb and noun detections are for different videos; only one file has {summarize_list(differing)}"
        )
    verb_of = _class_ids(verbs, verb_ids, kind="verb", most=VERBS)
    noun_of = _class_ids(nouns, noun_ids, kind="noun", most=NOUNS)
    results = {video: _actions(verbs[video], nouns[video], verb_of, noun_of, pairing) for video in verbs}
    return {"version": "0.2", "challenge": "action_detection", **levels, "results": results}


def ego4d_submission(detections: Results, retrievals: Results) -> dict[str, Any]:
    """The submission of Ego4D's moment queries challenge.

    Args:
        detections: clip -> records, for mAP.
        retrievals: the same for Recall@kx; usually the same candidates with a smaller sigma (0.7 instead of 2.0), so
            that near-duplicates do not fill the top ranks.

    Raises:
        DataError: they are of different clips.
    """
    if differing := sorted(set(detections) ^ set(retrievals)):
        raise DataError(
            f"detections and retrievals are for different clips; only one file has {summarize_list(differing)}"
        )
    return {
        "version": "1.0",
        "challenge": "ego4d_moment_queries",
        "detect_results": {clip: _by_score(records) for clip, records in detections.items()},
        "retrieve_results": {clip: _by_score(records) for clip, records in retrievals.items()},
    }


def of_test_videos(results: Results, names: Sequence[str]) -> tuple[dict[str, Sequence[Mapping[str, Any]]], list[str]]:
    """Detections of a challenge's test videos, under the challenge's names and in its order.

    Args:
        results: detections, by names that may have a file extension.
        names: names of all test videos.

    Returns:
        The detections, empty for videos missing in `results`; and the names of these videos.

    Raises:
        DataError: detections of other videos, or of one under two names.
    """
    known = VideoNames(names)
    named = {video: known.find(video) for video in results}
    if others := [video for video, name in named.items() if name is None]:
        raise DataError(
            f"{len(others)} of {len(results)} videos with detections are not in the challenge's test file: "
            f"{summarize_list(others)}. "
            "Evaluate its subset: adatad-ds prepare-data --with-test, then --set data.test_subset=testing"
        )
    if twice := [str(name) for name, count in Counter(named.values()).items() if count > 1]:
        raise DataError(f"the detections name these videos in two ways: {summarize_list(twice)}. Merge them")
    found = {named[video]: records for video, records in results.items()}
    return {name: found.get(name, []) for name in names}, [name for name in names if name not in found]


def read_detections(path: Path, test_videos: Sequence[str] | None, *, report: Callable[[str], None]) -> Results:
    """Detections of a file; where the challenge's test videos are known, of exactly these.

    Args:
        path: detections.json of an evaluation.
        test_videos: the challenge's; None: whatever the file has.
        report: is told of test videos that the file lacks.

    Raises:
        DataError: no detections, or of other videos.
    """
    results = read_results(path)
    if test_videos is None:
        return results
    found, absent = of_test_videos(results, test_videos)
    if absent:
        report(
            f"note: {path} lacks {len(absent)} of {len(test_videos)} test videos, which get none: "
            f"{summarize_list(absent)}"
        )
    return found


def write_submission(path: Path, submission: Mapping[str, Any]) -> None:
    """Write as JSON or, if the path ends in `.zip`, as a zip of test.json for EPIC-Kitchens' server."""
    text = json.dumps(submission)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(EPIC_MEMBER, text)
    else:
        path.write_text(text, encoding="utf-8")


def read_class_ids(path: Path) -> dict[str, int]:
    """Class ids by name from EPIC_100_verb_classes.csv or EPIC_100_noun_classes.csv.

    Raises:
        DataError: it lacks the columns `id` and `key`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row["key"]: int(row["id"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a table of classes with the columns id and key: {error!r}") from error


def _class_ids(results: Results, ids: Mapping[str, int], *, kind: str, most: int) -> dict[str, int]:
    """The class id of every label: from `ids`, else the number at its end (12, id_012, verb_12)."""
    found, unknown = {}, []
    for label in sorted({record["label"] for records in results.values() for record in records}):
        number = re.fullmatch(rf"(?:(?:id|{kind})_)?(\d+)", label)
        index = ids.get(label, int(number[1]) if number else -1)
        if 0 <= index < most:
            found[label] = index
        else:
            unknown.append(label)
    if unknown:
        raise DataError(
            f"{len(unknown)} labels of the {kind} detections are not class ids from 0 to {most - 1}: "
            f"{summarize_list(unknown)}. "
            f"Give EPIC_100_{kind}_classes.csv with --{kind}-classes"
        )
    return found


def _actions(
    verbs: Sequence[Mapping[str, Any]],
    nouns: Sequence[Mapping[str, Any]],
    verb_of: Mapping[str, int],
    noun_of: Mapping[str, int],
    pairing: ActionPairing,
) -> list[dict[str, Any]]:
    """A video's action records, by decreasing score."""
    import torch

    from adatad_ds.detection.decoding import Candidates
    from adatad_ds.detection.suppression import suppress

    if not verbs or not nouns:
        return []
    verb_segments, verb_scores, verb_labels = _columns(verbs, verb_of)
    noun_segments, noun_scores, noun_labels = _columns(nouns, noun_of)
    start = np.maximum(verb_segments[:, None, 0], noun_segments[None, :, 0])
    end = np.minimum(verb_segments[:, None, 1], noun_segments[None, :, 1])
    shared = (end - start).clip(min=0)  # (V, N)
    union = np.ptp(verb_segments, axis=1)[:, None] + np.ptp(noun_segments, axis=1)[None, :] - shared
    together = (shared > 0) & (shared >= pairing.tiou * union)
    # For a given verb, the best joint scores are those of the best nouns.
    best = np.where(together, -noun_scores[None, :], 1.0).argsort(axis=1, kind="stable")[:, : pairing.nouns_per_verb]
    verb = np.repeat(np.arange(len(verbs)), best.shape[1])
    noun = best.ravel()
    joined = together[verb, noun]
    verb, noun = verb[joined], noun[joined]
    scores = verb_scores[verb] ** pairing.verb_weight * noun_scores[noun] ** (1 - pairing.verb_weight)
    kept = suppress(
        Candidates(
            segments_sec=torch.from_numpy((verb_segments[verb] + noun_segments[noun]) / 2).float(),
            scores=torch.from_numpy(scores).float(),
            labels=torch.from_numpy(verb_labels[verb] * NOUNS + noun_labels[noun]),
        ),
        method="gaussian",
        sigma=pairing.sigma,
        tiou=0.0,  # unused by this method
        min_score=pairing.min_score,
        max_per_video=pairing.max_per_video,
        per_class=True,
        voting_thresh=0.0,
    )
    return [
        {
            "verb": label // NOUNS,
            "noun": label % NOUNS,
            "action": f"{label // NOUNS},{label % NOUNS}",
            "score": round(score, 4),
            "segment": [round(start, 2), round(end, 2)],
        }
        for (start, end), score, label in zip(
            kept.segments_sec.tolist(), kept.scores.tolist(), kept.labels.tolist(), strict=True
        )
    ]


def _columns(records: Sequence[Mapping[str, Any]], ids: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments (N, 2), scores (N,) and class ids (N,)."""
    return (
        np.array([record["segment"] for record in records], dtype=np.float64),
        np.array([record["score"] for record in records], dtype=np.float64),
        np.array([ids[record["label"]] for record in records], dtype=np.int64),
    )


def _by_score(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records by decreasing score, as the evaluation of retrieval assumes."""
    ordered = sorted(records, key=lambda record: -record["score"])
    return [{"label": r["label"], "score": r["score"], "segment": list(r["segment"])} for r in ordered]
