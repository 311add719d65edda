"""Known kinds of GPU, and how names of nvidia-smi, PyTorch and Slurm map to them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from adatad_ds.errors import ConfigError

SLACK = 0.1  # of memory: vendors count in GB or GiB, drivers reserve some


@dataclass(frozen=True)
class GPU:
    """Memory in GB and dense bf16 peak in TFLOP/s, from the data sheet."""

    memory_gb: float
    tflop_per_sec: float


GPUS = {  # by chip and memory
    "RTX3090-24": GPU(24, 71),
    "RTX4090-24": GPU(24, 165),
    "A10-24": GPU(24, 125),
    "L4-24": GPU(24, 121),
    "A40-48": GPU(48, 150),
    "L40S-48": GPU(48, 362),
    "A100-40": GPU(40, 312),
    "A100-80": GPU(80, 312),
    "H100-80": GPU(80, 989),
    "H100-PCIe-80": GPU(80, 756),
    "H200-141": GPU(141, 989),
}


def gpu_named(name: str, *, memory_gb: float | None = None) -> str:
    """The kind of GPU that a name means.

    Args:
        name: as in nvidia-smi, PyTorch or a Slurm GRES ("NVIDIA A100-SXM4-80GB", "rtx_4090"), or the kind itself.
        memory_gb: the device's memory; None: as in the name, if given there.

    Raises:
        ConfigError: unknown or ambiguous.
    """
    if name in GPUS:
        return name
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).replace("rtx ", "rtx").split()
    in_name = re.search(r"(\d+) ?GB", name, re.IGNORECASE)
    if memory_gb is None and in_name:
        memory_gb = float(in_name[1])
    chips = {kind: kind.lower().split("-")[:-1] for kind in GPUS}
    fitting = [
        kind
        for kind, chip in chips.items()
        if set(chip) <= set(words) and (memory_gb is None or abs(memory_gb / GPUS[kind].memory_gb - 1) < SLACK)
    ]
    closest = max((len(chips[kind]) for kind in fitting), default=0)
    fitting = [kind for kind in fitting if len(chips[kind]) == closest]
    if len(fitting) == 1:
        return fitting[0]
    called = f"a GPU called {name!r}" + (f" with {memory_gb:.0f} GB" if memory_gb else "")
    if fitting:
        raise ConfigError(f"{called} may be {' or '.join(fitting)}")
    raise ConfigError(f"{called} is unknown to the planner; known: {', '.join(GPUS)}")


def gpu_here() -> str:
    """The kind of this machine's GPUs, from nvidia-smi.

    Raises:
        ConfigError: no GPU, several kinds, or an unknown one.
    """
    if shutil.which("nvidia-smi") is None:
        raise ConfigError("this machine has no GPU (there is no nvidia-smi)")
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    lines = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    if done.returncode or not lines:
        raise ConfigError(f"nvidia-smi lists no GPU on this machine: {(done.stderr or done.stdout).strip()}")
    kinds = {gpu_named(name.strip(), memory_gb=float(mib) * 2**20 / 1e9) for name, mib in lines}
    if len(kinds) > 1:
        raise ConfigError(f"this machine has several kinds of GPU: {', '.join(sorted(kinds))}")
    return kinds.pop()
