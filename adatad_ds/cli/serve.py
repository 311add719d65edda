"""Serve a detector over HTTP on this machine: upload a video, or name one in a folder, and get its detections.

    adatad-ds serve exports/NAME.safetensors --folder videos/
    curl --data-binary @match.mp4 -H 'Content-Type: video/mp4' 'http://127.0.0.1:8000/jobs?name=match.mp4'

For a lab's own machine: there are no accounts and no encryption, so by default it listens on this machine only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.errors import ConfigError
from adatad_ds.system.options import between


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="EXPORT", help="a run, a checkpoint or an export, as for predict")
    add("--folder", type=Path, metavar="FOLDER", help="requests may name videos in this folder and its subfolders")
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine only")
    add("--port", type=int, default=8000, help="port to listen on; default: %(default)s; 0: any free one")
    add("--max-mb", type=float, default=2000.0, metavar="MB", help="size of the largest upload; default: %(default)s")
    add(
        "--max-video-min",
        type=float,
        default=180.0,
        metavar="MIN",
        help="duration of the longest video; default: %(default)s",
    )
    add(
        "--max-job-min",
        type=float,
        default=120.0,
        metavar="MIN",
        help="duration of the longest job; default: %(default)s",
    )
    add("--max-queued", type=int, default=16, metavar="N", help="maximum number of waiting jobs; default: %(default)s")
    add("--keep", type=int, default=50, metavar="N", help="number of finished jobs to keep; default: %(default)s")
    add(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="folder for uploads and results while the server runs; default: a temporary one",
    )
    add("--score", type=between(0, 1), help="initial minimum score in pages; default: as for predict")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    add("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--max-device-gb", type=between(0), metavar="GB", help="device memory limit")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    arguments = make_parser(prog).parse_args(argv)
    for name in ("max_mb", "max_video_min", "max_job_min", "max_queued", "keep"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name):g}: expected more than 0")
    if not 0 <= arguments.port < 2**16:
        raise ConfigError(f"--port {arguments.port}: expected 0 to 65535")
    if arguments.work is not None and not arguments.work.is_dir():
        raise ConfigError(f"--work {arguments.work}: there is no such folder")
    from adatad_ds.evaluation.operating_point import ShownFrom
    from adatad_ds.inference.video_detector import load_detector
    from adatad_ds.serving.jobs import Limits
    from adatad_ds.serving.server import serve_until_stopped, serving

    with tempfile.TemporaryDirectory(prefix="adatad_serve_cache_") as cache:
        os.environ["ADATAD_DS_CACHE"] = cache  # indexes of uploads go with them
        detector = load_detector(
            arguments.checkpoint,
            overrides=arguments.set,
            device=arguments.device,
            max_device_gb=arguments.max_device_gb,
        )
        limits = Limits(
            max_mb=arguments.max_mb,
            max_video_min=arguments.max_video_min,
            max_job_min=arguments.max_job_min,
            max_queued=arguments.max_queued,
            kept=arguments.keep,
        )
        with serving(
            detector,
            host=arguments.host,
            port=arguments.port,
            folder=arguments.folder,
            shown=ShownFrom.choose(arguments.score, detector.operating_point),
            limits=limits,
            work=arguments.work,
            about=f"{arguments.checkpoint.name}: {', '.join(detector.classes)}",
            report=lambda line: print(line, flush=True),
        ) as server:
            print(f"serving on http://{arguments.host}:{server.server_port}/; Ctrl-C ends it", flush=True)
            if arguments.host not in ("127.0.0.1", "localhost", "::1"):
                print(
                    f"warning: everyone who reaches {arguments.host} can upload and read; there are no accounts",
                    file=sys.stderr,
                )
            serve_until_stopped(server)
    return 0
