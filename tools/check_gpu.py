"""What works on this GPU, how fast, and where it differs from what the planner and the documentation promise.

    python tools/check_gpu.py                      # its limits add up to 9 minutes; report in gpu_check/report.md
    python tools/check_gpu.py --only machine,steps
    python tools/check_gpu.py --miniature          # the same with small shapes on a CPU, under 2 minutes

Each part runs in a process of its own with a time limit, so that one that fails, hangs or runs out of memory costs only
its own row. Rows are written as soon as they are known, and the report anew after each part:
docs/reference/gpu.md says how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

from adatad_ds.system.atomic import write_text
from adatad_ds.system.utf8 import use_utf8
from tools.gpu_parts.record import FAILED, Recorder, Row, read_rows

ROWS_FILE, REPORT_FILE = "rows.jsonl", "report.md"
TAIL_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the check.

    Attributes:
        name: for `--only`.
        title: for the report.
        command: what measures it; it appends its rows to the file of rows.
        limit_sec: after which it is killed with all that it started.
    """

    name: str
    title: str
    command: tuple[str, ...]
    limit_sec: float


# Name, title, what measures it (imported in its own process alone), seconds on a GPU; most valuable first.
PARTS = (
    ("machine", "The machine", "machine.run", 25),
    ("numerics", "Numbers against the CPU's", "numerics.run", 35),
    ("attention", "Attention", "attention.run", 25),
    ("launches", "Launches", "launches.run", 20),
    ("steps", "Whole steps", "steps.run", 140),
    ("profile", "Where a step's time goes", "steps.run_profile", 45),
    ("tia", "The adapter alone", "attention.run_tia", 20),
    ("data", "The data path", "data_path.run", 50),
    ("launch", "Under the launcher: killed, resumed, fp16, stopped", "launched.run", 80),
    ("compile", "Compiled regions", "compiled.run", 65),
    ("reference", "The reference's way", "steps.run_reference", 35),
)
MINIATURE_SEC = 240  # on a machine with much else to do


def main(argv: Sequence[str] | None = None) -> int:
    """Check, and write the report; 0 if no part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the report; default gpu_check")
    parser.add_argument("--miniature", action="store_true", help="small shapes, on a CPU")
    names = ",".join(name for name, *_ in PARTS)
    parser.add_argument("--only", metavar="PART,...", help=f"of {names}")
    parser.add_argument("--run-part", help=argparse.SUPPRESS)  # this process is to be that part
    arguments = parser.parse_args(argv)
    if arguments.run_part:
        return _run_here(arguments.run_part, arguments.out / ROWS_FILE, miniature=arguments.miniature)
    wanted = arguments.only.split(",") if arguments.only else names.split(",")
    if unknown := set(wanted) - set(names.split(",")):
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; there are {names}")
    if not arguments.miniature and not _has_gpu():
        print("error: PyTorch finds no GPU here; --miniature tries the check itself on a CPU", file=sys.stderr)
        return 2
    parts = parts_of(wanted, arguments.out, miniature=arguments.miniature)
    if arguments.miniature:  # speed is not judged there, so parts may disturb each other
        return check(parts, arguments.out, heading="no GPU: miniature", at_once=2)
    return check(parts, arguments.out)


def parts_of(names: Collection[str], out: Path, *, miniature: bool) -> list[Part]:
    """The parts of these names, in their order; their rows lie in `out`."""
    return [
        Part(
            name=name,
            title=title,
            command=_command(name, out, miniature=miniature),
            limit_sec=MINIATURE_SEC if miniature else limit_sec,
        )
        for name, title, _, limit_sec in PARTS
        if name in names
    ]


def check(parts: Sequence[Part], folder: Path, *, heading: str | None = None, at_once: int = 1) -> int:
    """Run the parts; rows and report lie in the folder.

    Args:
        parts: in the order in which they begin.
        folder: for the report.
        heading: what is said at its top; None: nothing.
        at_once: how many run side by side.

    Returns:
        1 if any row failed, else 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows_path = folder / ROWS_FILE
    rows_path.unlink(missing_ok=True)
    if heading:
        print(heading)
    seconds: dict[str, float] = {}
    reporting, check_began = threading.Lock(), time.monotonic()

    def run(part: Part) -> None:
        began = time.monotonic()
        problem, output = run_part(part)
        with reporting:
            seconds[part.name] = time.monotonic() - began
            print(
                f"=== {part.title} ({part.name}), {seconds[part.name]:.0f} of {part.limit_sec:.0f} s\n{output}", end=""
            )
            if problem:
                Recorder(rows_path, part=part.name, miniature=heading is not None).row(
                    "the part itself", problem, expected="a good end", verdict=FAILED
                )
            write_text(folder / REPORT_FILE, report(parts, read_rows(rows_path), seconds=seconds, heading=heading))
            sys.stdout.flush()

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, parts))
    rows = read_rows(rows_path)
    print(f"{folder / REPORT_FILE}: {counts(rows)}, {time.monotonic() - check_began:.0f} s")
    return int(any(row.verdict == FAILED for row in rows))


def run_part(part: Part) -> tuple[str | None, str]:
    """Run one part; how it failed, with the last lines that it printed, or None; and all that it printed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(part.command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        problem = None
        try:
            code = process.wait(timeout=part.limit_sec)
            if code:
                problem = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            problem = f"stopped after {part.limit_sec:.0f} s"
        finally:  # also what it has left behind, such as ranks that wait for a dead one
            _kill_group(process)
        output.seek(0)
        text = output.read()
    if problem is None:
        return None, text
    tail = " / ".join(line.strip() for line in text.splitlines()[-TAIL_LINES:] if line.strip())
    return f"{problem}: {tail}" if tail else problem, text


def _kill_group(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def report(parts: Sequence[Part], rows: Sequence[Row], *, seconds: dict[str, float], heading: str | None) -> str:
    """The report so far, in Markdown."""
    lines = ["# Check of a GPU", ""]
    if heading:
        lines += [f"**{heading}**", ""]
    lines += [f"{time.strftime('%Y-%m-%d %H:%M')}; {counts(rows)}.", ""]
    for part in parts:
        if part.name not in seconds:
            lines += [f"## {part.title}", "", "Not run yet.", ""]
            continue
        lines += [f"## {part.title}", "", f"{seconds[part.name]:.0f} s", ""]
        lines += ["| what | measured | expected | verdict |", "|---|---|---|---|"]
        lines += [
            f"| {' | '.join(_cell(text) for text in (row.what, row.measured, row.expected, row.verdict))} |"
            for row in rows
            if row.part == part.name
        ]
        lines.append("")
    return "\n".join(lines)


def counts(rows: Sequence[Row]) -> str:
    """How many rows have which verdict."""
    verdicts = [row.verdict for row in rows]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)) or "nothing"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _command(name: str, out: Path, *, miniature: bool) -> tuple[str, ...]:
    command = (sys.executable, str(Path(__file__).resolve()), "--run-part", name, "--out", str(out))
    return (*command, "--miniature") if miniature else command


def _has_gpu() -> bool:
    """Asked of another process: this one is to hold no memory on the device."""
    code = "import sys; from adatad_ds.system.launch import gpu_count; sys.exit(not gpu_count())"
    root = Path(__file__).resolve().parents[1]
    return subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def _run_here(name: str, rows_path: Path, *, miniature: bool) -> int:
    if miniature:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    import torch

    module, function = next(measures for part, _, measures, _ in PARTS if part == name).split(".")
    part = importlib.import_module(f"tools.gpu_parts.{module}")
    run: Callable[[Recorder, torch.device], None] = getattr(part, function)
    device = torch.device("cpu" if miniature else "cuda")
    run(Recorder(rows_path, part=name, miniature=miniature), device)
    return 0


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
