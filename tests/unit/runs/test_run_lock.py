"""One run, one trainer: who may train in a folder, and who is gone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adatad_ds.errors import ConfigError, TrainingError, WriteError
from adatad_ds.runs.lock import LOCK_FILE, RunLock


@contextmanager
def another_process(folder: Path) -> Iterator[int]:
    """The number of a process that holds a folder's lock."""
    ready, tell = os.pipe()
    process = os.fork()
    if process == 0:
        RunLock(folder).take()
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(ready)
        os.close(tell)


def on_another_machine(folder: Path) -> None:
    """Make the lock's holder one of which nothing is known but its signs of life."""
    path = folder / LOCK_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "far away", "host": "node7", "process": 12}))


def test_a_second_training_is_refused_and_told_who_holds_it(tmp_path):
    with another_process(tmp_path / "run") as process:
        with pytest.raises(ConfigError, match=f"another training runs in {tmp_path}/run: process {process} on "):
            RunLock(tmp_path / "run").take()
        os.kill(process, signal.SIGSTOP)  # stopped, but not gone
        with pytest.raises(ConfigError, match=f"process {process} on "):
            RunLock(tmp_path / "run").take()


@pytest.mark.parametrize("reaped", [False, True])
def test_what_a_killed_one_left_is_taken_over(reaped, tmp_path):
    with another_process(tmp_path) as process:
        if not reaped:  # its launcher has not heard of its end yet
            os.kill(process, signal.SIGKILL)
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
            assert str(process) in str(RunLock(tmp_path).take())
    if reaped:
        lock = RunLock(tmp_path)
        assert str(process) in str(lock.take())
        lock.release()
        assert not (tmp_path / LOCK_FILE).exists()


def test_a_number_given_out_again_is_another_process(tmp_path):
    with another_process(tmp_path):
        path = tmp_path / LOCK_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "1"}))
        assert RunLock(tmp_path).take()


def test_another_machine_is_believed_as_long_as_it_gives_signs_of_life(tmp_path):
    first = RunLock(tmp_path)
    assert first.take() is None
    on_another_machine(tmp_path)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(tmp_path / LOCK_FILE)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(ConfigError, match="process 12 on node7"):
            RunLock(tmp_path, watch_sec=1).take()
    finally:
        ended.set()
        beating.join()
    second = RunLock(tmp_path, watch_sec=0.3)
    assert "process 12 on node7" in str(second.take())
    with pytest.raises(TrainingError, match="no longer this training's: its lock is held by process"):
        first.check()
    second.check()
    first.release()  # takes nothing from the second
    second.check()
    second.release()


def test_a_holder_renews_it_and_misses_it(tmp_path):
    lock = RunLock(tmp_path, beat_sec=0.02)
    assert lock.take() is None
    path = tmp_path / LOCK_FILE
    os.utime(path, ns=(0, 0))
    deadline = time.monotonic() + 60
    while path.stat().st_mtime_ns == 0:
        assert time.monotonic() < deadline
    path.unlink()
    with pytest.raises(TrainingError, match="its lock is gone"):
        lock.check()
    lock.release()


def test_a_file_cut_short_by_a_crash_is_stale(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"token": ')
    assert RunLock(tmp_path, watch_sec=0.2).take() == "a process that is gone"


def test_of_many_at_once_one_gets_it(tmp_path):
    """Where a stale lock lies, too."""
    with another_process(tmp_path):
        pass
    got, start = [], threading.Barrier(8)

    def try_it() -> None:
        lock = RunLock(tmp_path)
        start.wait()
        try:
            lock.take()
        except ConfigError:
            return
        got.append(lock)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].check()
    got[0].release()


def test_one_that_looked_before_another_took_over_is_refused(tmp_path, monkeypatch):
    """However long it took to look: the other one may have removed the stale lock, or be gone already."""
    with another_process(tmp_path):
        pass
    first, second, third = RunLock(tmp_path), RunLock(tmp_path), RunLock(tmp_path)
    looked = RunLock._lives

    def slow(lock, path):
        lives = looked(lock, path)
        if lock is second:
            first.take()
        return lives

    monkeypatch.setattr(RunLock, "_lives", slow)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on "):
        second.take()
    monkeypatch.undo()
    first.check()
    seen = iter([None])  # the third one looked before the first lock was there
    monkeypatch.setattr(third, "_highest", lambda: next(seen, RunLock._highest(third)))
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on "):
        third.take()
    first.check()
    first.release()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(WriteError, match=r"cannot write to --run-dir .*run: .*choose"):
        RunLock(tmp_path / "run").take()
