"""Export a run's trained tensors: one safetensors file, and a JSON file with everything needed to rebuild the rest.

    adatad-ds export runs/NAME --out exports/NAME.safetensors [--no-ema] [--merge]

The frozen backbone is not included; the JSON file names it and has its fingerprint. `evaluate` and `predict` accept
exports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("run", type=Path, help="a run's folder (its best checkpoint, else the newest) or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights, not their running average (EMA)")
    parser.add_argument("--merge", action="store_true", help="merge LoRA's updates into the transformer's weights")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Export."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.inference.trained_model import export, find_trained, merge_updates
    from adatad_ds.runs.folder import versions
    from adatad_ds.weights.files import require_safetensors

    out: Path = arguments.out
    require_safetensors(out)
    trained = find_trained(arguments.run, averaged=not arguments.no_ema)
    if arguments.merge:
        trained = merge_updates(trained)
    export(trained, out, extra={"versions": versions()})
    print(f"{trained.name}: {out} ({out.stat().st_size / 1e6:.1f} MB) and {out.with_suffix('.json').name}")
    return 0
