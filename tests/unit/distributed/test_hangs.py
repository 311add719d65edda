"""When a rank counts as waiting; that waiting ends it, with other ranks, is in tests/distributed/test_ranks.py."""

from __future__ import annotations

import _thread
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch

from adatad_ds.distributed.gradients import FlatGradients
from adatad_ds.distributed.hangs import HangWatch, waiting_place
from adatad_ds.distributed.world import World
from tests.support.launch import REPOSITORY, environment

PACKAGES = "/lib/python3.11/site-packages"
OTHERS, GPU = "for the other ranks in", "for the GPU, and so perhaps for the other ranks, in"


def stack(file: str, function: str) -> FrameType:
    """The frame of a thread, not of `threading`, that is in a function of a file, and in nothing else."""
    names: dict[str, Any] = {"sys": sys, "told": SimpleQueue()}
    exec(compile(f"def {function}(): told.put(sys._getframe())", file, "exec"), names)
    _thread.start_new_thread(names[function], ())
    return names["told"].get()


@pytest.mark.parametrize(
    ("file", "function", "awaited", "on_gpu"),
    [
        (f"{PACKAGES}/torch/distributed/distributed_c10d.py", "all_reduce", OTHERS, OTHERS),
        (f"{PACKAGES}/deepspeed/comm/comm.py", "wait", OTHERS, OTHERS),
        (f"{PACKAGES}/deepspeed/runtime/zero/partition_parameters.py", "wait", OTHERS, GPU),
        (f"{PACKAGES}/deepspeed/runtime/zero/stage3.py", "has_overflow", "", GPU),  # in item()
        (f"{PACKAGES}/torch/cuda/__init__.py", "synchronize", "", GPU),
        (f"{PACKAGES}/torch/cuda/streams.py", "synchronize", "", GPU),
        (f"{PACKAGES}/torch/autograd/graph.py", "_engine_run_backward", "", GPU),
        (f"{PACKAGES}/torch/nn/functional.py", "linear", "", GPU),  # in its launch, as the queue is full
        ("/work/adatad_ds/distributed/world.py", "to_host", OTHERS, GPU),
        ("/work/adatad_ds/detection/decoding.py", "candidates", "", GPU),
        ("/lib/python3.11/threading.py", "wait", "", ""),  # for a sample
        ("/lib/python3.11/selectors.py", "select", "", ""),  # likewise
        (f"{PACKAGES}/torch/_inductor/codecache.py", "load", "", ""),
        (f"{PACKAGES}/deepspeed/ops/adam/cpu_adam.py", "step", "", ""),
        ("/work/adatad_ds/data/decoding/frames.py", "decode", "", ""),
        ("/work/adatad_ds/evaluation/metrics.py", "mean_average_precision", "", ""),
    ],
)
def test_where_a_thread_waits(file, function, awaited, on_gpu):
    frames = {1: stack(file, function)}
    for expected, gpu in ((awaited, False), (on_gpu, True)):
        place = waiting_place(frames, 1, on_gpu=gpu)
        assert place == (expected and f"{expected} {function} ({file.rsplit('/', 1)[1]}:1)")
    assert waiting_place(frames, 2, on_gpu=True) == ""


def test_on_a_gpu_autograds_thread_tells_what_a_backward_pass_waits_for():
    backward = stack(f"{PACKAGES}/torch/autograd/graph.py", "_engine_run_backward")
    idle = stack("/lib/python3.11/threading.py", "_bootstrap")  # another of Python's own, which tells nothing
    found = {
        function: waiting_place({1: backward, 2: idle, 3: stack(file, function)}, 1, on_gpu=True)
        for file, function in (
            (f"{PACKAGES}/torch/distributed/distributed_c10d.py", "all_gather"),
            (f"{PACKAGES}/torch/cuda/streams.py", "synchronize"),
            (f"{PACKAGES}/torch/_inductor/compile_fx.py", "compile_fx"),
        )
    }
    main = "_engine_run_backward (graph.py:1)"
    assert found["all_gather"] == f"{OTHERS} all_gather (distributed_c10d.py:1), in autograd's thread for {main}"
    assert found["synchronize"] == f"{GPU} synchronize (streams.py:1), in autograd's thread for {main}"
    assert found["compile_fx"] == ""
    assert waiting_place({1: backward, 2: idle}, 1, on_gpu=True) == f"{GPU} {main}"


def test_a_step_waits_for_the_gpu_where_the_watch_knows_of_it(monkeypatch):
    """Under ZeRO-1 and 2: for the norm. A lock stands for the GPU: `cpu()` has no frame either."""
    lock = threading.Lock()
    monkeypatch.setattr(torch.Tensor, "cpu", lock.acquire)
    gradients = FlatGradients.__new__(FlatGradients)
    gradients._world = world = World(rank=0, size=1, device=torch.device("cpu"))
    partition = SimpleNamespace(flat_partition=torch.ones(4))
    gradients._zero = SimpleNamespace(averaged_gradients=[partition], bit16_groups=[None])
    with ThreadPoolExecutor(1) as pool:
        lock.acquire()
        number, began = pool.submit(threading.get_ident).result(), time.monotonic()
        ends = pool.submit(gradients._norm)
        place = ""
        while "to_host" not in place and time.monotonic() < began + 60:
            place = waiting_place(sys._current_frames(), number, on_gpu=True)
        lock.release()
        assert ends.exception() is not None  # a lock gives no norm
    assert re.fullmatch(rf"{GPU} to_host \(world.py:\d+\), called by _norm \(gradients.py:\d+\)", place)
    assert world.watch._beats == 1


def test_only_who_stays_in_one_place_without_a_beat_has_waited():
    watch = HangWatch(timeout_sec=20)
    clock = itertools.count(1000.0)

    def after(seconds: int, places: Sequence[str], *, beats: bool = False) -> float:
        waited = 0.0
        for second in range(seconds):
            if beats and second % 10 == 0:
                watch.beat()
            waited = watch.waited(places[second % len(places)], now=next(clock))
        return waited

    assert after(100, ["synchronize (streams.py:1)"]) == 99
    assert after(100, ["linear (functional.py:1)", "linear (functional.py:2)"]) == 0  # it moves
    assert after(100, ["synchronize (streams.py:1)"], beats=True) == 9  # a step ends all 10 s
    assert after(100, [""]) == 0  # it compiles or decodes
    assert after(100, ["synchronize (streams.py:1)"]) == 99


SCRIPT = """
import sys, time
from adatad_ds.distributed.hangs import HangWatch

watch = HangWatch(timeout_sec=20)


code = "def wait(seconds): print('waiting', flush=True); time.sleep(seconds)"
exec(compile(code, "/site-packages/deepspeed/handles.py", "exec"))
watch.start(rank=0)
wait(float(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("waits_sec", "code"), [(16, 0), (60, 1)])
def test_a_suspended_job_has_not_waited(waits_sec, code):
    """As `scontrol suspend` does it; the clock goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(waits_sec)],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(14)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert ("has waited" in said) == (code == 1)
