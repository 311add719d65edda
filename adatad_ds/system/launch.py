"""Rank and device of this process, as launched by deepspeed, torchrun, srun or plain python."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from adatad_ds.errors import ConfigError

_FIRST_SPECIAL_STEP = 0xFFFFFFFA  # Slurm's number for the shell of salloc; the batch script's and others' are above
_SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
# Set by torchrun and by deepspeed's launcher: the parent of each rank lives as long as the job.
_LAUNCHER_NAMES = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # torchrun's and deepspeed's
_TORCHRUN_FOLDER = "torchelastic_"


def complete_environment(environment: MutableMapping[str, str]) -> int:
    """Fill in the rendezvous variables that the launcher did not set; return the local rank.

    srun's variables are mapped; without a launcher the world size is 1.
    """
    if "RANK" not in environment and _in_slurm_step(environment):
        environment.update({name: environment[slurm_name] for name, slurm_name in _SLURM_NAMES.items()})
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        environment["MASTER_ADDR"] = "127.0.0.1"  # one set for srun may be another machine
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        environment.setdefault(name, value)
    if "MASTER_PORT" not in environment:
        environment["MASTER_PORT"] = str(_free_port())
    return int(environment["LOCAL_RANK"])


def gpu_count(environment: Mapping[str, str] = os.environ) -> int:
    """Number of GPUs that this process may use: 0 with `DS_ACCELERATOR=cpu`."""
    if environment.get("DS_ACCELERATOR") == "cpu":
        return 0
    import torch  # here: a launched rank knows its number without

    return torch.cuda.device_count()


def rank_gpu(environment: Mapping[str, str] = os.environ) -> int:
    """Index of the GPU that this process's rank has joined the others with; in a worker process, too."""
    return int(environment.get("LOCAL_RANK", "0"))


def local_device(environment: Mapping[str, str], *, gpus: int) -> int:
    """Index of this rank's device among the `gpus` that it sees.

    This is the local rank, except where Slurm shows each task one GPU of its own, e.g. by `--gpus-per-task=1` or
    `--gpu-bind=map_gpu:1,0`: there it is 0.

    Raises:
        ConfigError: fewer devices than local ranks.
    """
    local_rank = int(environment["LOCAL_RANK"])
    if local_rank < gpus:
        return local_rank
    if gpus == 1 and _is_srun_rank(environment) and _has_bound_gpu(environment):
        return 0
    bound = _gpu_binding(environment)
    remedy = f"leave out --gpu-bind={bound}, or take single:1; else " if gpus and bound not in ("", "none") else ""
    raise ConfigError(
        f"local rank {local_rank} has no GPU of its own: this process sees {gpus} "
        f"(CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', 'not set')}); {remedy}start at most {gpus} "
        "ranks a node, or set DS_ACCELERATOR=cpu to train on the CPU"
    )


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as set by the launcher; works before joining the process group."""
    name = "SLURM_PROCID" if _in_slurm_step(environment) and "RANK" not in environment else "RANK"
    return int(environment.get(name, "0"))


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes started by the launcher; works before joining the process group."""
    name = "SLURM_NTASKS" if _in_slurm_step(environment) and "WORLD_SIZE" not in environment else "WORLD_SIZE"
    return int(environment.get(name, "1"))


def local_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes started on this node; all of them, if the launcher does not say."""
    named = next((name for name in _LOCAL_SIZES if name in environment), None)
    return int(environment[named]) if named else launched_ranks(environment)


def has_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process's parent is a launcher, which lives until its ranks have exited."""
    return any(name in environment for name in _LAUNCHER_NAMES)


def remove_torchrun_folder(environment: Mapping[str, str] = os.environ) -> None:
    """Remove the temporary folder that torchrun made for this rank, and its parents if empty.

    torchrun creates torchelastic_*/RUN/attempt/RANK/ at each launch, writes there only if logs are redirected, and
    never removes it.
    """
    place = environment.get("TORCHELASTIC_ERROR_FILE", "")
    folders = Path(place).parents
    ours = next((i for i, folder in enumerate(folders) if folder.name.startswith(_TORCHRUN_FOLDER)), -1)
    with suppress(OSError):  # not empty: other ranks are running, or there are logs
        for folder in folders[: ours + 1]:
            folder.rmdir()


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process: in the shell of salloc, SLURM_NTASKS counts tasks that nothing has started."""
    step = int(environment.get("SLURM_STEP_ID", _FIRST_SPECIAL_STEP))
    return step < _FIRST_SPECIAL_STEP and all(name in environment for name in _SLURM_NAMES.values())


def _is_srun_rank(environment: Mapping[str, str]) -> bool:
    """Whether srun started this rank itself, rather than a launcher inside one task."""
    return _in_slurm_step(environment) and all(
        environment.get(name, environment[slurm_name]) == environment[slurm_name]
        for name, slurm_name in _SLURM_NAMES.items()
    )


def _has_bound_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the one GPU that Slurm shows this task is shown to none of the node's other tasks."""
    kind, _, given = _gpu_binding(environment).partition(":")
    if kind in ("map_gpu", "map", "mask_gpu", "mask"):  # 0,1 and 0x1,0x2 mean the same, as does 0*1,1*1
        entries = [(entry, int(times or 1)) for entry, _, times in (word.partition("*") for word in given.split(","))]
        shown = [
            int(entry, 16) if "mask" in kind else 1 << int(entry, 0) for entry, times in entries for _ in range(times)
        ]
        own = int(environment["SLURM_LOCALID"])
        return own < len(shown) and not any(shown[own] & other for i, other in enumerate(shown) if i != own)
    if kind:
        return kind == "per_task" or (kind, given) == ("single", "1")
    return "SLURM_GPUS_PER_TASK" in environment or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")  # not CPUs only


def _gpu_binding(environment: Mapping[str, str]) -> str:
    """The step's --gpu-bind, e.g. single:1, which --gpus-per-task=1 also sets (per_task:1); "": none is known of.

    Its name is SLURM_GPU_BIND in jobs of sbatch --gpu-bind; in the tasks of srun it stands among other resources.
    """
    for name in ("SLURMD_TRES_BIND", "SLURM_TRES_BIND"):
        if found := re.search(r"gpu:(?:verbose,)?([^+;]+)", environment.get(name, "")):
            return found[1]
    return environment.get("SLURM_GPU_BIND", "").removeprefix("verbose,")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
