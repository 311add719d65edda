"""Prepare videos once for recipes that will read them many times: their frames alone, at their size, in short groups.

    adatad-ds prepare-videos --recipe thumos14_videomae_s --set data.annotations=annotations.json \\
        --set data.videos=videos --out prepared

Then train, evaluate, predict and check as usual with `--set data.videos=prepared`: windows show the same frames. A run
that was killed goes on where it was. OUT/prepared.jsonl says which frames of which original each file holds. Several
recipes share a folder: name them all, or run again for another one. Exit code: 0 all prepared, 1 some videos cannot be.
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
    add("--recipe", action="append", required=True, help="that will read the videos; several: --recipe A --recipe B")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipes")
    add("--out", type=Path, required=True, help="folder of the prepared videos")
    codecs = (
        "H.264, the smallest; MJPEG, read fastest; or lossless, with the original's very pixels; default %(default)s"
    )
    add("--codec", choices=("h264", "mjpeg", "lossless"), default="h264", help=codecs)
    add(
        "--quality",
        type=int,
        help="CRF of h264 (default 11; less is better) or JPEG quality of mjpeg (default 96, 98 where needed)",
    )
    add("--workers", type=at_least(1), help="processes; default: the cores")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Prepare; 1 where videos cannot be."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.config.loading import override
    from adatad_ds.data.preparation.needs import wanted
    from adatad_ds.data.preparation.preparation import prepare_videos
    from adatad_ds.recipes.catalog import find_recipe
    from adatad_ds.system.launch import cores

    unprepared = prepare_videos(
        [wanted(override(find_recipe(name).config, arguments.set)) for name in arguments.recipe],
        out=arguments.out,
        codec=arguments.codec,
        quality=arguments.quality,
        workers=arguments.workers or cores(),
        report=print,
    )
    return 1 if unprepared else 0
