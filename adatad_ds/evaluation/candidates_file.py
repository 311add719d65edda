"""File of all candidates before suppression, from which suppression and metrics can be repeated without a model.

V videos, N candidates in all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatad_ds.detection.decoding import Candidates
from adatad_ds.errors import DataError
from adatad_ds.system.atomic import replacing

FORMAT = "adatad_ds candidates 1"


@dataclass(frozen=True)
class VideoCandidates:
    """The candidates of all windows of one video, its length in seconds, and what is missing in its file."""

    candidates: Candidates
    duration_sec: float
    damage: str = ""


@dataclass(frozen=True, kw_only=True)
class SavedCandidates:
    """A detector's candidates before suppression.

    Attributes:
        name: name of the detector, for messages.
        config: its config, as a nested dict.
        classes: names by label.
        videos: candidates by video.
    """

    name: str
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    videos: Mapping[str, VideoCandidates]


def write_candidates(path: Path, saved: SavedCandidates) -> None:
    """Write an `.npz` with unchanged float32 segments and scores, so that suppression gives exactly the same results.

    It holds `about` (JSON text), `videos` (V,), `duration_sec` (V,), `counts` (V,), and, video after video,
    `segments_sec` (N, 2), `scores` (N,), `labels` (N,) uint16.
    """
    parts = [video.candidates for video in saved.videos.values()]
    about = {"format": FORMAT, "name": saved.name, "config": saved.config, "classes": saved.classes}
    about["damaged"] = {name: video.damage for name, video in saved.videos.items() if video.damage}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            about=np.array(json.dumps(about)),
            videos=np.array(list(saved.videos), dtype=np.str_),
            duration_sec=np.array([video.duration_sec for video in saved.videos.values()], dtype=np.float64),
            counts=np.array([len(part) for part in parts], dtype=np.int64),
            segments_sec=np.concatenate([np.zeros((0, 2), np.float32), *(part.segments_sec.numpy() for part in parts)]),
            scores=np.concatenate([np.zeros(0, np.float32), *(part.scores.numpy() for part in parts)]),
            labels=np.concatenate([np.zeros(0, np.uint16), *(part.labels.numpy().astype(np.uint16) for part in parts)]),
        )


def read_candidates(path: Path) -> SavedCandidates:
    """Read what `write_candidates` wrote.

    Raises:
        DataError: not a file of candidates.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about.get("format") != FORMAT:
                raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
            counts, durations = file["counts"], file["duration_sec"]
            segments, scores, labels = file["segments_sec"], file["scores"], file["labels"].astype(np.int64)
            ends, videos = counts.cumsum(), {}
            for index, video in enumerate(file["videos"]):
                part = slice(ends[index] - counts[index], ends[index])
                candidates = Candidates(*(torch.from_numpy(array[part]) for array in (segments, scores, labels)))
                damage = about.get("damaged", {}).get(str(video), "")
                videos[str(video)] = VideoCandidates(candidates, duration_sec=float(durations[index]), damage=damage)
            return SavedCandidates(
                name=about["name"], config=about["config"], classes=tuple(about["classes"]), videos=videos
            )
    except Exception as error:  # a damaged file may raise nearly anything
        cause = str(error) or type(error).__name__
        raise DataError(f"{path} holds no candidates of `evaluate.py --save-candidates`: {cause}") from error
