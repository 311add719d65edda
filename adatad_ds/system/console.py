"""Standard output and error: what a command says, whoever reads it, and as long as anybody does."""

from __future__ import annotations

import errno
import faulthandler
import io
import os
import sys
from typing import Any

_READER_GONE = (errno.EPIPE, errno.EIO)  # `| head` has seen enough; the terminal is closed


class _LastingFile(io.FileIO):
    """A file whose reader may go away; what is written afterwards is lost, and no error."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for all who write there, in C++ too
            os.close(nowhere)
            return super().write(data)


def keep_output() -> None:
    """Let standard output and error outlive their readers: a training goes on and ends well."""
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        if not isinstance(before, io.TextIOWrapper):
            continue  # it is nobody's, or somebody's own
        before.flush()
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_LastingFile(before.fileno(), "w", closefd=False)),
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=before.line_buffering or name == "stderr",
            write_through=before.write_through,
        )
        setattr(sys, name, lasting)


def say_error(message: str) -> None:
    """One error, on a line of its own whatever a progress bar has left."""
    print(f"\nerror: {message}", file=sys.stderr, flush=True)


def show_stacks() -> None:
    """The stack of every thread of this process, whatever they do."""
    faulthandler.dump_traceback(file=2, all_threads=True)  # by its descriptor, which is there whatever sys.stderr is


def say(message: str) -> None:
    """A line beside the program's output, at once."""
    print(f"\n{message}", file=sys.stderr, flush=True)
