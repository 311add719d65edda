"""Fetch a model shared by adatad-ds push, from the Hugging Face hub or a folder, and check it.

    adatad-ds pull hub:USER/NAME [--out FOLDER]
    adatad-ds evaluate FOLDER/model.safetensors --set data.annotations=FILE --set data.videos=FOLDER

The frozen backbone is not included; the model card, FOLDER/README.md, names it. Loading the model with a different
backbone is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adatad_ds.cli.commands import command_parser


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("place", metavar="hub:USER/NAME", help="a repository on the hub, or a folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder; default: exports/NAME")
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Fetch."""
    arguments = make_parser(prog).parse_args(argv)
    from adatad_ds.sharing.model_card import backbone_text
    from adatad_ds.sharing.shared_model import pull

    folder = arguments.out or Path("exports") / Path(arguments.place.removeprefix("hub:")).name
    trained = pull(arguments.place, folder)
    print(f"{trained.source}: {len(trained.classes) or 'unnamed'} classes; {folder / 'README.md'} describes it")
    print(f"its backbone: {backbone_text(trained)}")
    return 0
