"""Worker processes leave signals to their rank, and end with it."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.launch import REPOSITORY, environment

SCRIPT = """
import signal, sys, time
from adatad_ds.config.schema import DataConfig
from adatad_ds.data.loader import BatchLoader
from adatad_ds.data.worker_process import SIGNALS
from tests.unit.data.test_worker_process import Numbers

for number in SIGNALS:
    signal.signal(number, lambda number, frame: None)
loader = BatchLoader(Numbers(), keys=[[(0, i)] for i in range(400)], config=DataConfig(workers=2), pin_memory=False)
batches = iter(loader)
print(next(batches), flush=True)
if "exit" in sys.argv:
    sys.exit(7)
for batch in batches:
    print(batch, flush=True)
    time.sleep(0.05)
"""


class Numbers:
    """Samples that are quickly read, but for the last."""

    videos = ()

    def __len__(self) -> int:
        return 400

    def __getitem__(self, key: tuple[int, int]) -> int:
        if key[1] == 399:
            time.sleep(300)
        return key[1]

    collate = staticmethod(list)


def start(*words: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A rank that reads, in a process group of its own, and all its processes."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "[0]\n"
    return process, psutil.Process(process.pid).children(recursive=True)


def ended(others: list[psutil.Process]) -> bool:
    """Whether all of them end soon; those that do not are ended."""
    _, alive = psutil.wait_procs(others, timeout=60)
    for process in alive:
        process.kill()
    return not alive


@pytest.mark.slow
def test_a_signal_to_the_group_is_the_ranks_and_nobody_survives_it_killed():
    process, others = start()
    assert len(others) == 4  # two workers, their server, a tracker of resources
    assert process.stdout is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.killpg(process.pid, number)
        for _ in range(50):
            assert process.stdout.readline().startswith("["), process.communicate(timeout=10)
        assert all(other.is_running() for other in others)
    process.kill()
    process.wait()
    assert ended(others)
    process.communicate()


@pytest.mark.slow
def test_a_rank_that_exits_ends_them():
    process, others = start("exit")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 7, said
    assert ended(others)


FAULTS = """
import resource, sys
import numpy as np
from adatad_ds.data.worker_process import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [np.ones(2**20, dtype=np.uint8) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_freed_memory_is_used_again():
    """Not given back, to come again page by page."""
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 20 * 2**20 / 4096
    assert after < before / 10
