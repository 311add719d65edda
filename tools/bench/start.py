"""What importing takes before a training's first step: CPU seconds of DeepSpeed's launchers and of a rank.

    python tools/bench/start.py --rounds 5

`deepspeed adatad_ds/train.py` starts two processes of DeepSpeed one after the other, then the ranks. Each imports
PyTorch and DeepSpeed, as a process of its own does here; the kinds take turns. Seconds are medians of user and system
time, with child processes, on one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # runs from a fresh clone, without installing

from adatad_ds.system.utf8 import use_utf8

RANK = """
import adatad_ds.train
from adatad_ds.system.collection import collection_paused
with collection_paused():
    import adatad_ds.distributed.world, adatad_ds.inference.feature_cache, adatad_ds.training.session
"""
KINDS = {
    "PyTorch": "import torch",
    "PyTorch and DeepSpeed": "import torch, deepspeed",
    "the runner (deepspeed)": "import deepspeed.launcher.runner",
    "the launcher (deepspeed.launcher.launch)": "import deepspeed.launcher.launch",
    "a rank": RANK,
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for code in KINDS.values():
        cpu_sec(code)  # compiles what is not, and reads the files once
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, code in KINDS.items():
            found[kind].append(cpu_sec(code))
    both = median(found["PyTorch and DeepSpeed"])
    print("| imports of | CPU s | / PyTorch and DeepSpeed |\n|---|---|---|")
    for kind, seconds in found.items():
        print(f"| {kind} | {median(seconds):.2f} | {median(seconds) / both:.2f} |")
    return 0


def cpu_sec(code: str) -> float:
    """CPU seconds of a Python process that runs the code."""
    environment = {"DS_ACCELERATOR": "cpu", **os.environ, "OMP_NUM_THREADS": "1", "DS_BUILD_OPS": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, code
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
