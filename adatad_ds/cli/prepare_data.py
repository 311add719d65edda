"""Convert annotations, of a published dataset or your own, to the JSON file (in ActivityNet's format) used here.

    adatad-ds prepare-data thumos14 --source downloads/thumos14 --out data/thumos14/annotations.json \\
        --videos data/thumos14/videos
    adatad-ds prepare-data csv --source labels.csv --videos my_videos --out my_annotations.json

For published datasets (docs/reference/datasets.md), the result is compared with published counts. Your own annotations
(docs/guides/own_data.md) come from a CSV file or an export of ELAN, CVAT, VIA or Label Studio. With --videos, missing
videos are an error (exit code 1), unless --exclude-missing leaves them out and lists them in OUT's .excluded.txt, which
--exclude-file accepts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.data.sources.facts import DATASETS
from adatad_ds.data.sources.formats import TESTING
from adatad_ds.errors import ConfigError
from adatad_ds.system.options import at_least

OWN = "csv", "elan", "cvat", "via", "label-studio"
ONLY_OF = {  # options of one's own data: for which tools
    "tiers": OWN,
    "annotators": OWN,
    "labelled_only": OWN,
    "validation": OWN,
    "validation_share": OWN,
    "seed": OWN,
    "page": OWN,
    "unit": ("csv",),
    "frame_rate": ("label-studio",),
    "label_from": ("cvat",),
    "exclude_file": tuple(DATASETS),
    "with_test": tuple(DATASETS),
}


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("dataset", choices=(*DATASETS, *OWN), metavar="DATASET|TOOL", help=", ".join((*DATASETS, *OWN)))
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="the annotation files, or their folders")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--videos", type=Path, help="folder of the videos, NAME.mp4 or v_NAME.mp4 (or .mkv, ...)")
    parser.add_argument("--exclude-missing", action="store_true", help="leave out videos without a file")
    published = parser.add_argument_group("published datasets")
    published.add_argument(
        "--exclude-file", type=Path, help="leave out the videos in a list: one name per line, or a JSON list of names"
    )
    published.add_argument(
        "--with-test",
        action="store_true",
        help=f"also include the challenge's test videos, as subset {TESTING} (EPIC, Ego4D)",
    )
    own = parser.add_argument_group("your own data")
    add = own.add_argument
    add("--tiers", nargs="+", metavar="NAME", help="tiers (ELAN), attributes (VIA), ... to use; all: all of them")
    add("--annotators", nargs="+", metavar="NAME", help="annotators whose segments are used; all: all of them")
    add("--unit", choices=("seconds", "frames"), help="unit of start and end in a CSV; default: seconds")
    add("--frame-rate", metavar="RATE", help="frameRate of Label Studio's <Video> tag: a number, '$FIELD' or video")
    add("--label-from", metavar="ATTRIBUTE", help="CVAT: use the values of this attribute as labels")
    add("--labelled-only", action="store_true", help="leave out videos without a segment")
    add(
        "--validation",
        type=Path,
        metavar="LIST",
        help="file with the names of the validation videos, one per line; all others are for training",
    )
    add(
        "--validation-share",
        type=float,
        metavar="SHARE",
        help="or: share of the videos used for validation; default: 0.2",
    )
    add("--seed", type=at_least(0), help="random seed of this choice; default: 0")
    add(
        "--page",
        type=Path,
        metavar="FOLDER",
        help="also write pages to this folder that show the segments on the videos",
    )
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Convert and report; 1 where videos are missing."""
    arguments = make_parser(prog).parse_args(argv)
    name = arguments.dataset
    for option, tools in ONLY_OF.items():
        if getattr(arguments, option) not in (None, False) and name not in tools:
            raise ConfigError(f"--{option.replace('_', '-')} cannot be used with {name}; it is for {', '.join(tools)}")
    if name in OWN:
        return _prepare_own(arguments)
    from adatad_ds.data.sources.preparation import prepare

    return prepare(
        DATASETS[name],
        sources=arguments.source,
        out=arguments.out,
        videos=arguments.videos,
        exclude_missing=arguments.exclude_missing,
        exclude_file=arguments.exclude_file,
        with_test=arguments.with_test,
        report=print,
    )


def _prepare_own(arguments: argparse.Namespace) -> int:
    from adatad_ds.data.sources.own import Choices, prepare_own

    if arguments.videos is None:
        raise ConfigError(f"{arguments.dataset} needs --videos FOLDER, from which durations and frame times are read")
    if arguments.validation is not None and arguments.validation_share is not None:
        raise ConfigError("--validation and --validation-share are alternatives: give only one")
    share = 0.2 if arguments.validation_share is None else arguments.validation_share
    if not 0 < share < 1:
        raise ConfigError(f"--validation-share {share:g}: expected a share above 0 and below 1, such as 0.2")
    code = prepare_own(
        arguments.dataset,
        sources=arguments.source,
        videos=arguments.videos,
        out=arguments.out,
        choices=Choices(
            tiers=arguments.tiers or (),
            annotators=arguments.annotators or (),
            in_frames=arguments.unit == "frames",
            frame_rate=arguments.frame_rate or "",
            attribute=arguments.label_from or "",
            labelled_only=arguments.labelled_only,
            validation=arguments.validation,
            share=share,
            seed=arguments.seed or 0,
        ),
        exclude_missing=arguments.exclude_missing,
        report=print,
    )
    if arguments.page is not None and code == 0:
        from adatad_ds.evaluation.video.annotation_pages import write_annotation_pages

        write_annotation_pages(arguments.page, annotations=arguments.out, videos=arguments.videos, report=print)
    return code
