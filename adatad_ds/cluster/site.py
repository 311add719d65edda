"""A cluster: what slurm/site.env says of it in the environment, and what Slurm says itself."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adatad_ds.errors import ConfigError
from adatad_ds.planning.gpus import GPUS

EARLY_SEC = 60  # Slurm's signals may come so much earlier than asked for


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster, as slurm/site.env and sinfo tell: of each setting the value, under its name in lower case.

    Attributes:
        gpus_per_node: 0: CPUs.
        ranks_per_node: tasks of a node.
        cpus_per_rank: of each.
        gpu: what GPU of slurm/site.env says, else the type in the nodes' GRES; "": nothing does.
        ds_config: path of the engine's policy; "": as the planner chooses, and ZeRO-2 where nothing is planned.
        cells_at_once: of a grid; None: no limit.
        container: command in front of the ranks' python.
        srun_options: more options of srun.
    """

    gpus_per_node: int
    ranks_per_node: int
    cpus_per_rank: int
    gpu: str
    ds_config: str
    cells_at_once: int | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mem_per_node: str = ""
    time_limit: str = "24:00:00"
    warning_sec: int = 180
    container: str = ""
    srun_options: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """More options of sbatch."""
        asked = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "mem": self.mem_per_node,
            "gpus-per-node": self.gpus_per_node,
        }
        time = (f"--time={self.time_limit}", f"--signal=B:USR1@{self.warning_sec}")
        return (*time, *(f"--{option}={value}" for option, value in asked.items() if value))

    @property
    def settings(self) -> dict[str, str]:
        """What slurm/site.env would have to say to give this site again; but for GPU, which sinfo may have named."""
        values = {name.upper(): value for name, value in asdict(self).items() if name != "gpu"}
        return {name: "" if value is None else str(value) for name, value in values.items()}


def read_site(recipes: Sequence[str], settings: Mapping[str, str] = os.environ) -> Site:
    """What slurm/site.env has set; the rest, what sinfo says. The quickstart's recipes train on CPUs.

    Raises:
        ConfigError: no number where there should be one, no GPUs, no time between a job's start and its warning.
    """
    gpus, ranks, cpus = (number_of(name, settings) for name in ("GPUS_PER_NODE", "RANKS_PER_NODE", "CPUS_PER_RANK"))
    on_cpus = bool(recipes) and all(recipe.split("_")[0] == "quickstart" for recipe in recipes)
    if gpus is None and on_cpus:
        gpus = 0
    gpu, partition = settings.get("GPU", ""), settings.get("PARTITION", "")
    if gpu and gpu not in GPUS:
        raise ConfigError(f"GPU={gpu} in slurm/site.env is unknown to the memory planner; there are {', '.join(GPUS)}")
    if gpus is None or gpus > 0 or cpus is None:
        there_gpus, there_cpus, types = _ask_sinfo(partition)
        if gpus != 0 and not there_gpus:
            raise ConfigError(
                f"the nodes of {partition or 'the default partition'} have no GPUs, says sinfo; set PARTITION "
                "(slurm/site.env) to one with GPUs, or GPUS_PER_NODE=0 to train on CPUs. RECIPE=quickstart does so"
            )
        gpus = there_gpus if gpus is None else gpus
        cpus = cpus or max(1, min(8, there_cpus // (ranks or gpus or 2)))
        gpu = gpu or " or ".join(sorted(types))
    site = Site(
        gpus_per_node=gpus,
        ranks_per_node=ranks or gpus or 2,
        cpus_per_rank=cpus,
        gpu=gpu,
        ds_config=settings.get("DS_CONFIG", ""),
        cells_at_once=number_of("CELLS_AT_ONCE", settings),
        partition=partition,
        account=settings.get("ACCOUNT", ""),
        qos=settings.get("QOS", ""),
        constraint=settings.get("CONSTRAINT", ""),
        mem_per_node=settings.get("MEM_PER_NODE", ""),
        time_limit=settings.get("TIME_LIMIT") or Site.time_limit,
        warning_sec=number_of("WARNING_SEC", settings) or Site.warning_sec,
        container=settings.get("CONTAINER", ""),
        srun_options=settings.get("SRUN_OPTIONS", ""),
    )
    _check_time(site.time_limit, site.warning_sec)
    return site


def file_settings(file: Path) -> dict[str, str]:
    """What a copy of slurm/site.env says where the environment sets nothing; nothing, if it is not there."""
    environment = {name: value for name, value in os.environ.items() if name.lower() not in Site.__dataclass_fields__}
    command = ["bash", "-c", 'set -a; source "$1" && env -0', "bash", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def _ask_sinfo(partitions: str) -> tuple[int, int, set[str]]:
    """GPUs and CPUs of a node, and those GPUs' types; of partitions with commas between, or of the default one."""
    lines = call_slurm(["sinfo", "--noheader", "--format=%P|%c|%G"]).split()
    asked = [line.split("|") for line in lines]
    default = [partition.rstrip("*") for partition, *_ in asked if partition.endswith("*")]
    wanted = set(partitions.split(",") if partitions else default)
    if unknown := sorted(wanted - {partition.rstrip("*") for partition, *_ in asked}):
        raise ConfigError(f"there is no partition {', '.join(unknown)}; set PARTITION in slurm/site.env")
    nodes = [line for line in asked if line[0].rstrip("*") in wanted]
    if not nodes:
        raise ConfigError("there is no partition that is the default; set PARTITION in slurm/site.env")
    gpus = max(gpus_in(gres) for _, _, gres in nodes)
    fullest = [(int(cpus.rstrip("+")), gres) for _, cpus, gres in nodes if gpus_in(gres) == gpus]
    types = set().union(*(gpu_types_in(gres) for _, gres in fullest))
    return gpus, min(cpus for cpus, _ in fullest), types


def _check_time(limit: str, warning_sec: int) -> None:
    seconds, needed = seconds_in(limit), warning_sec + max(warning_sec, EARLY_SEC)
    if seconds is not None and seconds < needed:
        raise ConfigError(
            f"TIME_LIMIT={limit} leaves a job no time to train, as it is asked to save WARNING_SEC={warning_sec} "
            f"before, and Slurm may do so {EARLY_SEC} s sooner; take at least {math.ceil(needed / 60)} minutes, or "
            "another WARNING_SEC (slurm/site.env)"
        )


def seconds_in(limit: str) -> int | None:
    """Of a time limit as sbatch takes it, e.g. 90 (minutes), 1:30:00 or 2-12; None: it is unlimited, or no time."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if found is None:
        return None
    numbers = [int(number) for number in found.groups()[1:] if number]
    if found[1] is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(found[1] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


def gpu_types_in(gres: str) -> set[str]:
    """Types of a node's GPUs, by its `Gres` in sinfo: a100 of gpu:a100:4(S:0-1), none of gpu:4."""
    return set(re.findall(r"gpu:([^:,(]*[^:,(\d][^:,(]*):\d+", gres))


def gpus_in(gres: str) -> int:
    """GPUs of a node, by its `Gres` in sinfo, e.g. gpu:a100:4(S:0-1)."""
    return sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))


def call_slurm(command: Sequence[str]) -> str:
    """Standard output of one of Slurm's commands.

    Raises:
        ConfigError: it is not there, or refuses.
    """
    if shutil.which(command[0]) is None:
        raise ConfigError(f"there is no {command[0]} here; is this a machine of the cluster?")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"Slurm refuses: {done.stderr.strip()}\n(asked: {' '.join(command)})")
    return done.stdout


def words_of(name: str, settings: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Words of an environment variable; none where it is not set."""
    return tuple(settings.get(name, "").split())


def numbers_of(name: str, settings: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """Whole numbers of an environment variable.

    Raises:
        ConfigError: something else is among them.
    """
    words = words_of(name, settings)
    if not all(word.isdigit() for word in words):
        raise ConfigError(f"{name}={settings[name]} must be whole numbers")
    return tuple(int(word) for word in words)


def number_of(name: str, settings: Mapping[str, str] = os.environ) -> int | None:
    """The whole number of an environment variable; None where it is not set.

    Raises:
        ConfigError: it is something else.
    """
    numbers = numbers_of(name, settings)
    if len(numbers) > 1:
        raise ConfigError(f"{name}={settings[name]} must be one number")
    return numbers[0] if numbers else None
