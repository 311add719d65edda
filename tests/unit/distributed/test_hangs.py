"""When a rank counts as waiting; that waiting ends it, with other ranks, is in tests/distributed/test_ranks.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from adatad_ds.distributed.hangs import waiting_place
from tests.support.launch import REPOSITORY, environment


@pytest.mark.parametrize(
    ("file", "function", "waits"),
    [
        ("/site-packages/torch/distributed/distributed_c10d.py", "all_reduce", True),
        ("/site-packages/deepspeed/runtime/zero/partition_parameters.py", "wait", True),
        ("/site-packages/deepspeed/runtime/zero/partition_parameters.py", "partition", False),
        ("/lib/python3.11/threading.py", "wait", False),  # for a sample
    ],
)
def test_a_thread_waits_in_collectives_and_for_handles_alone(file, function, waits):
    names = {"sys": sys}
    exec(compile(f"def {function}(): return sys._getframe()", file, "exec"), names)
    place = waiting_place(names[function]())
    assert place.startswith(f"{function} ({file.rsplit('/', 1)[1]}:1)") if waits else place == ""


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
