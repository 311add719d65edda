"""Stop requests: from a scheduler before preemption, from Ctrl-C, from a closed terminal."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from adatad_ds.data.worker_process import SIGNALS
from adatad_ds.system.console import say, show_stacks

ENDING = (signal.SIGTERM, signal.SIGINT)  # a second one of these ends the process at once
SAME_REQUEST_SEC = 1.0  # a launcher forwards signals that its ranks already got from the terminal
LOOK_SEC = 1.0


class StopAsked(Exception):  # noqa: N818  (no error)
    """All ranks know that one of them was asked to stop."""


class StopRequest:
    """Whether this rank was asked to stop; training then finishes the step, saves, and exits.

    Args:
        launched: the parent is a launcher, whose death is a stop request too.
        rank: of this process; rank 0 reports requests.
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
        """Handle signals inside the context, and ignore them afterwards: a late one must not fail a finished run.

        A thread handles them, since the main thread may be waiting for other ranks, in C++ or forever. Call this from
        the main thread. Signals that are already ignored, as under nohup, stay ignored.

        Args:
            timeout_sec: the process exits without saving if a request is not `heard` within this time.
        """
        self._timeout_sec = timeout_sec
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in taken:
            signal.signal(number, lambda number, frame: None)  # Python writes its number to the pipe
        listener = threading.Thread(target=self._listen, args=(reader,), name="stop request", daemon=True)
        listener.start()
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, signal.SIG_IGN)  # unlike a Python handler, this outlives the interpreter
            self._closed = True
            with suppress(BlockingIOError):  # full: there is enough to wake up for
                os.write(writer, b"\0")
            signal.set_wakeup_fd(wakeup_before)
            listener.join()
            os.close(reader)
            os.close(writer)

    def heard(self) -> None:
        """All ranks know and a step has ended: from now on there is no time limit."""
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


def end_with_launcher() -> None:
    """End this process once its parent, a launcher, has exited."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SEC)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=look, name="launcher", daemon=True).start()
