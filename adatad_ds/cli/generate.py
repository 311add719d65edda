"""Generate a dataset to train on: the quickstarts' data.

    adatad-ds generate videos --out data/quickstart --train 160 --test 32 --seed 1
    adatad-ds generate clips --out data/quickstart_clips --train 60 --test 15 --seed 1

Videos are untrimmed, with annotated actions. Clips are of classes that differ only in their motion, in one folder per
class.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.system.options import at_least


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="videos|clips")
    videos = kinds.add_parser("videos", help="untrimmed videos with annotations: detection", allow_abbrev=False)
    videos.add_argument("--out", type=Path, required=True, help="folder for annotations.json and videos/")
    videos.add_argument(
        "--train", type=at_least(1), default=160, help="number of training videos; default: %(default)s"
    )
    videos.add_argument("--test", type=at_least(0), default=32, help="number of test videos; default: %(default)s")
    length = "duration of the shortest and the longest video; default: 15 40"
    videos.add_argument("--seconds", type=float, nargs=2, metavar=("MIN", "MAX"), default=(15.0, 40.0), help=length)
    clips = kinds.add_parser("clips", help="short clips in a folder per class: recognition", allow_abbrev=False)
    clips.add_argument("--out", type=Path, required=True, help="folder for train/CLASS/*.mp4 and test/CLASS/*.mp4")
    clips.add_argument("--train", type=at_least(1), default=60, help="training clips per class; default: %(default)s")
    clips.add_argument("--test", type=at_least(0), default=15, help="test clips per class; default: %(default)s")
    for each in (videos, clips):
        each.add_argument("--seed", type=at_least(0), default=1, help="random seed; default: %(default)s")
        each.add_argument("--workers", type=at_least(1), default=2, help="number of processes; default: %(default)s")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Make the dataset, unless the same one is there already."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.data.generated.folders import generate_clips, generate_videos

    generate = generate_clips
    if arguments.kind == "videos":
        generate = partial(generate_videos, duration_sec=tuple(arguments.seconds))
    print(
        generate(
            arguments.out,
            train=arguments.train,
            test=arguments.test,
            seed=arguments.seed,
            workers=arguments.workers,
        )
    )
    return 0
