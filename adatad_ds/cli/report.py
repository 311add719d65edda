"""Write the report of a run: a page with result, curves, errors, videos, settings, costs, and the command to repeat it.

    adatad-ds report runs/NAME

RUN/report/report.html opens in a browser without network access. Videos are linked at their original location; with
--copy they are copied, so that the folder can be sent to others.
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
    add("run", type=Path, metavar="RUN", help="a run's folder, preferably after adatad-ds evaluate")
    add("--out", type=Path, metavar="FOLDER", help="folder of the report; default: RUN/report")
    add("--annotations", type=Path, metavar="FILE", help="annotations; default: at the path used in training")
    add("--subset", metavar="NAME", help="subset that was evaluated; default: the test subset of the training")
    add("--videos", type=Path, metavar="FOLDER", help="folder of the videos; default: at the path used in training")
    add(
        "--show",
        type=at_least(0),
        default=4,
        metavar="N",
        help="number of best and of worst videos to show; default: %(default)s",
    )
    add("--copy", action="store_true", help="copy the videos that are shown")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Write the report."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.evaluation.run_report.report import FOLDER, Wanted, write_report

    wanted = Wanted(
        folder=arguments.out or arguments.run / FOLDER,
        annotations=arguments.annotations,
        subset=arguments.subset,
        videos=arguments.videos,
        best=arguments.show,
        copy=arguments.copy,
    )
    write_report(arguments.run, wanted=wanted, report=print)
    return 0
