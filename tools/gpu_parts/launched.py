"""The quickstart under the launcher: killed, resumed, in fp16, asked to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from tools.gpu_parts.record import AS_EXPECTED, WORSE, Recorder

REPOSITORY = Path(__file__).resolve().parents[2]
COMMON = {"train.eval_from_epoch": 99, "train.warmup_epochs": 0, "train.log_every_steps": 1, "data.workers": 1}
LAST_EPOCH = 16  # of the quickstart's schedule
SMALL = {  # for a CPU
    "data.window_size": 32,
    "data.resolution": 32,
    "data.short_side_before_crop": 36,
    "head.width": 32,
    "head.arch": "[1,1,2]",
    "head.regression_range": "[[0,4],[4,8],[8,10000]]",
    "data.workers": 0,
}


def run(record: Recorder, device: torch.device) -> None:
    """Losses of the interrupted and of the uninterrupted run; fp16; SIGTERM."""
    on_gpu = device.type == "cuda"
    steps, at = (60, 30) if on_gpu else (6, 2)
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary)
        _make_videos(runs / "data", videos=16 if on_gpu else 8, short=not on_gpu)
        settings = {**COMMON, **({} if on_gpu else SMALL), "train.repeats": 1, "train.checkpoint_every_steps": at // 2}
        settings |= {"data.annotations": runs / "data/annotations.json", "data.videos": runs / "data/videos"}
        settings |= {"train.stop_epoch": steps // (4 if on_gpu else 2)}
        whole = _Training(runs / "whole", settings)
        killed = _Training(runs / "killed", settings if on_gpu else settings | {"train.stop_epoch": LAST_EPOCH})
        others = _others(runs, settings) if on_gpu else {}  # at the same time, as starting takes most of it
        killed.until(at)
        killed.signal(signal.SIGKILL)
        killed.start(resume=True)
        if on_gpu:
            others["stopped"].until(5)
            _stop(record, others["stopped"])
            _finish_fp16(record, others["fp16"])
            killed.finish()
        else:
            killed.until(at + 2)
            _stop(record, killed)
        whole.finish()
        first, again = whole.losses(), killed.losses()
        compared = [step for step in first if step in again]
        needed = steps if on_gpu else at + 3
        apart = max((abs(first[step] - again[step]) / abs(first[step]) for step in compared), default=float("inf"))
        what = (
            f"{len(compared)} of {steps} steps, killed -9 at step {at}, resumed: largest relative difference of losses"
        )
        record.difference(what, apart if len(compared) >= needed else float("inf"), most=0.0 if not on_gpu else 1e-3)
        if not on_gpu:
            record.row("fp16", "a CPU does not train in it")
            return
        others["cpu"].finish()
        expected = others["cpu"].losses()
        apart = max(abs(first[step] - loss) / abs(loss) for step, loss in expected.items())
        record.difference("quickstart's first 4 losses under the launcher, GPU against CPU", apart, most=1e-2)


def _others(runs: Path, settings: Mapping[str, object]) -> dict[str, _Training]:
    """In fp16; to be stopped; and on the CPU, for its losses."""
    long = {"train.stop_epoch": LAST_EPOCH, "train.repeats": 100}
    return {
        "fp16": _Training(runs / "fp16", {**settings, "train.precision": "fp16", "train.stop_epoch": 2}),
        "stopped": _Training(runs / "stopped", {**settings, **long}),
        "cpu": _Training(runs / "cpu", {**settings, "train.stop_epoch": 1}, on_cpu=True),
    }


def _stop(record: Recorder, training: _Training) -> None:
    """SIGTERM to the rank, which saves and leaves."""
    began = time.monotonic()
    code = training.signal(signal.SIGTERM)
    stopped = (training.folder / "interrupted").exists()
    good = code == 0 and stopped
    record.row(
        "SIGTERM",
        f"exit {code} after {time.monotonic() - began:.1f} s, " + ("saved" if stopped else "nothing saved"),
        expected="exit 0, saved",
        verdict=AS_EXPECTED if good else WORSE,
    )


def _finish_fp16(record: Recorder, training: _Training) -> None:
    try:
        training.finish()
        losses = training.losses()
        record.row(f"fp16, {len(losses)} steps", f"losses {min(losses.values()):.3f} to {max(losses.values()):.3f}")
    except RuntimeError as error:
        record.failed("fp16", error)


class _Training:
    """One run of train.py under the launcher, one rank; started at once."""

    def __init__(self, folder: Path, settings: Mapping[str, object], *, on_cpu: bool = False) -> None:
        self.folder, self._settings, self._on_cpu = folder, settings, on_cpu
        self._log = folder.with_suffix(".out")
        self.start()

    def start(self, *, resume: bool = False) -> None:
        """Launch it."""
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port", _free_port()]
        command = [*launcher, "adatad_ds/train.py", "--recipe", "quickstart", "--run-dir", str(self.folder)]
        command += ["--deepspeed_config", "ds_configs/zero3_offload.json"]
        for name, value in self._settings.items():
            command += ["--set", f"{name}={value}"]
        hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        if self._on_cpu:
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if environment.get("CUDA_VISIBLE_DEVICES") == "":
            environment["OMP_NUM_THREADS"] = "1"  # several runs at once
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command + (["--resume", "auto"] if resume else []),
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def until(self, step: int) -> None:
        """Wait for a step to be logged."""
        while step not in self.losses():
            if self._process.poll() is not None:
                raise RuntimeError(f"ended before step {step}: {self._log.read_text(encoding='utf-8')[-1500:]}")
            time.sleep(0.02)

    def signal(self, number: int) -> int:
        """Send a signal to the rank; the launcher's exit code."""
        for pid in _ranks(self.folder):
            os.kill(pid, number)
        return self._process.wait(timeout=60)

    def finish(self) -> None:
        """Wait for its good end."""
        if self._process.wait():
            raise RuntimeError(self._log.read_text(encoding="utf-8")[-1500:])

    def losses(self) -> dict[int, float]:
        """Total loss by step, as logged."""
        log, losses = self.folder / "log.jsonl", {}
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "loss/total" in entry:
                losses[entry["step"]] = entry["loss/total"]
        return losses


def _ranks(folder: Path) -> list[int]:
    """Processes that run train.py into a folder, but for the launcher's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(folder) in words and not any(
            "deepspeed.launcher" in word or word.endswith("launch.py") for word in words
        ):
            found.append(int(path.parent.name))
    return found


def _make_videos(folder: Path, *, videos: int, short: bool) -> None:
    command = [sys.executable, "-m", "adatad_ds", "generate", "videos", "--out", str(folder)]
    command += ["--train", str(videos), "--test", "2"] + (["--seconds", "10", "14"] if short else [])
    workers = ["--workers", str(len(os.sched_getaffinity(0)))]
    subprocess.run([*command, *workers], cwd=REPOSITORY, check=True, capture_output=True)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
