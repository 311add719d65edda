"""Detect in video files, one after the other, and write what is wanted of each."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from adatad_ds.data.decoding.video import VideoError, probe
from adatad_ds.data.video_files import ANNOTATED, length_sec
from adatad_ds.evaluation.detections_file import write_results
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.plots.timelines import draw_detections
from adatad_ds.evaluation.video.overlay import write_annotated
from adatad_ds.evaluation.video.page import plays_in_browsers, video_address, write_page
from adatad_ds.evaluation.video.subtitles import write_csv, write_srt, write_vtt
from adatad_ds.inference.video_detector import VideoDetector

RESULTS_FILE = "results.json"
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of video [{elapsed}<{remaining}]"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Files to write for each video.

    Attributes:
        folder: output folder.
        shown: minimum score of detections in subtitles, annotated videos and pages.
        annotated: write a video with its detections drawn over it.
        html: write a page with a player.
        embedded_mb: videos up to this size in MB are embedded in their page.
    """

    folder: Path
    shown: ShownFrom
    annotated: bool
    html: bool
    embedded_mb: float


def predict(detector: VideoDetector, videos: Mapping[str, Path], *, wanted: Wanted) -> int:
    """Detect in every video and write the wanted files; return how many videos failed or are damaged."""
    results: dict[str, list[dict[str, Any]]] = {}
    damaged: dict[str, str] = {}
    failed = 0
    lengths = {name: _length_sec(path) for name, path in videos.items()}
    with tqdm(total=sum(lengths.values()) + 1e-6, bar_format=BAR, dynamic_ncols=True) as bar:
        for number, (name, path) in enumerate(videos.items(), start=1):
            bar.set_description_str(f"{number}/{len(videos)} {name}: "[:40])
            before, length = bar.n, lengths[name]

            def warn(line: str, name: str = name) -> None:
                damaged[name] = line
                tqdm.write(f"warning: {line}", file=sys.stderr)

            def advance(done: float, before: float = before, length: float = length) -> None:
                bar.update(before + done * length - bar.n)

            try:
                found = detector.detect(path, progress=advance, report=warn)
                records = [detection.record() for detection in found]
                write_detections(name, records, damage=damaged.get(name), wanted=wanted)
                drawn = draw_video(name, path, records, wanted=wanted)
            except (VideoError, av.FFmpegError, OSError) as error:
                failed += 1
                tqdm.write(f"error: {error}", file=sys.stderr)
            else:
                failed += name in damaged or not drawn
                results[name] = records
                write_results(wanted.folder / RESULTS_FILE, results, damaged=damaged)
                tqdm.write(f"{name}: {len(records)} detections, {wanted.shown.summary(records)}")
            advance(1.0)  # also after a failure
    tqdm.write(f"written: {wanted.folder / RESULTS_FILE} and, next to it, files of each of {len(results)} videos")
    return failed


def write_detections(name: str, records: Sequence[Mapping[str, Any]], *, damage: str | None, wanted: Wanted) -> None:
    """Write one video's detections as JSON, CSV and subtitles."""
    shown = list(filter(wanted.shown.passes, records))
    with _unfinished(wanted.folder) as folder:
        write_csv(folder / f"{name}.csv", records)
        write_vtt(folder / f"{name}.vtt", shown)
        write_srt(folder / f"{name}.srt", shown)
        write_results(folder / f"{name}.json", {name: records}, damaged={name: damage} if damage else None)


def draw_video(name: str, path: Path, records: Sequence[Mapping[str, Any]], *, wanted: Wanted) -> bool:
    """Draw one video's picture and, if wanted, its annotated copy and page.

    Returns:
        Whether all requested files were written; the picture is an extra.
    """
    duration_sec, playable = probe(path).duration_sec, plays_in_browsers(path)
    picture, annotated, page = (wanted.folder / f"{name}{ending}" for ending in (".png", ANNOTATED, ".html"))

    def draw_picture() -> None:
        draw_detections(picture, name=name, duration_sec=duration_sec, detections=records, shown=wanted.shown)

    def draw_copy() -> None:
        with _unfinished(wanted.folder) as folder:
            write_annotated(path, folder / annotated.name, detections=list(filter(wanted.shown.passes, records)))

    def draw_page() -> None:
        played = path if playable else annotated
        with _unfinished(wanted.folder) as folder:
            write_page(
                folder / page.name,
                name=name,
                video=video_address(played, folder=wanted.folder, most_bytes=round(wanted.embedded_mb * 1e6)),
                duration_sec=duration_sec,
                detections=records,
                shown=wanted.shown,
            )

    def draws(file: Path, draw: Callable[[], None]) -> bool:
        file.unlink(missing_ok=True)  # an earlier prediction's
        return try_to_draw(str(file), draw, report=lambda message: tqdm.write(message, file=sys.stderr))

    draws(picture, draw_picture)
    complete = True
    if wanted.annotated or (wanted.html and not playable):
        complete &= draws(annotated, draw_copy)
    if wanted.html:
        complete &= draws(page, draw_page)
    return complete


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files move to `folder` once all of them are complete."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished_") as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.suffix == ".json"):
            file.replace(folder / file.name)


def _length_sec(path: Path) -> float:
    """Length for the progress bar; an unreadable video is reported when its turn comes."""
    try:
        return length_sec(path)
    except VideoError:
        return 0.0
