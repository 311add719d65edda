"""Convert pretrained weights once, so that a run reads just what it needs.

    adatad-ds convert SOURCE --out pretrained/videomae_b.safetensors [--dtype bf16]

SOURCE is any that `backbone.weights` takes: a file or folder of VideoMAE, VideoMAE V2, InternVideo, transformers or
mmaction2, a name on the Hugging Face hub, or a trained detector of AdaTAD's authors. Writes OUT under this package's
names, and OUT's name with `.json`: where it came from, what was left out, its fingerprint.

A trained detector keeps its published names (which blocks its adapters belong to is its recipe's to say); of the
running average only what differs from the last weights is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, required=True, help="OUT.safetensors")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: as in the source")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Convert."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.weights.conversion import DTYPES, convert
    from adatad_ds.weights.files import require_safetensors
    from adatad_ds.weights.video_layouts import open_weights

    require_safetensors(arguments.out)
    weights = open_weights(arguments.source)
    print(convert(weights, out=arguments.out, dtype=DTYPES.get(arguments.dtype)))
    return 0
