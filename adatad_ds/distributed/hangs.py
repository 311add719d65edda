"""Hang detection: a rank that waits too long for the others reports where and exits, so that no job hangs."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

from adatad_ds.system.console import say, say_error, show_stacks

# A thread's innermost Python frame while it waits for other ranks: in torch's collectives or ours, or in DeepSpeed's
# functions that wait for handles, streams and events.
COLLECTIVES = ("torch/distributed/distributed_c10d.py", "adatad_ds/distributed/world.py")
WAITING = ("wait", "synchronize")
# On a GPU, NCCL's collectives return at once. Whatever needs a result waits, often in a call without a frame, as
# `item()`, or, with a thousand launches in the queue, whatever launches the next one: so these count there as well, if
# they stay in the same place. Compilers, loaders and files are elsewhere.
COMPUTING = (
    "/torch/cuda/",
    "/torch/nn/",
    "/torch/autograd/",
    "/torch/optim/",
    "/torch/_tensor.py",
    "/torch/functional.py",
    "/deepspeed/runtime/",
    "/adatad_ds/models/",
    "/adatad_ds/detection/",
    "/adatad_ds/distributed/",
    "/adatad_ds/tasks/",
    "/adatad_ds/training/trainer.py",
    "/adatad_ds/training/update_stats.py",
)
BACKWARD = ("torch/autograd/graph.py", "_engine_run_backward")  # on a GPU, autograd's own thread computes meanwhile
LOOK_SEC = 1.0
SUSPENDED_SEC = 5.0  # counted at most per look: after a longer gap, the job was suspended


class HangWatch:
    """Checks every second whether the watched thread still waits in the same place, and nothing began: see `beat`.

    Args:
        timeout_sec: longest time that the thread may wait.
    """

    def __init__(self, *, timeout_sec: float) -> None:
        self.timeout_sec = timeout_sec
        self._beats = 0
        self._stopped = threading.Event()
        self._seen = ("", 0)  # at the last look: place and beats
        self._looked, self._waited_sec = 0.0, 0.0

    def beat(self) -> None:
        """Note that another collective begins, or another wait for the device."""
        self._beats += 1

    def start(self, *, rank: int, on_gpu: bool = False) -> None:
        """Watch the thread that calls this, until `stop`.

        Args:
            rank: of this process, for the message.
            on_gpu: it computes on a GPU, where a thread waits for other ranks outside of collectives, too.
        """
        arguments = (threading.get_ident(), rank, on_gpu)
        threading.Thread(target=self._look, args=arguments, name="hang watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def waited(self, place: str, *, now: float) -> float:
        """Seconds that the thread has waited in one place without a beat.

        Args:
            place: where it waits now, "" if it does not.
            now: a clock's seconds.
        """
        since, self._looked = now - self._looked, now
        before, self._seen = self._seen, (place, self._beats)
        self._waited_sec = self._waited_sec + min(since, SUSPENDED_SEC) if place and self._seen == before else 0.0
        return self._waited_sec

    def _look(self, watched: int, rank: int, on_gpu: bool) -> None:
        while not self._stopped.wait(LOOK_SEC):
            place = waiting_place(sys._current_frames(), watched, on_gpu=on_gpu)
            waited_sec = self.waited(place, now=time.monotonic())
            if waited_sec >= self.timeout_sec:
                self._end(rank=rank, place=place, waited_sec=waited_sec, on_gpu=on_gpu)

    def _end(self, *, rank: int, place: str, waited_sec: float, on_gpu: bool) -> None:
        try:
            say_error(
                f"rank {rank} has waited {waited_sec:.0f} s (train.hang_timeout_sec) {place}. "
                "A rank that does not report this is stuck, stopped or gone. The stacks of this rank's threads:"
            )
            show_stacks()
            if on_gpu:
                say(f"unfinished collectives: {unfinished_collectives()}")
        finally:
            os._exit(1)


def waiting_place(frames: Mapping[int, FrameType], thread: int, *, on_gpu: bool) -> str:
    """What a thread waits for, where, and called by whom; "" if it does not wait.

    Args:
        frames: the innermost one of each thread.
        thread: its number.
        on_gpu: whether the process computes on a GPU.
    """
    frame = frames.get(thread)
    if frame is None:
        return ""
    code = frame.f_code
    if on_gpu and code.co_filename.endswith(BACKWARD[0]) and code.co_name == BACKWARD[1]:
        others = [other for number, other in frames.items() if number != thread and not _started_by_python(other)]
        if not all(_awaited(other, on_gpu=True) for other in others):
            return ""  # it compiles, say
        if others:
            return (
                f"{_awaited(others[0], on_gpu=True)} {_callers(others[0])}, in autograd's thread for {_callers(frame)}"
            )
    awaited = _awaited(frame, on_gpu=on_gpu)
    return awaited and f"{awaited} {_callers(frame)}"


def _awaited(frame: FrameType, *, on_gpu: bool) -> str:
    """What a thread waits for, by its innermost frame, if it stays there; "": nothing."""
    file, function = frame.f_code.co_filename, frame.f_code.co_name
    if on_gpu and any(part in file for part in COMPUTING):
        return "for the GPU, and so perhaps for the other ranks, in"
    if file.endswith(COLLECTIVES) or ("/deepspeed/" in file and function in WAITING):
        return "for the other ranks in"
    return ""


def _started_by_python(frame: FrameType) -> bool:
    """Whether a thread is the main one or of `threading`; autograd's are neither."""
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_name in ("<module>", "_bootstrap")


def _callers(frame: FrameType) -> str:
    """The innermost frame and its callers in this package."""
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
