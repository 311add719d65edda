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
ABOUT = "Temporal action detection with frozen backbones of up to a billion parameters, on DeepSpeed."


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
        "prepare-data": Command("cli.prepare_data", "convert annotations to the JSON file used by all commands"),
        "check-data": Command("cli.check_data", "decode all videos, find problems, suggest training settings"),
        "prepare-videos": Command("cli.prepare_videos", "re-encode videos once, to read them faster in training"),
        "extract-features": Command("cli.extract_features", "extract features of whole videos, to train heads on"),
        "generate": Command("cli.generate", "generate the quickstarts' videos or clips"),
    },
    "Training": {
        "plan": Command("cli.plan", "estimate memory and time of a run before it is queued; what fits where"),
        "train": Command("train", "train a recipe; for several ranks: deepspeed adatad_ds/train.py", is_rank=True),
        "slurm": Command("cli.slurm", "submit a run or a grid of runs, report on a grid"),
    },
    "Results": {
        "evaluate": Command("evaluate", "evaluate a run, an export or a published model", is_rank=True),
        "predict": Command("predict", "detect actions in video files", is_rank=True),
        "serve": Command("cli.serve", "serve a detector over HTTP on this machine: videos in, detections out"),
        "diagnose": Command("cli.diagnose", "analyse errors by kind, and the mAP that each kind costs"),
        "report": Command("cli.report", "write a page about a run: curves, errors, videos, settings, costs"),
        "compare": Command("cli.compare", "compare the mAP of several runs; as a page, also curves and settings"),
        "submission": Command("cli.submission", "write the submission file of a challenge"),
    },
    "Weights": {
        "convert": Command("cli.convert", "convert pretrained weights once, to load only what is needed"),
        "export": Command("cli.export", "export a run's trained tensors, and how to rebuild the rest"),
        "push": Command("cli.push", "share an export with a model card, on the Hugging Face hub or in a folder"),
        "pull": Command("cli.pull", "fetch a shared model and check it"),
    },
    "Shell": {
        "completion": Command("cli.completion", "print a completion script for bash, zsh or tcsh"),
    },
}
COMMANDS = {name: command for commands in BY_PURPOSE.values() for name, command in commands.items()}


def help_text() -> str:
    """All commands by purpose."""
    lines = [f"usage: {PROGRAM} COMMAND [options]", "", ABOUT]
    for purpose, commands in BY_PURPOSE.items():
        lines += ["", f"{purpose}:", *(f"  {name:<16} {command.summary}" for name, command in commands.items())]
    return "\n".join(
        [*lines, "", f"Run {PROGRAM} COMMAND --help for details of a command, {PROGRAM} --version for the version."]
    )


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
        meant = f"; did you mean {near[0]}?" if near else "."
        wrong = f"there is no command {name!r}{meant}" if name else "no command given."
        return _fail(f"{wrong} {PROGRAM} --help lists all commands")
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
