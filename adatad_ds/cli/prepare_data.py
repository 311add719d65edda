"""Turn a data set's published annotation files into the community's JSON, which this project reads.

    adatad-ds prepare-data thumos14 --source downloads/thumos14 --out data/thumos14/annotations.json \\
        --videos data/thumos14/videos

What was found is compared with published counts. With --videos, videos that are not there end it with code 1, unless
--exclude-missing leaves them out and lists them in OUT's .excluded.txt, which --exclude-file takes. Each data set:
docs/reference/datasets.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.data.sources.facts import DATASETS
from adatad_ds.data.sources.formats import TESTING


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("dataset", choices=tuple(DATASETS))
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="the owners' files, or their folders")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--videos", type=Path, help="folder of the videos, NAME.mp4 or v_NAME.mp4 (or .mkv, ...)")
    parser.add_argument("--exclude-missing", action="store_true", help="leave out videos that are not there")
    parser.add_argument(
        "--exclude-file", type=Path, help="leave out the videos of a list: a name a line, or a JSON list of names"
    )
    parser.add_argument(
        "--with-test", action="store_true", help=f"also the challenge's test videos, as subset {TESTING} (EPIC, Ego4D)"
    )
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Convert and report; 1 where videos are missing."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.data.sources.preparation import prepare

    return prepare(
        DATASETS[arguments.dataset],
        sources=arguments.source,
        out=arguments.out,
        videos=arguments.videos,
        exclude_missing=arguments.exclude_missing,
        exclude_file=arguments.exclude_file,
        with_test=arguments.with_test,
        report=print,
    )
