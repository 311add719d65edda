"""Being asked to stop: a scheduler's signal before it takes the machine away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)  # Slurm's --signal and ours; preemption


class StopRequest:
    """Whether this rank has been asked to stop; training goes on to the end of the step, saves, and leaves."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals inside, and none afterwards: a late one must not make a finished run a failed one.

        Only the main thread of a process can.
        """
        for number in SIGNALS:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # unlike a handler of ours, this outlives the interpreter

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
