"""Analyse the errors of detections: false positives by kind, missed segments, and the mAP gained by fixing each.

    adatad-ds diagnose runs/NAME/evaluate/detections.json ANNOTATIONS.json [--subset validation]

Writes report.html, report.md, CSV tables and pictures; docs/guides/errors.md says what each number means.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.system.options import between


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    from adatad_ds.evaluation.diagnosis.diagnosis import BINS, MIN_PRECISION
    from adatad_ds.evaluation.diagnosis.inputs import DEFAULT_TIOU
    from adatad_ds.evaluation.metrics_files import METRICS_FILE

    default = f"those of {METRICS_FILE} next to the detections, else {' '.join(map(str, DEFAULT_TIOU))}"
    parser = command_parser(prog, __doc__)
    add = parser.add_argument
    add("detections", type=Path, help="detections.json of an evaluation, or any file of that format")
    add("annotations", type=Path, help="the annotations, as JSON")
    add("--subset", default="validation", help="subset of the annotations; default: %(default)s")
    add("--output", type=Path, help="folder for the results; default: errors/ next to the detections")
    add("--tiou", type=_share, default=0.5, help="minimum tIoU of a correct detection; default: %(default)s")
    add("--average-tiou", type=_share, nargs="+", metavar="TIOU", help=f"thresholds of average mAP; default: {default}")
    add("--exclude", nargs="+", default=[], metavar="VIDEO", help="annotated videos to leave out")
    add("--exclude-file", default="", metavar="FILE", help="file with more videos to leave out, like data.exclude_file")
    add(
        "--bins",
        choices=sorted(BINS),
        help="DETAD's size bins for missed segments; default: chosen by the median length",
    )
    found = (
        "a segment found only where the precision of its class is at most this counts as missed; default: %(default)s"
    )
    add("--min-precision", type=between(0, 1), default=MIN_PRECISION, help=found)
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Diagnose and write the report."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.evaluation.diagnosis.diagnosis import suitable_bins
    from adatad_ds.evaluation.diagnosis.inputs import diagnose_files
    from adatad_ds.evaluation.diagnosis.report import HTML_FILE, MARKDOWN_FILE, summary, write_report

    diagnosis, source = diagnose_files(
        arguments.detections,
        arguments.annotations,
        subset=arguments.subset,
        tiou=arguments.tiou,
        average_tiou=arguments.average_tiou,
        min_precision=arguments.min_precision,
        exclude=arguments.exclude,
        exclude_file=arguments.exclude_file,
    )
    output: Path = arguments.output or arguments.detections.parent / "errors"
    bins = arguments.bins or suitable_bins(diagnosis.truths)
    write_report(output, diagnosis, source=source, bins=bins, report=lambda line: print(line, file=sys.stderr))
    for note in source.notes:
        print(f"note: {note}")
    print(summary(diagnosis))
    print(f"written: {output / HTML_FILE}, {MARKDOWN_FILE}, tables and pictures")
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a tIoU: give a number above 0, up to 1")
    return value
