"""Share an export: its tensors, its description and a model card, on the Hugging Face hub or in a folder.

    adatad-ds push exports/NAME.safetensors hub:USER/NAME [--private] [--metrics FILE]
    adatad-ds push exports/NAME.safetensors FOLDER

The frozen backbone is not uploaded. Paths on this machine are reduced to their last part; its name and environment are
not uploaded. The hub requires a token with write access: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser
from adatad_ds.errors import ConfigError


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    add = parser.add_argument
    add("export", type=Path, metavar="EXPORT", help="a .safetensors file written by adatad-ds export")
    add("place", metavar="hub:USER/NAME", help="a repository to create on the hub, or a folder")
    add(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="metrics.json of adatad-ds evaluate; default: the metrics of training",
    )
    add("--private", action="store_true", help="make the repository private")
    add("--replace", action="store_true", help="replace the files of an existing repository or folder")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Share."""
    arguments = make_parser(prog).parse_args(argv)
    metrics = None
    if arguments.metrics:
        try:
            content = json.loads(arguments.metrics.read_text(encoding="utf-8"))
            metrics = {str(name): float(value) for name, value in content.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"--metrics {arguments.metrics} cannot be read as metrics: {error}") from error
    from adatad_ds.sharing.model_card import backbone_terms, holds_backbone
    from adatad_ds.sharing.shared_model import open_shared, push

    trained, _ = open_shared(arguments.export)
    if holds_backbone(trained):
        print(f"warning: weights of the backbone itself are part of this export; they {backbone_terms(trained)}")
    place, private = arguments.place, arguments.private
    print(f"shared: {push(arguments.export, place, metrics=metrics, private=private, again=arguments.replace)}")
    return 0
