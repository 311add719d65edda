"""Hang detection: a rank that waits too long for the others reports where and exits, so that no job hangs."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from adatad_ds.system.console import say, say_error, show_stacks

# A thread's innermost Python frame while it waits for other ranks: in torch's collectives or ours, or in DeepSpeed's
# functions that wait for handles, streams and events.
COLLECTIVES = ("torch/distributed/distributed_c10d.py", "adatad_ds/distributed/world.py")
WAITING = ("wait", "synchronize")
LOOK_SEC = 1.0
SUSPENDED_SEC = 5.0  # counted at most per look: after a longer gap, the job was suspended


class HangWatch:
    """Checks every second whether the watched thread is still in the same collective, as told by `beat`.

    Args:
        timeout_sec: longest time that the thread may wait.
    """

    def __init__(self, *, timeout_sec: float) -> None:
        self.timeout_sec = timeout_sec
        self._beats = 0
        self._stopped = threading.Event()

    def beat(self) -> None:
        """Note that another collective begins."""
        self._beats += 1

    def start(self, *, rank: int, unfinished: Callable[[], str] | None = None) -> None:
        """Watch the thread that calls this, until `stop`.

        Args:
            rank: of this process, for the message.
            unfinished: names collectives that have not ended, in case they are not in the stack.
        """
        arguments = (threading.get_ident(), rank, unfinished)
        threading.Thread(target=self._look, args=arguments, name="hang watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _look(self, watched: int, rank: int, unfinished: Callable[[], str] | None) -> None:
        waited_sec, seen, last = 0.0, -1, time.monotonic()
        while not self._stopped.wait(LOOK_SEC):
            now = time.monotonic()
            frame = sys._current_frames().get(watched)
            place = waiting_place(frame) if frame is not None else ""
            del frame  # else its variables live as long as this thread
            if place and self._beats == seen:
                waited_sec += min(now - last, SUSPENDED_SEC)
            else:
                waited_sec, seen = 0.0, self._beats
            last = now
            if waited_sec >= self.timeout_sec:
                self._end(rank=rank, place=place, waited_sec=waited_sec, unfinished=unfinished)

    def _end(self, *, rank: int, place: str, waited_sec: float, unfinished: Callable[[], str] | None) -> None:
        try:
            say_error(
                f"rank {rank} has waited {waited_sec:.0f} s (train.hang_timeout_sec) for the other ranks in {place}. "
                "A rank that does not report this is stuck, stopped or gone. The stacks of this rank's threads:"
            )
            show_stacks()
            if unfinished is not None:
                say(f"unfinished collectives: {unfinished()}")
        finally:
            os._exit(1)


def waiting_place(frame: FrameType) -> str:
    """The collective that a thread waits in and its callers, from its stack; "" if it does not wait.

    Args:
        frame: the thread's innermost frame.
    """
    code = frame.f_code
    of_deepspeed = "/deepspeed/" in code.co_filename and code.co_name in WAITING
    if not (of_deepspeed or code.co_filename.endswith(COLLECTIVES)):
        return ""
    names = []  # from the innermost: all_reduce, sum, step
    at: FrameType | None = frame
    while at is not None:
        inside = f"{os.sep}adatad_ds{os.sep}" in at.f_code.co_filename
        if at is frame or inside:
            names.append(f"{at.f_code.co_name} ({os.path.basename(at.f_code.co_filename)}:{at.f_lineno})")
        at = at.f_back
    return ", called by ".join(names[:4])


def unfinished_collectives() -> str:
    """NCCL's collectives that were begun and have not ended, by PyTorch's flight recorder."""
    recorder: Any = torch._C._distributed_c10d  # pyright: ignore[reportAttributeAccessIssue]
    entries = json.loads(recorder._dump_nccl_trace_json(True, True)).get("entries", [])
    told = [f"{entry.get('profiling_name')} number {entry.get('collective_seq_id')}" for entry in entries]
    return ", ".join(told) or "none known"
