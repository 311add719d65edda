"""Detect in video files, one after the other, and write what is wanted of each."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from adatad_ds.data.decoding.video import VideoError, probe
from adatad_ds.data.video_files import ANNOTATED, length_sec
from adatad_ds.errors import ConfigError, summarize_list
from adatad_ds.evaluation.detections_file import VERSION, write_results
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.plots.timelines import draw_detections
from adatad_ds.evaluation.video.overlay import write_annotated
from adatad_ds.evaluation.video.page import plays_in_browsers, video_address, write_page
from adatad_ds.evaluation.video.subtitles import write_csv, write_srt, write_vtt
from adatad_ds.inference.video_detector import VideoDetector
from adatad_ds.system.json_text import read_json

RESULTS_FILE = "results.json"
ENDINGS = (".csv", ".vtt", ".srt", ".json", ".png")  # of the files of every video
PAGE = ".html"
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

    def files(self, names: Iterable[str]) -> list[str]:
        """What may be written into the folder; of the annotated copies for pages, some videos need none."""
        endings = [*ENDINGS, *([ANNOTATED] if self.annotated or self.html else []), *([PAGE] if self.html else [])]
        return [RESULTS_FILE, *(f"{name}{ending}" for name in names for ending in endings)]


class Results:
    """The results file of a folder: the videos that are done, and which files there are predictions' own.

    Args:
        folder: is made if it does not exist.
        files: names of those that are to be written into it.

    Raises:
        ConfigError: one of these exists, and no earlier prediction wrote it; nothing is changed then.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        own = _files_of_earlier(folder)
        others = [file for file in files if file not in own and os.path.lexists(folder / file)]
        if others:
            raise ConfigError(
                f"-o {folder} holds files that no earlier prediction wrote there and that would be overwritten: "
                f"{summarize_list(others, separator=', ')}. Give another -o FOLDER, or move them away"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._files = folder, sorted({*own, *files})
        self._videos: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._damaged: dict[str, str] = {}
        self._write()

    def __len__(self) -> int:
        return len(self._videos)

    def add(self, name: str, records: Sequence[Mapping[str, Any]], *, damage: str | None) -> None:
        """A video is done."""
        self._videos[name] = records
        self._damaged |= {name: damage} if damage else {}
        self._write()

    def close(self) -> None:
        """No file is still to be written: what there is none of is no longer the predictions' own."""
        self._files = [file for file in self._files if os.path.lexists(self._folder / file)]
        with suppress(OSError):  # a full disk: the file stays as it is
            self._write()

    def _write(self) -> None:
        write_results(self._folder / RESULTS_FILE, self._videos, damaged=self._damaged, files=self._files)


def _files_of_earlier(folder: Path) -> set[str]:
    """Names of the files that earlier predictions wrote into a folder, or were about to when they were killed."""
    try:
        tree = read_json(folder / RESULTS_FILE)
    except (OSError, ValueError):
        return set()
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        return set()
    files, videos = tree.get("files"), tree.get("results")
    if isinstance(files, list):
        return {file for file in files if isinstance(file, str)}
    if isinstance(videos, dict) and all((folder / f"{name}.json").is_file() for name in videos):  # an older version's
        return {RESULTS_FILE, *(f"{name}{ending}" for name in videos for ending in (*ENDINGS, ANNOTATED, PAGE))}
    return set()


def predict(detector: VideoDetector, videos: Mapping[str, Path], *, wanted: Wanted) -> int:
    """Detect in every video and write the wanted files; return how many videos failed or are damaged.

    Raises:
        ConfigError: there are other files where these are to be written.
    """
    results = Results(wanted.folder, wanted.files(videos))
    try:
        failed = _predict_each(detector, videos, wanted=wanted, results=results)
    finally:
        results.close()
    tqdm.write(f"written: {wanted.folder / RESULTS_FILE}, and next to it the files of {len(results)} videos")
    return failed


def _predict_each(detector: VideoDetector, videos: Mapping[str, Path], *, wanted: Wanted, results: Results) -> int:
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
                results.add(name, records, damage=damaged.get(name))
                tqdm.write(f"{name}: {len(records)} detections, {wanted.shown.summary(records)}")
            advance(1.0)  # also after a failure
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
    picture, annotated, page = (wanted.folder / f"{name}{ending}" for ending in (".png", ANNOTATED, PAGE))

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
