"""Detect actions in video files; no launcher, no annotations.

    python adatad_ds/predict.py VIDEO... --checkpoint runs/NAME [-o predictions] [--annotated] [--html]
    python adatad_ds/predict.py STREAM --live --checkpoint runs/NAME [-o predictions --html]

    from adatad_ds.predict import load_detector
    detections = load_detector("runs/NAME").detect("match.mp4")

Exit code: 0 all videos are done, 1 some failed or are damaged, 2 nothing could be started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file from a clone: import the package, and hide its module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from adatad_ds.data.labelled_videos import read_class_names
from adatad_ds.data.video_files import ANNOTATED, find_files
from adatad_ds.distributed.process import run_process
from adatad_ds.errors import ConfigError, UserError
from adatad_ds.recipes.class_order import describe_logits
from adatad_ds.system.collection import collection_paused
from adatad_ds.system.options import between, check_unused
from adatad_ds.system.utf8 import use_utf8

if TYPE_CHECKING:
    from adatad_ds.data.live.source import LiveSource
    from adatad_ds.inference.video_detector import Detection, VideoDetector, load_detector

__all__ = ["Detection", "VideoDetector", "load_detector", "main"]

EMBEDDED_MB = 20.0
ONLY_LIVE = ("reach_sec", "max_delay_sec", "idle_sec", "reconnect_sec", "input_format", "input_option")


def __getattr__(name: str) -> Any:
    """The library's half of `__all__`, imported when it is asked for: `--help` needs no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from adatad_ds.inference import video_detector

    return getattr(video_detector, name)


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command; errors print one line per file; returns the exit code."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    with collection_paused():
        import torch  # seconds, as what follows

        from adatad_ds.data.decoding.video import VideoError
        from adatad_ds.evaluation.operating_point import ShownFrom
        from adatad_ds.inference.live_report import report_live
        from adatad_ds.inference.prediction import RESULTS_FILE, Wanted, predict
        from adatad_ds.inference.video_detector import load_detector

    try:
        check_options(arguments, parser)
        source = live_source(arguments) if arguments.live else None
        videos, absent = (
            ({}, []) if source else find_files(arguments.videos, reserved=Path(RESULTS_FILE).stem, ending=ANNOTATED)
        )
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
            print(describe_logits(detector.classes), file=sys.stderr if source else sys.stdout)
        shown = ShownFrom.choose(arguments.score, detector.operating_point)
        if source:
            folder = arguments.output if arguments.html else None
            timing = {"reach_sec": arguments.reach_sec, "max_delay_sec": arguments.max_delay_sec}
            report_live(detector, source, shown=shown, folder=folder, **timing)
            return 0
        wanted = Wanted(
            folder=arguments.output,
            shown=shown,
            annotated=arguments.annotated,
            html=arguments.html,
            embedded_mb=arguments.embed_mb,
        )
        for message in absent:
            print(f"error: {message}", file=sys.stderr)
        failed = predict(detector, videos, wanted=wanted)
    except (UserError, VideoError, OSError) as error:
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
        done = "what was printed is done" if arguments.live else f"what {arguments.output / RESULTS_FILE} names is done"
        print(f"\ninterrupted; {done}", file=sys.stderr)
        return 130
    return 1 if failed or absent else 0


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; `prog`: the command's name in messages, by default this file's."""
    from adatad_ds.evaluation.operating_point import SHOWN_SCORE

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
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("predictions"), help="folder for the results; default: %(default)s"
    )
    parser.add_argument(
        "--score",
        type=between(0, 1),
        help="minimum score in subtitles, annotated videos and (initially) pages; JSON and CSV contain all; "
        f"default: the one with the best F1 in evaluation, or {SHOWN_SCORE} if the detector was not evaluated",
    )
    parser.add_argument(
        "--annotated", action="store_true", help="write NAME.annotated.mp4, a copy with the detections drawn on it"
    )
    parser.add_argument(
        "--html",
        action="store_true",
        help="write NAME.html, a player and a timeline with filters. Videos up to --embed-mb are embedded in the page; "
        "larger ones are linked by their relative path, so keep both where they are. Videos that browsers cannot play "
        "(AVI, MKV, HEVC) are shown as their annotated copies",
    )
    parser.add_argument(
        "--embed-mb",
        type=between(0),
        default=EMBEDDED_MB,
        metavar="MB",
        help="largest video to embed; default: %(default)s",
    )
    parser.add_argument("--recipe", help="recipe of a published checkpoint; see train.py --list-recipes")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="file of class names, one per line, if they are unknown"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights, not their running average (EMA)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument(
        "--max-device-gb",
        type=between(0),
        metavar="GB",
        help="device memory limit; the part of the backbone that does not fit stays in host memory; default: the free "
        "memory",
    )
    add_live_options(parser)
    return parser


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """The options of live videos."""
    add = parser.add_argument_group("live videos").add_argument
    add(
        "--live",
        action="store_true",
        help="VIDEO is live: - (standard input), rtsp://..., http://..., a camera (/dev/video0), a pipe, or a "
        "growing file. Detections are printed as lines of JSON as soon as they are final; --html writes live.html, a "
        "page that updates, to the output folder",
    )
    add(
        "--reach-sec",
        type=between(0),
        metavar="SEC",
        help="how long before its window a detection may begin; default: an eighth of a window",
    )
    add(
        "--max-delay-sec",
        type=between(0),
        metavar="SEC",
        help="print detections that may still change after this time, as not final; default: eight windows",
    )
    add(
        "--idle-sec",
        type=between(0),
        default=10.0,
        metavar="SEC",
        help="after this time without data, a file has ended, and other streams are reopened; default: %(default)s",
    )
    add(
        "--reconnect-sec",
        type=between(0),
        default=60.0,
        metavar="SEC",
        help="how long to try to reopen a stream; 0: never; default: %(default)s",
    )
    add("--input-format", metavar="NAME", help="FFmpeg's name of the stream's format, if it is not recognised")
    add(
        "--input-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an FFmpeg option for the stream, e.g. rtsp_transport=tcp, framerate=30",
    )


def check_options(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check that no option is for another way to predict.

    Raises:
        ConfigError: one is.
    """
    if not arguments.live:
        check_unused(arguments, parser, ONLY_LIVE, why="it is for --live")
    if arguments.live or not arguments.html:
        check_unused(arguments, parser, ("embed_mb",), why="it is for the pages of --html, without --live")
    if arguments.live and not arguments.html:
        check_unused(arguments, parser, ("output",), why="--live writes no file without --html")


def live_source(arguments: argparse.Namespace) -> LiveSource:
    """The stream that is asked for.

    Raises:
        ConfigError: options that cannot be meant.
    """
    from adatad_ds.data.live.source import LiveSource

    if len(arguments.videos) != 1:
        raise ConfigError(f"--live accepts one stream, not {len(arguments.videos)}; start one process for each")
    if arguments.annotated:
        raise ConfigError("--annotated copies a whole video, but a live one has no end; leave it out")
    if wrong := [option for option in arguments.input_option if "=" not in option]:
        raise ConfigError(f"--input-option {wrong[0]}: expected NAME=VALUE")
    return LiveSource(
        address=arguments.videos[0],
        format=arguments.input_format,
        options=dict(option.split("=", 1) for option in arguments.input_option),
        idle_sec=arguments.idle_sec,
        reconnect_sec=arguments.reconnect_sec,
    )


if __name__ == "__main__":
    use_utf8()
    run_process(main)
