"""Worker processes that load samples: they ignore signals, which their rank handles, and exit whenever it exits.

They are forked from a small server process, not from the rank: its CUDA contexts, NCCL and engine threads have locks
that a plain fork would copy in any state. The server imports modules once for all workers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import forkserver, popen_forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

# Schedulers, shells and systemd send these to all processes of a rank; only the rank itself handles them.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES, MAPPED_BYTES = 2**28, 2**25  # 2**25 is the most that glibc takes


class _Popen(popen_forkserver.Popen):
    def terminate(self) -> None:
        self.kill()  # SIGTERM is blocked in workers


class _Worker(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:  # noqa: N802
        return _Popen(process_obj)


class WorkerContext(ForkServerContext):
    """Multiprocessing context of worker processes.

    Args:
        imports: modules to preload.
    """

    Process = _Worker

    def __init__(self, imports: Sequence[str]) -> None:
        super().__init__()
        self.set_forkserver_preload(list(imports))
        # Blocked signals stay blocked in child processes; this process gets them afterwards, so none is lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            resource_tracker.ensure_running()  # unblocks two of them
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker: int) -> None:
    """Set up a worker process; called first in each one, with its number.

    The server exits when the rank's end of their pipe is closed; a worker inherits that end, so it closes it. When the
    server exits, so does the worker, whatever it is doing: at once on Linux, elsewhere when it checks for its parent,
    every few seconds.
    """
    import torch  # here: who only asks for SIGNALS needs none

    torch.set_num_threads(1)  # parallelism comes from the number of workers
    keep_freed_memory()
    server: Any = forkserver._forkserver  # pyright: ignore[reportAttributeAccessIssue]
    os.close(server._forkserver_alive_fd)
    end_with_parent()


def end_with_parent() -> None:
    """On Linux, have the system end this process with the one that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def keep_freed_memory() -> None:
    """Let this process keep freed memory for what it needs next, as far as the C library can.

    Augmentation makes and frees copies of a few frames all the time; memory that is given back and asked for again
    comes page by page, each filled with zeros, which takes up to a fifth of the time.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, KEPT_BYTES)
        set_option(_M_MMAP_THRESHOLD, MAPPED_BYTES)
