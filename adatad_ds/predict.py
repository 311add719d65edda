"""Detect actions in video files; no launcher, no annotations.

    python adatad_ds/predict.py VIDEO... --checkpoint runs/NAME [-o predictions] [--annotated] [--html]

    from adatad_ds.predict import load_detector
    detections = load_detector("runs/NAME").detect("match.mp4")

Exit code: 0 all videos are done, 1 some failed or are damaged, 2 nothing could be started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file from a clone: import the package, and hide its module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import torch
from tqdm import tqdm

from adatad_ds.data.decoding.video import VideoError, probe
from adatad_ds.data.labelled_videos import read_class_names
from adatad_ds.data.video_files import ANNOTATED, find_files, length_sec
from adatad_ds.distributed.process import run_process
from adatad_ds.errors import UserError
from adatad_ds.evaluation.detections_file import write_results
from adatad_ds.evaluation.operating_point import SHOWN_SCORE, ShownFrom
from adatad_ds.evaluation.plots.figures import try_to_draw
from adatad_ds.evaluation.plots.timelines import draw_detections
from adatad_ds.evaluation.video.overlay import write_annotated
from adatad_ds.evaluation.video.page import plays_in_browsers, video_address, write_page
from adatad_ds.evaluation.video.subtitles import write_csv, write_srt, write_vtt
from adatad_ds.inference.video_detector import Detection, VideoDetector, load_detector
from adatad_ds.recipes.class_order import describe_logits
from adatad_ds.system.utf8 import use_utf8

__all__ = ["Detection", "VideoDetector", "load_detector", "main"]

RESULTS_FILE = "results.json"
EMBEDDED_MB = 20.0
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


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command; errors print one line per file; returns the exit code."""
    arguments = make_parser(prog).parse_args(argv)
    try:
        videos, absent = find_files(arguments.videos, reserved=Path(RESULTS_FILE).stem)
        detector = load_detector(
            arguments.checkpoint,
            recipe=arguments.recipe,
            classes=read_class_names(arguments.classes) if arguments.classes else (),
            overrides=arguments.set,
            averaged=not arguments.no_ema,
            device=arguments.device,
            max_device_gb=arguments.max_device_gb,
        )
        if arguments.recipe:  # a published checkpoint, which does not name its classes
            print(describe_logits(detector.classes))
        wanted = Wanted(
            folder=arguments.output,
            shown=ShownFrom.choose(arguments.score, detector.operating_point),
            annotated=arguments.annotated,
            html=arguments.html,
            embedded_mb=arguments.embed_mb,
        )
        wanted.folder.mkdir(parents=True, exist_ok=True)
        write_results(wanted.folder / RESULTS_FILE, {})
        for message in absent:
            print(f"error: {message}", file=sys.stderr)
        failed = predict(detector, videos, wanted=wanted)
    except (UserError, OSError) as error:
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
        print(f"\ninterrupted; what {arguments.output / RESULTS_FILE} names is done", file=sys.stderr)
        return 130
    return 1 if failed or absent else 0


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


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; `prog`: the command's name in messages, by default this file's."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Detect actions in video files.",
        epilog="Exit code: 0 all videos are done, 1 some failed or are damaged, 2 nothing could be started, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders (searched recursively), globs")
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
        help="minimum score in subtitles, annotated videos and (initially) pages; JSON and CSV hold all; "
        f"default: that of the best F1 found by evaluate.py, or {SHOWN_SCORE} if the detector was not evaluated",
    )
    parser.add_argument(
        "--annotated", action="store_true", help="write NAME.annotated.mp4, with detections over the picture"
    )
    parser.add_argument(
        "--html",
        action="store_true",
        help="write NAME.html, a player and a timeline with filters. Videos up to --embed-mb are embedded in the page; "
        "larger ones are linked by their relative path, so keep both in place. Videos that browsers do not play (AVI, "
        "MKV, HEVC) are shown as their annotated copies",
    )
    parser.add_argument("--embed-mb", type=float, default=EMBEDDED_MB, metavar="MB", help="default: %(default)s")
    parser.add_argument("--recipe", help="recipe of a published checkpoint; see train.py --list-recipes")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line, if unknown")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the config")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights, not their running average (EMA)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument(
        "--max-device-gb",
        type=float,
        metavar="GB",
        help="device memory limit; the part of the backbone that does not fit stays in host memory; default: the free "
        "memory",
    )
    return parser


if __name__ == "__main__":
    use_utf8()
    run_process(main)
