"""Folders of generated data: untrimmed videos with their annotations, or short clips in one folder per class.

A folder that is complete, with the same counts and seed, is left as it is.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from adatad_ds.data.generated import clips, videos
from adatad_ds.data.generated.videos import DURATION_SEC, MIN_DURATION_SEC, Purpose
from adatad_ds.errors import ConfigError

SUBSETS: dict[Purpose, str] = {"training": "training", "test": "validation"}  # THUMOS14's names
COMPLETE_FILE = "complete.json"  # written last: the counts and the seed
LABELS_FILE = "labels.csv"  # as one would make it of one's own videos


@dataclass(frozen=True)
class VideoJob:
    """One video to generate."""

    purpose: Purpose
    seed: int
    index: int
    folder: Path
    duration_sec: tuple[float, float]

    @property
    def name(self) -> str:
        """Name of the video, and of its file without the suffix."""
        return f"{self.purpose}_{self.index:04d}"


@dataclass(frozen=True)
class ClipJob:
    """One clip and its twin to generate."""

    subset: str
    seed: int
    twins: int
    index: int
    out: Path


def generate_videos(
    out: Path,
    *,
    train: int = 160,
    test: int = 32,
    seed: int = 1,
    workers: int = 2,
    duration_sec: tuple[float, float] = DURATION_SEC,
) -> str:
    """Generate OUT/videos/NAME.mp4, OUT/annotations.json and the same as OUT/labels.csv, unless they already exist.

    Args:
        out: folder of the data set.
        train: training videos.
        test: test videos.
        seed: seed of the data set.
        workers: number of processes.
        duration_sec: shortest and longest video.

    Returns:
        A summary for the user.

    Raises:
        ConfigError: durations that cannot be.
    """
    shortest, longest = duration_sec
    if not MIN_DURATION_SEC <= shortest <= longest < float("inf"):
        raise ConfigError(
            f"--seconds {shortest:g} {longest:g}: give the shortest and the longest video, {MIN_DURATION_SEC:g} or more"
        )
    wanted: dict[str, object] = {"train": train, "test": test, "seed": seed}
    if duration_sec != DURATION_SEC:
        wanted["seconds"] = list(duration_sec)
    if _is_complete(out, wanted):
        _write_labels(out)  # earlier versions did not
        return f"{out} is complete"
    folder = out / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    counts: list[tuple[Purpose, int]] = [("training", train), ("test", test)]
    jobs = [VideoJob(purpose, seed, index, folder, duration_sec) for purpose, count in counts for index in range(count)]
    with multiprocessing.Pool(workers) as pool:
        made = dict(tqdm(pool.imap(_make_video, jobs), total=len(jobs), unit="video", dynamic_ncols=True))
    (out / "annotations.json").write_text(json.dumps({"database": made}, indent=1), encoding="utf-8")
    _write_labels(out)
    (out / COMPLETE_FILE).write_text(json.dumps(wanted), encoding="utf-8")
    seconds = sum(float(str(video["duration"])) for video in made.values())
    actions = [action for video in made.values() for action in video["annotations"]]  # type: ignore[union-attr]
    return f"{len(made)} videos, {seconds / 60:.0f} minutes, {len(actions)} actions in {out}"


def generate_clips(out: Path, *, train: int = 60, test: int = 15, seed: int = 1, workers: int = 2) -> str:
    """Generate OUT/train/CLASS/*.mp4 and OUT/test/CLASS/*.mp4, unless they already exist.

    Args:
        out: folder of the data set.
        train: training clips per class.
        test: test clips per class.
        seed: seed of the data set.
        workers: number of processes.

    Returns:
        A summary for the user.
    """
    counts = {"train": train, "test": test}
    wanted = {**counts, "seed": seed}
    if _is_complete(out, wanted):
        return f"{out} is complete"
    for subset in counts:
        for label in clips.CLASSES:
            folder = out / subset / label
            folder.mkdir(parents=True, exist_ok=True)
            for clip in folder.glob("[0-9][0-9][0-9][0-9].mp4"):  # a smaller data set keeps none of a larger one
                clip.unlink()
    jobs = [
        ClipJob(subset, seed, twins, index, out)
        for subset, count in counts.items()
        for twins in range(len(clips.TWINS))
        for index in range(count)
    ]
    with multiprocessing.Pool(workers) as pool:
        for _ in tqdm(pool.imap(_make_clips, jobs), total=len(jobs), unit="pair", dynamic_ncols=True):
            pass
    (out / COMPLETE_FILE).write_text(json.dumps(wanted), encoding="utf-8")
    return f"{2 * len(jobs)} clips of {len(clips.CLASSES)} classes in {out}"


def _is_complete(out: Path, wanted: Mapping[str, object]) -> bool:
    """Whether this data set is complete; if not, the folder is marked as incomplete."""
    marker = out / COMPLETE_FILE
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
        return True
    marker.unlink(missing_ok=True)
    return False


def _write_labels(out: Path) -> None:
    """The annotations as a table of file, start, end, label."""
    database = json.loads((out / "annotations.json").read_text(encoding="utf-8"))["database"]
    with (out / LABELS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "start", "end", "label"))
        for name, video in database.items():
            writer.writerows([f"{name}.mp4", *action["segment"], action["label"]] for action in video["annotations"])


def _make_video(job: VideoJob) -> tuple[str, dict[str, object]]:
    """Render and encode one video; returns its name and annotation."""
    video = videos.make_video(videos.generator(job.purpose, job.seed, job.index), duration_sec=job.duration_sec)
    videos.write_video(video, job.folder / f"{job.name}.mp4")
    return job.name, videos.annotation(video, subset=SUBSETS[job.purpose])


def _make_clips(job: ClipJob) -> None:
    """Render and encode one clip forwards and backwards, for the two classes of a pair."""
    for label in clips.TWINS[job.twins]:
        frames = clips.make_clip(label, clips.generator(job.subset, job.seed, job.twins, job.index))
        path = job.out / job.subset / label / f"{job.index:04d}.mp4"
        videos.encode(frames, path, fps=clips.FPS, width=clips.SIDE, height=clips.SIDE)
