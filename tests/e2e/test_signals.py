"""Whoever signals a run or takes its launcher away: it saves and leaves, and nobody stays behind."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from tests.support.launch import (
    TIMEOUT_SEC,
    children_of,
    end_children,
    finish,
    losses,
    start,
    start_until,
    train_command,
)

LONG = {"data__workers": 1, "train__schedule_epochs": 50, "train__stop_epoch": 50, "train__eval_from_epoch": 100}
ALONE = {"ranks": 1, "ds_config": "zero2", "launcher": "python"}


@pytest.fixture(autouse=True)
def ended():
    """What a failing test has started does not stay; the pool of test processes does."""
    yield
    end_children()


def children(process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_saved(run) -> None:
    """It is marked, and the last step that is logged is in a checkpoint."""
    assert (run / "interrupted").exists()
    assert (run / "checkpoints" / f"step_{max(losses(run)) + 1:08d}" / "state.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves(number, small_videos, tmp_path):
    run = tmp_path / "run"
    process = start_until(train_command(data=small_videos, run=run, **ALONE, **LONG), run, step=1)
    others = children(process)
    assert len(others) == 3  # the worker, its server, a tracker of resources
    os.killpg(process.pid, number)
    assert process.wait(timeout=TIMEOUT_SEC) == 0
    assert_saved(run)
    _, alive = psutil.wait_procs(others, timeout=TIMEOUT_SEC)
    assert not alive


@pytest.mark.slow
def test_ranks_outlive_their_launcher_to_save(small_videos, tmp_path):
    run = tmp_path / "run"
    layout = LONG | {"ranks": 2, "ds_config": "zero2", "launcher": "deepspeed", "data__workers": 0}
    command = train_command(data=small_videos, run=run, **layout)
    process = start_until(command, run, step=1)
    others = children(process)
    (launcher,) = children_of(process.pid, "launch")
    launcher.kill()
    process.wait(timeout=TIMEOUT_SEC)
    _, alive = psutil.wait_procs(others, timeout=TIMEOUT_SEC)
    assert not alive
    assert_saved(run)


@pytest.mark.slow
def test_evaluation_hears_a_request_too(small_videos, tmp_path):
    run = tmp_path / "run"
    settings = LONG | {"train__eval_from_epoch": 1, "data__test_window_overlap": 0.9, "test__batch": 1}
    process = start_until(train_command(data=small_videos, run=run, **ALONE, **settings), run, step=0)
    end = time.monotonic() + 120
    while not (run / "checkpoints/step_00000002").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=TIMEOUT_SEC) == 0
    assert_saved(run)
    assert max(losses(run)) == 1
    assert not (run / "evaluations").exists()
    settings |= {"data__workers": 0, "train__stop_epoch": 1, "launcher": "pool"}
    finish(train_command(data=small_videos, run=run, **ALONE | settings, resume=True))
    assert (run / "evaluations/epoch_0001/metrics.json").exists()


@pytest.mark.slow
def test_the_failing_rank_is_heard(small_videos, tmp_path, monkeypatch):
    """Rank 1 alone does not find the videos; and torchrun's temporary folder is removed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys; sys.path[0] = os.getcwd()\n"
        "from adatad_ds.distributed.process import *; from adatad_ds.train import main\n"
        f"os.chdir('/' if os.environ['RANK'] == '1' else {str(small_videos)!r}); run_process(main)"
    )
    command = train_command(
        run=tmp_path / "run", ranks=2, ds_config="zero3", launcher="torchrun", data__videos="videos"
    )
    command[command.index("adatad_ds/train.py")] = str(script)
    command[command.index("ds_configs/zero3.json")] = os.path.abspath("ds_configs/zero3.json")
    done = start([*command, "--set", f"data.annotations={small_videos / 'annotations.json'}"])
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: rank 1: data.videos: there is no folder 'videos'; it must hold VIDEO_NAME.mp4 (or .mkv, ...)"
    ], done.stderr[-3000:]
    assert not list(tmp_path.glob("torchelastic_*"))


@pytest.mark.slow
def test_output_that_nobody_reads_any_more(small_videos, tmp_path):
    run = tmp_path / "run"
    command = train_command(data=small_videos, run=run, **ALONE, train__stop_epoch=1, train__eval_from_epoch=100)
    piped = "bash", "-c", '"$@" 2>&1 | head -n 1; exit "${PIPESTATUS[0]}"', "-", *command
    done = start(list(piped))
    assert done.returncode == 0, done.stdout
    assert (run / "checkpoints/step_00000002/state.json").exists()
    assert len([line for line in done.stdout.splitlines() if line.strip() and "step/s" not in line]) == 1


def test_a_closed_terminal_takes_nothing_down(tmp_path):
    """Writing to it fails with another error than to a closed pipe."""
    code = "import sys; from adatad_ds.system.console import keep_output; keep_output(); sys.stdin.read(); "
    code += "print('lost'); sys.stdout.flush(); print('lost', file=sys.stderr); open(sys.argv[1], 'w').write('done')"
    main, terminal = os.openpty()
    reader, writer = os.pipe()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code, str(tmp_path / "done")],
        dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0), *((os.POSIX_SPAWN_DUP2, terminal, fd) for fd in (1, 2))],
    )
    os.close(terminal)
    os.close(main)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "done").read_text() == "done"
