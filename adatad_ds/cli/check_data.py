"""Check a dataset before training on it: decode every video, compare annotations with files, suggest a window.

    adatad-ds check-data --annotations FILE --videos FOLDER [--out FOLDER] [--recipe NAME]

Writes to OUT: report.txt (all findings), settings.txt (options for train.py), settings_small.txt (the same for a small
machine), excluded.txt (videos that training has to leave out, if any), distributions.png, and check_cache.json, with
which a second run decodes only new and changed files. Exit code: 0 no problems, 1 problems found, 2 nothing to check.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.system.options import at_least


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    add = parser.add_argument
    add(
        "--annotations", type=Path, required=True, help="file in ActivityNet's JSON format; see docs/guides/own_data.md"
    )
    add("--videos", type=Path, required=True, help="folder of VIDEO_NAME.mp4 (or .mkv, ...)")
    add("--out", type=Path, default=Path("runs/check_data"), help="folder for the results; default: %(default)s")
    add("--workers", type=at_least(1), help="decoding processes; default: the number of cores")
    add("--recipe", help="recipe to compare the data with, and to adapt; default: thumos14_videomae_s is adapted")
    add("--train-subset", help="subset to train on; default: the one whose name begins with train, or the largest")
    add("--test-subset", help="subset to test on; default: another one, preferably val... or test...")
    add(
        "--max-frames",
        type=at_least(1),
        default=768,
        help="maximum number of frames of a suggested window; default: %(default)s",
    )
    add(
        "--page",
        type=Path,
        metavar="FOLDER",
        help="first write pages to this folder that show the annotations on the videos",
    )
    add("--exclude-file", default="", help="leave out the videos in this list, like data.exclude_file")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Check; 1 where there are problems."""
    arguments = make_parser(prog).parse_args(argv)
    if arguments.page is not None:
        from adatad_ds.evaluation.video.annotation_pages import write_annotation_pages

        write_annotation_pages(
            arguments.page,
            annotations=arguments.annotations,
            videos=arguments.videos,
            exclude_file=arguments.exclude_file,
            report=print,
        )
    from adatad_ds.planning.data_check import check_data

    problems = check_data(
        arguments.annotations,
        arguments.videos,
        out=arguments.out,
        recipe_name=arguments.recipe,
        workers=arguments.workers,
        train_subset=arguments.train_subset,
        test_subset=arguments.test_subset,
        max_frames=arguments.max_frames,
        exclude_file=arguments.exclude_file,
        report=print,
    )
    return 1 if problems else 0
