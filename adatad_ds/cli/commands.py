"""`adatad-ds`: the table of its commands, their common help, and how one of them is run.

A command is a module with `make_parser(prog)` and `main(argv, *, prog)`, which returns the exit code. It is imported
when it is asked for, and what it needs when it runs: the list of commands needs no PyTorch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import adatad_ds
from adatad_ds.errors import UserError

PROGRAM = "adatad-ds"
ABOUT = "Temporal action detection with a frozen billion-parameter backbone, trained on DeepSpeed."


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        module: in the package.
        summary: what it is for, in half a line.
        is_rank: launchers start it, too, as one of several ranks; it reports its own errors.
    """

    module: str
    summary: str
    is_rank: bool = False

    def load(self) -> ModuleType:
        """Import the command's module."""
        return importlib.import_module(f"adatad_ds.{self.module}")


BY_PURPOSE: Mapping[str, Mapping[str, Command]] = {
    "Data": {
        "prepare-data": Command("cli.prepare_data", "turn a data set's published annotations into our JSON"),
        "check-data": Command("cli.check_data", "decode all videos, find faults, suggest settings to train with"),
        "prepare-videos": Command("cli.prepare_videos", "re-encode videos once to what recipes read of them"),
        "extract-features": Command("cli.extract_features", "a backbone's features of whole videos, to train heads on"),
        "generate": Command("cli.generate", "make the quickstarts' videos or clips"),
    },
    "Training": {
        "plan": Command("cli.plan", "memory and least time of a run, before it is queued; what fits where"),
        "train": Command("train", "train a recipe; several ranks: deepspeed adatad_ds/train.py", is_rank=True),
        "slurm": Command("cli.slurm", "submit a run or a grid of runs, report on a grid"),
    },
    "Results": {
        "evaluate": Command("evaluate", "detections and mAP of a run, an export or a published model", is_rank=True),
        "predict": Command("predict", "detect actions in video files", is_rank=True),
        "serve": Command("cli.serve", "answer requests over HTTP on this machine: videos in, detections out"),
        "diagnose": Command("cli.diagnose", "errors of detections by kind, and the mAP that each costs"),
        "report": Command("cli.report", "a page on a run: curves, errors, videos with players, settings, costs"),
        "compare": Command("cli.compare", "several runs side by side: mAP; as a page, curves and settings, too"),
        "submission": Command("cli.submission", "the file that a challenge's server takes"),
    },
    "Weights": {
        "convert": Command("cli.convert", "convert pretrained weights once, to load just what is needed"),
        "export": Command("cli.export", "a run's trained tensors, and how to rebuild the rest"),
        "push": Command("cli.push", "share an export with a model card: on the Hugging Face hub, in a folder"),
        "pull": Command("cli.pull", "fetch a shared model, and check it"),
    },
    "Shell": {
        "completion": Command("cli.completion", "print what completes commands and options in bash, zsh or tcsh"),
    },
}
COMMANDS = {name: command for commands in BY_PURPOSE.values() for name, command in commands.items()}


def help_text() -> str:
    """All commands by purpose."""
    lines = [f"usage: {PROGRAM} COMMAND [options]", "", ABOUT]
    for purpose, commands in BY_PURPOSE.items():
        lines += ["", f"{purpose}:", *(f"  {name:<16} {command.summary}" for name, command in commands.items())]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help says more. {PROGRAM} --version prints the version."])


def command_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """A command's parser, without options; its description keeps its lines, and options are written in full.

    Args:
        prog: as the user types it, e.g. "adatad-ds plan".
        description: the module's docstring.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def main(argv: Sequence[str]) -> int:
    """Run a command; what the user got wrong ends in one paragraph and exit code 2.

    Args:
        argv: the command and its options.

    Returns:
        The exit code. A command that may be one of several ranks ends the process itself.
    """
    name, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"{PROGRAM} {adatad_ds.__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        wrong = f"there is no command {name!r}{meant}" if name else "which command?"
        return _fail(f"{wrong} {PROGRAM} --help lists all")
    command, prog = COMMANDS[name], f"{PROGRAM} {name}"
    module = command.load()
    if command.is_rank:
        from adatad_ds.distributed.process import run_process

        run_process(lambda: module.main(rest, prog=prog))
    try:
        return module.main(rest, prog=prog)
    except (UserError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
        return 130


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
