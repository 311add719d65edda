"""Convert pretrained weights once, so that a run reads only what it needs.

    adatad-ds convert SOURCE --out pretrained/videomae_b.safetensors [--dtype bf16]

SOURCE is anything that `backbone.weights` accepts: a file or folder of VideoMAE, VideoMAE V2, InternVideo, transformers
or mmaction2, a name on the Hugging Face hub, or a trained detector by AdaTAD's authors. Writes OUT with this package's
tensor names, and a .json file of the same name with the source, what was left out, and the fingerprint.

A trained detector keeps its published names, because its recipe determines which blocks its adapters belong to; of the
running average, only what differs from the last weights is written.
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
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
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
