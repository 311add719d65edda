"""Being asked to stop: by a scheduler before it takes the machine away, by Ctrl-C, by a terminal that is closed."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adatad_ds.data.worker_process import SIGNALS
from adatad_ds.system.console import say, show_stacks

ENDING = (signal.SIGTERM, signal.SIGINT)  # the second of these ends the process at once
SAME_REQUEST_SEC = 1.0  # a launcher passes on what the terminal has told its ranks already
LOOK_SEC = 1.0


class StopAsked(Exception):  # noqa: N818  (no error)
    """All ranks have heard that one was asked to stop."""


class StopRequest:
    """Whether this rank has been asked to stop; training goes on to the end of the step, saves, and leaves.

    Args:
        launched: the parent is a launcher; its death is a request, too.
        rank: of this process; the first one says that it has been asked.
    """

    def __init__(self, *, launched: bool, rank: int) -> None:
        self.asked = False
        self._parent = os.getppid() if launched else None
        self._rank = rank
        self._ending_since: float | None = None
        self._deadline: float | None = None
        self._timeout_sec = 0.0
        self._closed = False

    @contextmanager
    def listening(self, *, timeout_sec: float) -> Iterator[None]:
        """Take signals inside, and none afterwards: a late one must not make a finished run a failed one.

        A thread takes them, for the main one may wait for other ranks, in C++ or forever. Only the main thread can
        call this. A signal that is ignored already, as under nohup, stays so.

        Args:
            timeout_sec: when asked, and not `heard` after this time, the process ends without saving.
        """
        self._timeout_sec = timeout_sec
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in taken:
            signal.signal(number, lambda number, frame: None)  # its number goes into the pipe at once
        listener = threading.Thread(target=self._listen, args=(reader,), name="stop request", daemon=True)
        listener.start()
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, signal.SIG_IGN)  # unlike a handler of ours, this outlives the interpreter
            self._closed = True
            signal.set_wakeup_fd(wakeup_before)
            listener.join()
            os.close(reader)
            os.close(writer)

    def heard(self) -> None:
        """All ranks know; a step has ended, and what is left to do gets the time that it takes."""
        self._deadline = None
        self._timeout_sec = float("inf")

    def _listen(self, reader: int) -> None:
        while not self._closed:
            ready, _, _ = select.select([reader], [], [], LOOK_SEC)
            for number in os.read(reader, 64) if ready else b"":
                if number in SIGNALS:
                    self._take(signal.Signals(number))
            if self._parent is not None and os.getppid() != self._parent:
                self._parent = None
                self._ask("its launcher has ended")
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._give_up()

    def _take(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number in ENDING:
            if self._ending_since is not None and now - self._ending_since > SAME_REQUEST_SEC:
                if self._rank == 0:
                    say(f"{number.name} again: ending now, without saving")
                os._exit(128 + number)
            self._ending_since = self._ending_since or now
        self._ask(number.name)

    def _ask(self, reason: str) -> None:
        if self.asked:
            return
        self._deadline = time.monotonic() + self._timeout_sec
        self.asked = True
        if self._rank == 0:
            say(f"asked to stop ({reason}): finishing this step, then saving; Ctrl-C or SIGTERM again ends the run now")

    def _give_up(self) -> None:
        say(
            f"rank {self._rank} was asked to stop {self._timeout_sec:.0f} s ago (train.stop_timeout_sec), and no step "
            "has ended: ending without saving. The stacks of its threads:"
        )
        show_stacks()
        os._exit(128 + signal.SIGTERM)


def follow_launcher(on_end: Callable[[], None]) -> None:
    """Call a function from another thread when this process's parent, a launcher, has ended."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SEC)
        on_end()

    threading.Thread(target=look, name="launcher", daemon=True).start()
