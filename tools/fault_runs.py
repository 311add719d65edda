"""Small trainings for tools/faults.py, and what can be done to their processes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = {  # a detector that trains in seconds: 12 steps, saved at each, evaluated twice
    "data.window_size": 32,
    "data.feature_stride_frames": 2,
    "data.resolution": 32,
    "data.short_side_before_crop": 36,
    "data.workers": 1,
    "head.width": 32,
    "head.arch": "[1,1,2]",
    "head.regression_range": "[[0,4],[4,8],[8,10000]]",
    "train.global_batch": 4,
    "train.log_every_steps": 1,
    "train.checkpoint_every_steps": 1,
    "train.warmup_epochs": 0,
    "train.schedule_epochs": 6,
    "train.stop_epoch": 6,
    "train.eval_from_epoch": 3,
    "train.eval_every": 3,
    "train.hang_timeout_sec": 120,
    "train.stop_timeout_sec": 100,
    "data.worker_timeout_sec": 60,
    "train.precision": "fp32",
}
LAYOUTS = {"python": 1, "torchrun": 2, "deepspeed": 2}  # launcher: ranks
LIMIT_SEC = 400  # for a whole run; one that takes longer hangs
LINGER_SEC = 20  # that processes may take to notice that they are alone


class Run:
    """A training in a folder; started at once, in a process group of its own."""

    def __init__(self, folder: Path, *, data: Path, launcher: str, changes: Sequence[str] = ()) -> None:
        self.folder, self.launcher = folder, launcher
        self.output = folder.parent / f"{folder.name}_{time.monotonic_ns()}.out"
        settings = SETTINGS | {"data.annotations": data / "annotations.json", "data.videos": data / "videos"}
        command = [*_launch(launcher), "adatad_ds/train.py", "--recipe", "quickstart", "--run-dir", str(folder)]
        command += ["--deepspeed_config", "ds_configs/zero3.json", "--resume", "auto"]
        for assignment in (*(f"{name}={value}" for name, value in settings.items()), *changes):
            command += ["--set", assignment]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        with self.output.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment | {"PET_LOG_DIR": os.devnull},
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
            )
        self.members: dict[int, psutil.Process] = {}
        self.look()

    def look(self) -> None:
        """Learn of the processes that belong to this run, while their parents live."""
        try:
            found = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.members |= {member.pid: member for member in found}

    def of_kind(self, kind: str) -> list[psutil.Process]:
        """The living ranks, workers, servers (of workers) or launchers of this run."""
        self.look()
        found = []
        for member in self.members.values():
            try:
                words, parent = " ".join(member.cmdline()), member.ppid()
            except psutil.Error:
                continue
            if "multiprocessing.forkserver" in words:
                is_kind = "worker" if parent in self.members and "forkserver" in _words(parent) else "server"
            elif "adatad_ds/train.py" in words and not any(w in words for w in ("launcher", "launch.py", "torch.dist")):
                is_kind = "rank"
            elif "resource_tracker" in words:
                is_kind = "tracker"
            else:
                is_kind = "launcher"
            if is_kind == kind:
                found.append(member)
        return found

    def losses(self) -> dict[int, float]:
        """Total loss by step, as logged."""
        log, losses = self.folder / "log.jsonl", {}
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # being written
            if "loss/total" in entry:
                losses[entry["step"]] = entry["loss/total"]
        return losses

    def until_step(self, step: int) -> None:
        """Wait for a step to be logged, or for the end."""
        end = time.monotonic() + LIMIT_SEC
        while self.process.poll() is None and time.monotonic() < end and max(self.losses(), default=-1) < step:
            self.look()
            time.sleep(0.1)

    def wait(self) -> int | None:
        """The exit code; None for one that hangs, which is ended."""
        end = time.monotonic() + LIMIT_SEC
        while self.process.poll() is None and time.monotonic() < end:
            self.look()
            time.sleep(0.2)
        return self.process.poll()

    def orphans(self) -> int:
        """How many processes stay behind; they are ended."""
        self.process.poll()
        end, alive = time.monotonic() + LINGER_SEC, list(self.members.values())
        while (alive := list(filter(_lives, alive))) and time.monotonic() < end:
            time.sleep(0.2)
        for process in alive:
            process.kill()
        self.process.wait()
        return len(alive)

    def said(self) -> str:
        """The last error that it has told."""
        lines = self.output.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        return next((line for line in reversed(lines) if line.startswith(("error: ", "asked to stop"))), "")


Fault = Callable[[Run, random.Random], None]


def kill(kind: str) -> Fault:
    """Kill one process of a kind, if there is one."""

    def fault(run: Run, chance: random.Random) -> None:
        if found := run.of_kind(kind):
            chance.choice(found).kill()

    return fault


def kill_all(run: Run, chance: random.Random) -> None:
    """A crash of the machine, but for the files."""
    run.look()
    for member in run.members.values():
        if member.is_running():
            member.kill()


def send(number: signal.Signals, *, to_group: bool) -> Fault:
    """A signal to one rank, or to the whole process group; torchrun's ranks have groups of their own."""

    def fault(run: Run, chance: random.Random) -> None:
        if to_group:
            os.killpg(run.process.pid, number)
        elif ranks := run.of_kind("rank"):
            chance.choice(ranks).send_signal(number)

    return fault


def pause(run: Run, chance: random.Random) -> None:
    """A rank is stopped for some seconds, as by a machine that swaps."""
    if ranks := run.of_kind("rank"):
        rank = chance.choice(ranks)
        rank.suspend()
        time.sleep(chance.uniform(1, 8))
        rank.resume()


def nothing(run: Run, chance: random.Random) -> None:
    """What disturbs is not done to the processes."""


FAULTS: dict[str, Fault] = {
    "kill a rank": kill("rank"),
    "kill a worker": kill("worker"),
    "kill the workers' server": kill("server"),
    "kill a launcher": kill("launcher"),
    "kill all": kill_all,
    "SIGTERM to a rank": send(signal.SIGTERM, to_group=False),
    "SIGUSR1 to a rank": send(signal.SIGUSR1, to_group=False),
    "SIGINT to the group": send(signal.SIGINT, to_group=True),
    "SIGTERM to the group": send(signal.SIGTERM, to_group=True),
    "SIGHUP to the group": send(signal.SIGHUP, to_group=True),
    "pause a rank": pause,
    "full disk": nothing,
    "flip a byte": kill_all,
    "two trainings": nothing,
}


def _launch(launcher: str) -> list[str]:
    ranks = str(LAYOUTS[launcher])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return {
        "python": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks],
        "deepspeed": [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", ranks, "--master_port", port],
    }[launcher]


def _words(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
