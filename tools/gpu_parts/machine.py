"""What machine this is, and what it reaches at best."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.cuda.nccl import version as nccl_version

from adatad_ds.models.execution.activation_store import lock_pages
from tools.bench.step import matmul_flop_per_sec
from tools.gpu_parts.record import AS_EXPECTED, WORSE, Recorder

PACKAGES = ("torch", "torchvision", "deepspeed", "transformers", "timm", "numpy", "av", "decord")
MATMUL = "matmul peak"


def run(record: Recorder, device: torch.device) -> None:
    """Versions, card, driver, cores; matmul and copy rates."""
    record.row("versions", f"Python {platform.python_version()}, " + ", ".join(map(_version, PACKAGES)))
    record.row("CPU cores", str(len(os.sched_getaffinity(0))))
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        record.row("card", f"{card.name}, {card.total_memory / 1e9:.1f} GB, {card.multi_processor_count} processors")
        nccl = ".".join(map(str, nccl_version()))
        cudnn = torch.backends.cudnn.version()
        record.row("driver", f"{_driver()}, CUDA {torch.version.cuda}, cuDNN {cudnn}, NCCL {nccl}")
    peak = matmul_flop_per_sec(peak_dtype(device), device) / 1e12
    record.amount(MATMUL, peak, "TFLOP/s", low=600, high=790)
    if device.type != "cuda":
        record.row("copies to and from the device", "there is no device")
        return
    size = 2**30
    on_device = torch.empty(size, dtype=torch.uint8, device=device)
    for pinned in (True, False):
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        kind = "pinned" if pinned else "pageable"
        for name, copy in (
            ("to the device", lambda host=host: on_device.copy_(host, non_blocking=True)),
            ("to the host", lambda host=host: host.copy_(on_device, non_blocking=True)),
        ):
            record.amount(f"copy {name}, {kind}", size / 1e9 / _best_sec(copy), "GB/s", low=20 if pinned else None)
    _stored_activations(record, on_device)


def _stored_activations(record: Recorder, on_device: Tensor) -> None:
    """What storing activations on the host relies on: pages locked in place, and copies both ways at once."""
    hosts = [torch.zeros_like(on_device, device="cpu") for _ in range(2)]
    locked = all(lock_pages(host, torch.cuda.cudart()) for host in hosts)
    verdict = AS_EXPECTED if locked else WORSE
    record.row("pages locked in place", "yes" if locked else "refused", expected="yes", verdict=verdict)
    arriving, streams = torch.empty_like(on_device), [torch.cuda.Stream() for _ in range(2)]

    def to_host(stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            hosts[0].copy_(on_device, non_blocking=True)

    def to_device(stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            arriving.copy_(hosts[1], non_blocking=True)

    one_stream, two_streams = (
        _best_sec(lambda there=there, back=back: (to_host(there), to_device(back)))
        for there, back in ((streams[0], streams[0]), streams)
    )
    what = "copies both ways, two streams / one: seconds"
    record.amount(what, two_streams / one_stream, "", high=0.7, more_is_better=False)


def peak_dtype(device: torch.device) -> torch.dtype:
    """In which type recipes compute there: bf16, and fp32 on a CPU, which may have no products of bf16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _best_sec(action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown driver"
