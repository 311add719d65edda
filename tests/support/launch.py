"""Start real training processes for tests, and read what they wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.pool import forked

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_SEC = 900  # hangs alone should reach it, however busy the machine is

SMALL = {  # a detector and schedule that train on a CPU in seconds
    "data.window_size": 32,
    "data.feature_stride_frames": 2,
    "data.resolution": 32,
    "data.short_side_before_crop": 36,
    "data.workers": 0,
    "backbone.drop_path": 0.2,
    "backbone.adapter_blocks": "[4,5]",  # of 6
    "head.width": 32,
    "head.arch": "[1,0,1]",
    "head.regression_range": "[[0,4],[4,10000]]",
    "head.drop_path": 0.1,
    "head.input_dropout": 0.1,
    "train.global_batch": 4,
    "train.log_every_steps": 1,
    "train.warmup_epochs": 0,
    "train.schedule_epochs": 2,
    "train.stop_epoch": 2,
    "train.eval_every": 1,
    "train.eval_pictures": "false",
    "train.precision": "fp32",
    "test.batch": 4,
}


RECOGNITION = {  # the same for recognition
    "data.workers": 0,
    "recognition.frames": 4,
    "train.global_batch": 8,
    "train.log_every_steps": 1,
    "train.warmup_epochs": 0,
    "train.schedule_epochs": 2,
    "train.stop_epoch": 2,
    "train.eval_every": 1,
    "train.eval_pictures": "false",
    "test.batch": 8,
}


def recognition_command(*, clips: Path, run: Path, recipe: str = "quickstart_aim", **options: Any) -> list[str]:
    """As `train_command`, for the generated clips in a folder."""
    lists = {f"recognition.{subset}_list": clips / subset for subset in ("train", "test")}
    return train_command(run=run, recipe=recipe, settings=RECOGNITION | lists, **options)


def train_command(
    *,
    data: Path | None = None,
    run: Path,
    ranks: int,
    ds_config: str,
    launcher: str = "pool",
    resume: bool = False,
    recipe: str = "quickstart",
    settings: Mapping[str, object] = SMALL,
    **changes: object,
) -> list[str]:
    """The command line of a small training; keyword names use `__` for the dot of `--set section.key`.

    Launchers: pool (see tests/support/pool.py), deepspeed, torchrun, python.
    """
    settings = dict(settings)
    if data is not None:
        settings |= {"data.annotations": data / "annotations.json", "data.videos": data / "videos"}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    command = ["adatad_ds/train.py", "--recipe", recipe, "--run-dir", str(run)]
    command += ["--deepspeed_config", ds_config if ds_config.endswith(".json") else f"ds_configs/{ds_config}.json"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    return launched(launcher, ranks, [*command, *(["--resume", "auto"] if resume else [])])


def launched(launcher: str, ranks: int, command: list[str]) -> list[str]:
    """The command line that runs `[script, argument, ...]` as so many ranks: those of the pool, or a user's."""
    if launcher == "pool":
        return forked(ranks, command)
    launch = {
        "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", free_port()],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)],
        "python": [],
    }[launcher]
    return [sys.executable, *launch, *command]


def environment() -> dict[str, str]:
    """One thread a rank, no GPU, no installed package: as from a fresh clone."""
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def heed_interrupts() -> None:
    """To be called in a new process: what a shell or nohup ignores is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository to its end."""
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False
    )


def finish(command: list[str]) -> str:
    """Run a command that must succeed; its output."""
    done = start(command)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def start_until(command: list[str], run: Path, step: int) -> subprocess.Popen[bytes]:
    """Start a training and return once a step is logged."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment() | {"PET_LOG_DIR": os.devnull},  # torchrun's folder would stay where ranks are killed
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    log = run / "log.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and any(f'"step": {step},' in line for line in log.read_text().splitlines()):
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before that step"
    return process


def run_ranks(script: str, folder: Path, *, ranks: int = 2) -> list[tuple[int | None, str]]:
    """Run Python code as several ranks, without a launcher: exit code and output of each.

    As a launcher would, it ends the others some time after one has failed; their code is None.
    """
    file = folder / "script.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{script}")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        with (folder / f"rank_{rank}.out").open("w") as output:
            place = environment() | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen([sys.executable, file], cwd=folder, env=place, stdout=output, stderr=output)
            )
    end, failed = time.monotonic() + TIMEOUT_SEC, False
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        if not failed and any(process.returncode for process in processes):
            end, failed = time.monotonic() + 5, True
        time.sleep(0.1)
    codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    return [(code, (folder / f"rank_{rank}.out").read_text()) for rank, code in enumerate(codes)]


def children_of(process: int, word: str) -> list[psutil.Process]:
    """Direct children of a process with a word in their command line."""
    found = []
    for child in psutil.Process(process).children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if any(word in part for part in child.cmdline()):
                found.append(child)
    return found


def end_children() -> None:
    """Kill what this process has started, however far down, but for the pool of test processes and the browser."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile, or nobody has waited for it yet
            if not {"tests.support.pool", "--remote-debugging-pipe"} & set(child.cmdline()):
                for process in (*child.children(recursive=True), child):
                    process.kill()


def losses(run: Path) -> dict[int, float]:
    """Total loss of every logged step of a run."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss/total" in line]
    assert len({line["step"] for line in steps}) == len(steps), "a step is logged twice"
    return {line["step"]: line["loss/total"] for line in steps}


def free_port() -> str:
    """A port for the rendezvous of one launch."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
