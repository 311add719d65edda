"""Worker processes that read samples: they leave signals to their rank, and end when it ends, however that is.

They are forked from a small server process, not from the rank, which has CUDA contexts, NCCL and engine threads, whose
locks a plain fork would copy in whatever state they are. The server imports once for all of them.
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

import torch

# Schedulers, shells and systemd signal all processes of a rank. What these mean is the rank's to decide.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Popen(popen_forkserver.Popen):
    def terminate(self) -> None:
        self.kill()  # SIGTERM would wait for ever: it is blocked


class _Worker(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:  # noqa: N802
        return _Popen(process_obj)


class WorkerContext(ForkServerContext):
    """Makes worker processes.

    Args:
        imports: modules that each of them needs.
    """

    Process = _Worker

    def __init__(self, imports: Sequence[str]) -> None:
        super().__init__()
        self.set_forkserver_preload(list(imports))
        # Blocked signals stay blocked in child processes; here they come once this is done, and none is lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            resource_tracker.ensure_running()  # unblocks two of them
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker: int) -> None:
    """Called first in each worker process, with its number.

    The server ends when the pipe from the rank is closed; a worker has inherited the rank's end of it, and gives it
    back. When the server ends, so does the worker, whatever it does: at once on Linux, elsewhere when it looks for its
    parent, every few seconds.
    """
    torch.set_num_threads(1)  # parallelism comes from the number of workers
    server: Any = forkserver._forkserver  # pyright: ignore[reportAttributeAccessIssue]
    os.close(server._forkserver_alive_fd)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
