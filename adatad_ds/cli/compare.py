"""Print the evaluated mAP of several runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.evaluation.comparison import compare_runs


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of evaluated runs")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print one line a run: average mAP, then mAP at each tIoU, in %."""
    arguments = make_parser(prog).parse_args(argv)
    print(f"\n{compare_runs(arguments.runs)}")
    return 0
