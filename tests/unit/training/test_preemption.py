"""Requests to stop, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.launch import REPOSITORY, end_children, environment, heed_interrupts

SCRIPT = """
import os, sys, threading, time
from adatad_ds.training.preemption import StopRequest

stop = StopRequest(launched="launched" in sys.argv, rank=0)
reader, writer = os.pipe()
with stop.listening(timeout_sec=600 if "patient" in sys.argv else 3):
    print("ready", flush=True)
    if "stuck" in sys.argv:
        os.read(reader, 1)  # for ever, in C
    while not stop.asked:
        time.sleep(0.05)
    stop.heard()
    time.sleep(6 if "saving" in sys.argv else 0)
print("left", flush=True)
time.sleep(1)
"""


@pytest.fixture(autouse=True)
def ended():
    """What a failing test has started does not stay."""
    yield
    end_children()


def start(*words: str, before: str = "") -> subprocess.Popen[str]:
    command = f'{before} exec {sys.executable} -c "$SCRIPT" {" ".join(words)}'
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env=environment() | {"SCRIPT": SCRIPT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""
    return process


def test_the_end_is_not_waited_for():
    code = """
from adatad_ds.training import preemption
preemption.LOOK_SEC = 600
with preemption.StopRequest(launched=False, rank=0).listening(timeout_sec=600):
    pass
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), timeout=300, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_asked_once_finishes(number):
    process = start()
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(number)  # a late one comes after all is done
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "left\n"), said
    assert f"asked to stop ({number.name})" in said


@pytest.mark.slow
def test_what_a_launcher_passes_on_is_no_second_request():
    process = start("saving")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "left\n"), said


@pytest.mark.slow
def test_asked_twice_ends_now():
    process = start("stuck", "patient")
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (143, ""), said
    assert "SIGTERM again: ending now" in said


@pytest.mark.slow
def test_asked_without_a_step_ends_in_time():
    process, began = start("stuck"), time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (143, ""), said
    assert time.monotonic() - began > 3
    assert "rank 0 was asked to stop 3 s ago (train.stop_timeout_sec), and no step has ended" in said
    assert "most recent call first" in said


@pytest.mark.slow
def test_saving_takes_its_time():
    process = start("saving")
    process.send_signal(signal.SIGUSR1)
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "left\n"), said


@pytest.mark.slow
def test_nohup_holds():
    process = start(before="trap '' HUP;")
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, said = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "left\n"), said
    assert "SIGHUP" not in said


@pytest.mark.slow
def test_a_launcher_that_dies_asks(tmp_path):
    said = tmp_path / "said"
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SCRIPT!r}, 'launched']).wait()"
    with said.open("w") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-c", starter], cwd=REPOSITORY, env=environment(), stdout=output, stderr=output
        )
    end = time.monotonic() + 60
    while "ready" not in said.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    while "left" not in said.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    assert "asked to stop (its launcher has ended)" in said.read_text()
    assert "left" in said.read_text()
