"""Re-encode videos once for recipes that read them many times: only the frames they need, at their size, in short GOPs.

    adatad-ds prepare-videos --recipe thumos14_videomae_s --set data.annotations=annotations.json \\
        --set data.videos=videos --out prepared

Then train, evaluate, predict and check as usual with `--set data.videos=prepared`: windows show the same frames. If the
command is killed, run it again to continue. OUT/prepared.jsonl records which original frames each file contains.
Several recipes can share a folder: name them all, or run again for another one. Exit code: 0 all prepared, 1 some
videos failed.
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
        "--recipe",
        action="append",
        required=True,
        help="recipe that will read the videos; for several: --recipe A --recipe B",
    )
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of the recipes")
    add("--out", type=Path, required=True, help="folder of the prepared videos")
    codecs = (
        "H.264 (smallest), MJPEG (fastest to read), or lossless (exactly the original's pixels); default: %(default)s"
    )
    add("--codec", choices=("h264", "mjpeg", "lossless"), default="h264", help=codecs)
    add(
        "--quality",
        type=int,
        help="CRF of h264 (default: 11; lower is better) or JPEG quality of mjpeg (default: 96, or 98 if needed)",
    )
    add("--workers", type=at_least(1), help="number of processes; default: the number of cores")
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
