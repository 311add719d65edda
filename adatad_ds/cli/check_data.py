"""Check a data set before training on it: decode every video, compare annotations with files, suggest a window.

    adatad-ds check-data --annotations FILE --videos FOLDER [--out FOLDER] [--recipe NAME]

OUT gets report.txt (all that is found), settings.txt (what to paste behind train.py), settings_small.txt (the same for
a small machine), excluded.txt (videos that training has to leave out, if any), distributions.png, and check_cache.json,
by which a second run decodes new and changed files only. Exit code: 0 all good, 1 problems found, 2 nothing to check.
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
    add("--annotations", type=Path, required=True, help="the community's JSON; see docs/guides/own_data.md")
    add("--videos", type=Path, required=True, help="folder of VIDEO_NAME.mp4 (or .mkv, ...)")
    add("--out", type=Path, default=Path("runs/check_data"), help="default %(default)s")
    add("--workers", type=at_least(1), help="decoding processes; default: the cores")
    add("--recipe", help="also say how the data fit this one, and change it (default: change thumos14_videomae_s)")
    add("--train-subset", help="default: the one whose name begins with train, or the largest")
    add("--test-subset", help="default: another one, first of all val... or test...")
    add("--max-frames", type=at_least(1), default=768, help="most frames of a suggested window; default %(default)s")
    add("--page", type=Path, metavar="FOLDER", help="first write pages there that show the annotations on the videos")
    add("--exclude-file", default="", help="leave out the videos of this list, as data.exclude_file does")
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
