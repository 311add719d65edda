"""Detect actions in video files; no launcher, no annotations.

    python adatad_ds/predict.py VIDEO... --checkpoint runs/NAME [-o predictions] [--annotated] [--html]

    from adatad_ds.predict import load_detector
    detections = load_detector("runs/NAME").detect("match.mp4")

Exit code: 0 all videos are done, 1 some failed, 2 nothing could be started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import torch
from tqdm import tqdm

from adatad_ds.config import ConfigError
from adatad_ds.data.annotations import DataError
from adatad_ds.data.video import VideoError, probe
from adatad_ds.data.video_files import ANNOTATED, find_files, length_sec
from adatad_ds.evaluation.annotate import write_annotated
from adatad_ds.evaluation.pictures import draw_detections
from adatad_ds.evaluation.player import plays_in_browsers, video_address, write_page
from adatad_ds.evaluation.results import write_results
from adatad_ds.evaluation.subtitles import write_csv, write_srt, write_vtt
from adatad_ds.process import run_process
from adatad_ds.video_detector import Detection, VideoDetector, load_detector

__all__ = ["Detection", "VideoDetector", "load_detector", "main"]

RESULTS_FILE = "results.json"
SHOWN_SCORE = 0.3
EMBEDDED_MB = 20.0
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of video [{elapsed}<{remaining}]"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is written for each video.

    Attributes:
        folder: where.
        min_score: of the detections in subtitles, pictures and annotated videos.
        annotated: a video with its detections written over it.
        html: a page with the player.
        embedded_mb: videos up to this size become part of their page.
    """

    folder: Path
    min_score: float
    annotated: bool
    html: bool
    embedded_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one line a file, and an exit code."""
    arguments = parse_arguments(argv)
    wanted = Wanted(
        folder=arguments.output,
        min_score=arguments.score,
        annotated=arguments.annotated,
        html=arguments.html,
        embedded_mb=arguments.embed_mb,
    )
    try:
        videos, absent = find_files(arguments.videos, reserved=Path(RESULTS_FILE).stem)
        detector = load_detector(
            arguments.checkpoint,
            recipe=arguments.recipe,
            classes=_read_classes(arguments.classes),
            overrides=arguments.set,
            raw=arguments.raw,
            device=arguments.device,
            max_device_gb=arguments.max_device_gb,
        )
        wanted.folder.mkdir(parents=True, exist_ok=True)
        write_results(wanted.folder / RESULTS_FILE, {})
        for message in absent:
            print(f"error: {message}", file=sys.stderr)
        failed = predict(detector, videos, wanted=wanted)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(
            f"error: the device's memory is too small for this detector: {str(error).splitlines()[0]} Give "
            "--max-device-gb less than it has, or --set backbone.clips_per_chunk=1 --set test.batch=1",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; what {wanted.folder / RESULTS_FILE} names is done", file=sys.stderr)
        return 130
    return 1 if failed or absent else 0


def predict(detector: VideoDetector, videos: Mapping[str, Path], *, wanted: Wanted) -> int:
    """Detect in every video and write what is wanted; how many failed or are incomplete."""
    results: dict[str, list[dict[str, Any]]] = {}
    failed = 0
    lengths = {name: _length_sec(path) for name, path in videos.items()}
    with tqdm(total=sum(lengths.values()) + 1e-6, bar_format=BAR, dynamic_ncols=True) as bar:
        for number, (name, path) in enumerate(videos.items(), start=1):
            bar.set_description_str(f"{number}/{len(videos)} {name}: "[:40])
            before, length = bar.n, lengths[name]

            def advance(done: float, before: float = before, length: float = length) -> None:
                bar.update(before + done * length - bar.n)

            try:
                found = detector.detect(path, progress=advance)
                records = [detection.record() for detection in found]
                write_video(name, path, records, wanted=wanted)
            except (VideoError, av.FFmpegError, OSError) as error:
                failed += 1
                tqdm.write(f"error: {error}", file=sys.stderr)
            else:
                failed += _incomplete(path)
                results[name] = records
                write_results(wanted.folder / RESULTS_FILE, results)
                sure = sum(record["score"] >= wanted.min_score for record in records)
                tqdm.write(f"{name}: {len(records)} detections, {sure} of score {wanted.min_score:g} or more")
            advance(1.0)  # also past what failed
    tqdm.write(f"written: {wanted.folder / RESULTS_FILE} and files of each of {len(results)} videos beside it")
    return failed


def write_video(name: str, path: Path, records: Sequence[Mapping[str, Any]], *, wanted: Wanted) -> None:
    """Write one video's files; all appear when all are whole, NAME.json last."""
    shown = [record for record in records if record["score"] >= wanted.min_score]
    info = probe(path)
    with tempfile.TemporaryDirectory(dir=wanted.folder, prefix=".unfinished_") as temporary:
        folder = Path(temporary)
        write_csv(folder / f"{name}.csv", records)
        write_vtt(folder / f"{name}.vtt", shown)
        write_srt(folder / f"{name}.srt", shown)
        draw_detections(
            folder / f"{name}.png",
            name=name,
            duration_sec=info.duration_sec,
            detections=records,
            min_score=wanted.min_score,
        )
        annotated = folder / f"{name}{ANNOTATED}"
        playable = not wanted.html or plays_in_browsers(path)
        if wanted.annotated or not playable:
            write_annotated(path, annotated, detections=shown)
        if wanted.html:
            played, beside = (path, wanted.folder) if playable else (annotated, folder)
            write_page(
                folder / f"{name}.html",
                name=name,
                video=video_address(played, folder=beside, most_bytes=round(wanted.embedded_mb * 1e6)),
                duration_sec=info.duration_sec,
                detections=records,
                min_score=wanted.min_score,
            )
        write_results(folder / f"{name}.json", {name: records})
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".json"):
            file.replace(wanted.folder / file.name)


def _length_sec(path: Path) -> float:
    """For the progress bar alone; what cannot be read is reported when its turn comes."""
    try:
        return length_sec(path)
    except VideoError:
        return 0.0


def _incomplete(path: Path) -> bool:
    """Say so where a file is cut short: what is missing may hold actions."""
    info = probe(path)
    if not info.complete:
        tqdm.write(
            f"error: {path}: the file is cut short or its header wrong: it holds {info.num_frames} frames "
            f"({info.duration_sec:.1f} s), fewer than it promises; only those were searched",
            file=sys.stderr,
        )
    return not info.complete


def _read_classes(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes: cannot read {path}: {error}") from error
    return names


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Detect actions in video files.",
        epilog="Exit code: 0 all videos are done, 1 some failed, 2 nothing could be started, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders (searched to the bottom), globs")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a run (its best checkpoint, else the newest), a checkpoint, an export, a published .pth",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("predictions"), help="folder; default: %(default)s")
    parser.add_argument(
        "--score",
        type=float,
        default=SHOWN_SCORE,
        help="of detections in subtitles, annotated videos and at the start of pages; JSON and CSV have all of them; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--annotated", action="store_true", help="write NAME.annotated.mp4, detections over the picture"
    )
    parser.add_argument(
        "--html",
        action="store_true",
        help="write NAME.html, player and timeline with filters. Videos up to --embed-mb become part of the page; "
        "larger ones are named by their relative path, so keep both where they are. What browsers do not play (AVI, "
        "MKV, HEVC) is shown as its annotated copy",
    )
    parser.add_argument("--embed-mb", type=float, default=EMBEDDED_MB, metavar="MB", help="default: %(default)s")
    parser.add_argument("--recipe", help="what a published checkpoint was trained by; see train.py --list-recipes")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line, where none are known")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the config")
    parser.add_argument("--raw", action="store_true", help="the trained weights, not their running average")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument(
        "--max-device-gb",
        type=float,
        metavar="GB",
        help="the most device memory to take; what of the backbone does not fit waits in host memory; default: what "
        "is free",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_process(main)
