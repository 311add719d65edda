"""The surest and the worst videos of an evaluation, its surest mistakes and its longest misses, with players."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.video_files import present_videos
from adatad_ds.errors import DataError
from adatad_ds.evaluation.diagnosis.diagnosis import Diagnosis
from adatad_ds.evaluation.diagnosis.matching import Kind
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.video.annotation_pages import page_names, played_file, segment_records
from adatad_ds.evaluation.video.page import video_address, write_page

PLAYERS = "videos"  # folder of their pages
MEDIA = "media"  # folder of copied videos


@dataclass(frozen=True)
class Score:
    """How well one video's segments were found by the detections from the shown score on.

    Attributes:
        name: of the video.
        right: detections that match a segment.
        wrong: detections that match none.
        missed: segments that no detection matches.
        sureness: mean score of the right detections; 0 if there are none.
    """

    name: str
    right: int
    wrong: int
    missed: int
    sureness: float

    @property
    def f1(self) -> float:
        """2 * precision * recall / (precision + recall), from 0 to 1."""
        return 2 * self.right / max(1, 2 * self.right + self.wrong + self.missed)


@dataclass(frozen=True)
class Moment:
    """A mistake: a wrong detection, or a segment that is not found (then without a score)."""

    video: str
    start_sec: float
    end_sec: float
    label: str
    what: str
    score: float | None


def score_videos(diagnosis: Diagnosis, videos: Sequence[Video], *, least: float) -> list[Score]:
    """Scores of the videos that have a segment or a detection, the best first; of equal ones the surest first.

    Args:
        diagnosis: of the evaluation.
        videos: in the order that the diagnosis numbers them by.
        least: minimum score of a detection.
    """
    kept = diagnosis.detections.scores >= least
    right = kept & (diagnosis.kinds == Kind.TRUE_POSITIVE)
    size = len(videos)
    counts = [
        np.bincount(which, minlength=size)
        for which in (
            diagnosis.detections.video[right],
            diagnosis.detections.video[kept & ~right],
            diagnosis.truths.video,
        )
    ]
    sums = np.bincount(diagnosis.detections.video[right], weights=diagnosis.detections.scores[right], minlength=size)
    scores = [
        Score(video.name, int(good), int(bad), int(total - good), float(sums[at] / max(1, good)))
        for at, (video, good, bad, total) in enumerate(zip(videos, *counts, strict=True))
        if good + bad + total
    ]
    return sorted(scores, key=lambda score: (-score.f1, -score.sureness, score.name))


def surest_mistakes(diagnosis: Diagnosis, videos: Sequence[Video], *, most: int) -> list[Moment]:
    """The wrong detections with the highest scores."""
    wrong = np.flatnonzero(diagnosis.kinds != Kind.TRUE_POSITIVE)
    order = wrong[np.argsort(-diagnosis.detections.scores[wrong], kind="stable")][:most]
    found = diagnosis.detections
    return [
        Moment(
            video=videos[int(found.video[at])].name,
            start_sec=float(found.segments_sec[at, 0]),
            end_sec=float(found.segments_sec[at, 1]),
            label=diagnosis.metrics.classes[found.label[at]],
            what=Kind(int(diagnosis.kinds[at])).title,
            score=float(found.scores[at]),
        )
        for at in order
    ]


def longest_misses(diagnosis: Diagnosis, videos: Sequence[Video], *, most: int) -> list[Moment]:
    """The longest segments that no detection finds."""
    missed = np.flatnonzero(diagnosis.missed)
    order = missed[np.argsort(-diagnosis.truths.length_sec[missed], kind="stable")][:most]
    truths = diagnosis.truths
    return [
        Moment(
            video=videos[int(truths.video[at])].name,
            start_sec=float(truths.segments_sec[at, 0]),
            end_sec=float(truths.segments_sec[at, 1]),
            label=diagnosis.metrics.classes[truths.label[at]],
            what="missed",
            score=None,
        )
        for at in order
    ]


def write_players(
    folder: Path,
    names: Sequence[str],
    *,
    videos: Mapping[str, Video],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    files: Path,
    shown: ShownFrom,
    copy: bool,
    back: str,
) -> tuple[dict[str, str], list[str]]:
    """Write a page with a player for each of these videos: detections, and what is annotated.

    Args:
        folder: the report's folder.
        names: names of the videos.
        videos: annotations by name.
        results: detections by name.
        files: folder of the video files.
        shown: initial score.
        copy: copy the videos into the folder, instead of linking them where they lie.
        back: the report's file, relative to the folder.

    Returns:
        Addresses relative to the folder, by name; and a line for each video without a player.
    """
    try:
        paths = present_videos(files, list(videos))
    except DataError as error:
        return {}, [str(error)]
    pages, addresses, notes = page_names(list(videos)), {}, []
    (folder / PLAYERS).mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(names):
        if name not in paths:
            notes.append(f"{name}: no file in {files}")
            continue
        records = list(results.get(name, ()))
        try:
            played = played_file(paths[name], folder, list(filter(shown.passes, records)), scored=True)
        except VideoError as error:
            notes.append(str(error))
            continue
        if copy and played == paths[name]:
            played = folder / MEDIA / paths[name].name
            played.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths[name], played)
        write_page(
            folder / PLAYERS / pages[name],
            name=name,
            video=video_address(played, folder=folder / PLAYERS, most_bytes=0),
            duration_sec=videos[name].duration_sec,
            detections=records,
            shown=shown,
            truths=segment_records(videos[name]),
            links=[("report", f"../{back}")],
        )
        addresses[name] = f"{PLAYERS}/{pages[name]}"
    return addresses, notes
