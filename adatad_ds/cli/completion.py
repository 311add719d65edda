"""Print a shell script that completes commands and their options.

    adatad-ds completion bash >~/.local/share/bash-completion/completions/adatad-ds
    adatad-ds completion zsh >FOLDER_OF_FPATH/_adatad-ds

TAB completion then works in new shells. The script is self-contained: pressing TAB does not start Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from adatad_ds.cli.commands import COMMANDS, PROGRAM, command_parser

SHELLS = ("bash", "zsh", "tcsh")


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(prog, __doc__)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print the script."""
    arguments = make_parser(prog).parse_args(argv)
    import shtab

    print(shtab.complete(whole_parser(), shell=arguments.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """All commands and their options in one parser, which is made for completion alone: it imports them all."""
    parser = argparse.ArgumentParser(prog=PROGRAM, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = command.load().make_parser(f"{PROGRAM} {name}")
        commands.add_parser(name, parents=[own], add_help=False, help=command.summary)
    return parser
