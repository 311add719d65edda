"""A command's process, alone or as one of several ranks: output, error messages, exit code."""

from __future__ import annotations

import atexit
import errno
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from adatad_ds.errors import RankError, UserError, WriteError, in_words
from adatad_ds.system.console import keep_output, say_error
from adatad_ds.system.launch import launched_rank, launched_ranks, remove_torchrun_folder

if TYPE_CHECKING:
    from adatad_ds.distributed.world import World

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run a command's main function, and exit with the code that it returns."""
    keep_output()
    faulthandler.enable()
    try:
        code = main()
    except SystemExit as leaving:  # argparse has said what is wrong
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        say_error("interrupted")
        code = 130
    end_process(code)


def report_error(error: Exception, world: World | None) -> int:
    """Print the error that ends this program, once for all ranks that share it; return the exit code.

    An error that one line does not explain is printed with its traceback, by the rank that raised it.

    Args:
        error: of this rank alone, or one that all ranks have agreed on.
        world: the ranks, once joined.
    """
    cause = error.__cause__ if isinstance(error, RankError) else error
    if cause is not None and not is_users(cause):
        print("".join(traceback.format_exception(cause)), file=sys.stderr, flush=True)
    # Once joined, all ranks raise errors of settings and data together: those that only one can meet are agreed on.
    of_all = isinstance(error, RankError) or (world is not None and isinstance(error, UserError))
    message = in_words(error) if of_all or launched_ranks() == 1 else f"rank {launched_rank()}: {in_words(error)}"
    if world is None:
        say_error(message)
    else:
        world.say_once(message, say_error, of_all=of_all)
    return 2 if cause is None or is_users(cause) else 1


def is_users(error: BaseException) -> bool:
    """Whether one line explains an error: settings, data, files that cannot be read or written."""
    if isinstance(error, OSError):
        return isinstance(error, WriteError) or error.filename is not None or error.errno in _NO_ROOM
    return isinstance(error, UserError | RankError)


def end_process(code: int) -> NoReturn:
    """Exit with a code; one of several ranks does not finalise its interpreter.

    DeepSpeed's hooks keep partitioned parameters alive, these their process group, and that its gloo threads:
    finalising the interpreter under them aborts a rank that has finished its work, once in some hundred runs. Exit
    functions are run and output is flushed.
    """
    remove_torchrun_folder()
    if launched_ranks() == 1:  # no process group; and a profiler around it can still write its results
        sys.exit(code)
    atexit._run_exitfuncs()  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
