"""Messages on standard output and error, which survive a reader that goes away and names that are not UTF-8."""

from __future__ import annotations

import errno
import faulthandler
import io
import os
import sys
from typing import Any

_READER_GONE = (errno.EPIPE, errno.EIO)  # `| head` has exited; the terminal is closed


class _LastingFile(io.FileIO):
    """A file whose reader may go away; later output is discarded without an error."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for all writers, including C++
            os.close(nowhere)
            return super().write(data)


def keep_output() -> None:
    """Keep the process running when the readers of its standard output and error go away.

    What cannot be encoded, as a file name that is not UTF-8, is printed with its bytes as escapes.
    """
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        if not isinstance(before, io.TextIOWrapper):
            continue  # closed, or replaced by the caller
        before.flush()
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_LastingFile(before.fileno(), "w", closefd=False)),
            encoding=before.encoding,
            errors="backslashreplace",
            line_buffering=before.line_buffering or name == "stderr",
            write_through=before.write_through,
        )
        setattr(sys, name, lasting)


def say_error(message: str) -> None:
    """Print an error to stderr, on a line of its own even after a progress bar."""
    print(f"\nerror: {message}", file=sys.stderr, flush=True)


def show_stacks() -> None:
    """Print the stack of every thread of this process to stderr, even of blocked ones."""
    faulthandler.dump_traceback(file=2, all_threads=True)  # the descriptor works even if sys.stderr was replaced


def say(message: str) -> None:
    """Print a message to stderr, on a line of its own, immediately."""
    print(f"\n{message}", file=sys.stderr, flush=True)
