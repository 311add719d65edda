"""Print the mAP or accuracy of several runs side by side; with --page, write a page that also has curves and settings.

adatad-ds compare runs/A runs/B --page compared.html
"""

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
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write a page, which may also include runs that are not evaluated"
    )
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print one line a run: average mAP, then mAP at each tIoU, or the accuracies, in %."""
    arguments = make_parser(prog).parse_args(argv)
    if arguments.page is not None:
        from adatad_ds.evaluation.run_report.comparison_page import write_comparison

        write_comparison(arguments.page, arguments.runs, report=print)
        return 0
    print(f"\n{compare_runs(arguments.runs)}")
    return 0
