"""The check of a GPU: one part's misfortune costs its own row; the whole in miniature."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from tests.support.launch import REPOSITORY, environment
from tests.support.pool import forked
from tools.check_gpu import PARTS, Part, check, parts_of
from tools.gpu_parts.record import AS_EXPECTED, BETTER, FAILED, WORSE, Recorder, read_rows
from tools.gpu_parts.steps import most_time
from tools.gpu_parts.whole_step import gpu_activity


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.mark.slow
def test_a_part_costs_its_own_row_only(tmp_path: Path):
    recorder = (
        "from pathlib import Path; from tools.gpu_parts.record import Recorder; "
        f"r = Recorder(Path({str(tmp_path)!r}) / 'rows.jsonl', part=NAME, miniature=True); r.row('before', '1'); "
    )
    marker = tmp_path / "orphan"
    orphan = f"import time, pathlib; time.sleep(4); pathlib.Path({str(marker)!r}).touch()"
    codes = {
        "fails": "raise ValueError('what it says')",
        "hangs": f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {orphan!r}]); time.sleep(600)",
        "exhausts": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); bytearray(2**31)",
        "dies": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "works": "r.row('after', '2')",
    }
    parts = [
        Part(name=name, title=name, command=python(recorder.replace("NAME", repr(name)) + code), limit_sec=3)
        for name, code in codes.items()
    ]
    assert check(parts, tmp_path) == 1
    rows = read_rows(tmp_path / "rows.jsonl")
    by_part = {name: [row for row in rows if row.part == name] for name in codes}
    assert all(found[0].what == "before" for found in by_part.values())
    assert [row.what for row in by_part["works"]] == ["before", "after"]
    failures = {name: found[-1].measured for name, found in by_part.items() if found[-1].verdict == FAILED}
    assert "ValueError: what it says" in failures["fails"]
    assert "stopped after 3 s" in failures["hangs"]
    assert "MemoryError" in failures["exhausts"]
    assert "SIGKILL" in failures["dies"]
    assert len(failures) == 4
    report = (tmp_path / "report.md").read_text()
    assert all(f"## {name}" in report for name in codes)
    time.sleep(4)
    assert not marker.exists(), "what a stopped part had started went on"


def test_verdicts(tmp_path: Path):
    record = Recorder(tmp_path / "rows", part="x", miniature=False)
    record.amount("rate", 5, "GB/s", low=10)
    record.amount("rate", 15, "GB/s", low=10)
    record.amount("rate", 25, "GB/s", low=10, high=20)
    record.amount("time", 5, "s", high=10, more_is_better=False)
    record.amount("time", 15, "s", high=10, more_is_better=False)
    record.difference("apart", float("nan"), most=1)
    expected = [WORSE, AS_EXPECTED, BETTER, AS_EXPECTED, WORSE, WORSE]
    assert [row.verdict for row in read_rows(tmp_path / "rows")] == expected
    assert record.fact("rate") == 25
    with (tmp_path / "rows").open("a") as file:
        file.write('{"part": "x", "wh')  # killed while it wrote
    assert len(read_rows(tmp_path / "rows")) == len(expected)


def profiled(name: str, begin: int, end: int, *, kind: DeviceType, range_: bool = False) -> Any:
    """An event as Kineto tells it, microseconds; a `range_` is one of `record_function`."""
    return SimpleNamespace(
        name=name,
        key=name,
        device_type=kind,
        time_range=SimpleNamespace(start=begin, end=end),
        self_device_time_total=end - begin,
        self_cpu_time_total=end - begin,
        is_user_annotation=range_,
    )


class Averages(list[Any]):
    def table(self, **options: object) -> str:
        return ""


def test_ranges_are_no_work_of_a_device():
    """Kineto puts those of `record_function` on the device's line as well, and a kernel's time down to its operator."""
    gpu, cpu = DeviceType.CUDA, DeviceType.CPU
    events = [profiled("kernel", 1000 * i, 1000 * i + 200, kind=gpu) for i in range(100)]
    del events[50]
    events += [profiled("forward", 0, 99_200, kind=kind, range_=True) for kind in (gpu, cpu)]
    events.append(profiled("aten::mm", 0, 100, kind=cpu))
    found = gpu_activity(events, wall_sec=0.1)
    assert found["busy_percent"] == pytest.approx(19.8)
    assert found["largest_gap_ms"] == pytest.approx(1.8)
    recorder: Any = SimpleNamespace(key_averages=lambda: Averages(events))
    assert most_time(recorder, torch.device("cuda")) == "kernel 100 %"
    assert most_time(recorder, torch.device("cpu")) == "aten::mm 100 %"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/check_gpu.py", *options]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path):
    done = run("--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: PyTorch finds no GPU here; --miniature")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_in_miniature(tmp_path: Path):
    parts = parts_of([name for name, *_ in PARTS], tmp_path, miniature=True)
    without_imports = [replace(part, command=tuple(forked(1, list(part.command[1:])))) for part in parts]
    failed = check(without_imports, tmp_path, heading="no GPU: miniature", at_once=2)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert not failed, [row for row in rows if row.verdict == FAILED]
    assert {row.part for row in rows} == {name for name, *_ in PARTS}
    assert "**no GPU: miniature**" in (tmp_path / "report.md").read_text()
    apart = [row for row in rows if "relative difference" in row.what]
    assert apart
    assert all(row.verdict == AS_EXPECTED for row in apart)
