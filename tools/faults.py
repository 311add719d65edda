"""A campaign of faults against small trainings on a CPU: killed, signalled, stopped, short of space, damaged, doubled.

    python tools/faults.py --trials 100 --out runs/faults

Each trial starts a training, disturbs it at a random time, waits for its end, and goes on with --resume auto. Losses
must then be those of an undisturbed run, bit by bit, or the program must say in a line why not. What each kind of fault
came to is printed as a table, and written to report.md; every trial is a line of trials.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
DISK_MB = 2
COLUMNS = ("exact", "refused", "failed", "silent", "hang", "orphans")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a disturbed run came to.

    Attributes:
        kind: of the fault.
        launcher: python, torchrun or deepspeed.
        step: the last one logged before the fault; -1: none.
        codes: exit codes of the disturbed run and of the resumed one.
        outcome: exact, refused (a line says why), failed (said, but it should have gone on), silent or hang.
        orphans: processes that stayed.
        said: the last error that was said.
    """

    kind: str
    launcher: str
    step: int
    codes: tuple[int, ...]
    outcome: str
    orphans: int
    said: str


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
        _, alive = psutil.wait_procs(list(self.members.values()), timeout=LINGER_SEC)
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


class Campaign:
    """Undisturbed losses, and trials against them.

    Args:
        folder: for data and runs.
        seed: of the trials.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._data = folder / "data"
        if not (self._data / "annotations.json").exists():
            made = [sys.executable, "tools/make_videos.py", "--out", str(self._data), "--train", "8", "--test", "2"]
            subprocess.run(made, cwd=REPOSITORY, check=True, capture_output=True)
        self._expected: dict[str, dict[int, float]] = {}

    def trial(self, number: int, kind: str, launcher: str) -> Trial:
        """Disturb a run, go on, and judge."""
        expected = self._undisturbed(launcher)
        chance = random.Random(f"{self._seed} {number}")
        folder = self._folder / f"trial_{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        if kind == "full disk":
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(folder)], check=True)
        run = Run(folder, data=self._data, launcher=launcher)
        run.until_step(chance.randrange(-1, max(expected)))
        time.sleep(chance.uniform(0, 2))
        step = max(run.losses(), default=-1)
        if kind == "two trainings":
            other = Run(folder, data=self._data, launcher=launcher, changes=["train.seed=1"])
            ends = [other.wait(), other.orphans()]
            run_codes, orphans, heard = [ends[0]], ends[1] or 0, other.said()
        else:
            FAULTS[kind](run, chance)
            run_codes, orphans, heard = [], 0, ""
        run_codes.append(run.wait())
        orphans += run.orphans()
        heard = heard or run.said()
        if kind == "flip a byte":
            self._flip(folder, chance)
        if kind == "full disk":
            subprocess.run(["mount", "-o", "remount,size=500m", str(folder)], check=True)
        resumed = Run(folder, data=self._data, launcher=launcher)
        codes = [*run_codes, resumed.wait()]
        orphans += resumed.orphans()
        outcome = self._judge(codes, exact=resumed.losses() == expected, disturbed=heard, resumed=resumed.said())
        if kind in ("kill all", "flip a byte") and outcome == "silent" and codes[-1] == 0:
            outcome = "exact"  # nobody was left to say anything
        if kind == "full disk":
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)
        said = resumed.said() or heard
        ended = tuple(code if code is not None else 999 for code in codes)
        return Trial(
            kind=kind, launcher=launcher, step=step, codes=ended, outcome=outcome, orphans=orphans, said=said[:300]
        )

    def _judge(self, codes: Sequence[int | None], *, exact: bool, disturbed: str, resumed: str) -> str:
        if None in codes:
            return "hang"
        if codes[-1] != 0:
            return "refused" if resumed else "silent"
        if not exact:
            return "failed"
        return "exact" if disturbed or codes[0] in (0, -signal.SIGKILL, -signal.SIGINT, -signal.SIGHUP) else "silent"

    def _flip(self, folder: Path, chance: random.Random) -> None:
        """One bit in one file of the newest checkpoint, each file's turn by chance."""
        checkpoints = sorted((folder / "checkpoints").glob("step_*"))
        if not checkpoints:
            return
        file = chance.choice(sorted(path for path in checkpoints[-1].iterdir() if path.is_file()))
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)

    def _undisturbed(self, launcher: str) -> dict[int, float]:
        if launcher not in self._expected:
            folder = self._folder / f"whole_{launcher}"
            run = Run(folder, data=self._data, launcher=launcher)
            if run.wait() != 0:
                raise SystemExit(f"error: the undisturbed run under {launcher} failed: {run.said()}; see {run.output}")
            run.orphans()
            self._expected[launcher] = run.losses()
        return self._expected[launcher]


def table(trials: Sequence[Trial]) -> str:
    """What each kind of fault came to."""
    lines = [f"| fault | trials | {' | '.join(COLUMNS)} |", f"|---|{'---|' * (len(COLUMNS) + 1)}"]
    for kind in [*dict.fromkeys(trial.kind for trial in trials), "all"]:
        chosen = [trial for trial in trials if kind in (trial.kind, "all")]
        counts = Counter(trial.outcome for trial in chosen)
        counts["orphans"] = sum(trial.orphans for trial in chosen)
        lines.append(f"| {kind} | {len(chosen)} | {' | '.join(str(counts[column]) for column in COLUMNS)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the trials; 1 if one was silent, hung, left processes behind, or lost what it had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--launchers", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    campaign, trials = Campaign(folder, seed=arguments.seed), []
    kinds = [kind for kind in arguments.kinds if kind != "full disk" or os.geteuid() == 0]  # a tmpfs takes root
    with (folder / "trials.jsonl").open("w", encoding="utf-8") as log:
        for number in range(arguments.trials):
            kind = kinds[number % len(kinds)]
            trial = campaign.trial(number, kind, arguments.launchers[number // len(kinds) % len(arguments.launchers)])
            trials.append(trial)
            log.write(json.dumps(asdict(trial)) + "\n")
            log.flush()
            print(f"{number + 1}/{arguments.trials} {trial}", flush=True)
            (folder / "report.md").write_text(table(trials) + "\n", encoding="utf-8")
    print(table(trials))
    return int(any(trial.outcome not in ("exact", "refused") or trial.orphans for trial in trials))


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


if __name__ == "__main__":
    sys.exit(main())
