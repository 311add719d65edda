"""Which device a rank takes; what is told where it has none."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.activation_store import lock_pages
from adatad_ds.system.launch import gpu_count, local_device
from tests.support.launch import REPOSITORY, environment

SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


def test_a_rank_has_the_device_of_its_local_rank():
    for local_rank in range(4):
        assert local_device({"LOCAL_RANK": str(local_rank)}, gpus=4) == local_rank


@pytest.mark.parametrize(
    "bind",
    [
        {"SLURM_GPUS_PER_TASK": "1"},
        {"SLURM_GPU_BIND": "single:1"},
        {"SLURM_GPU_BIND": "verbose,per_task:1"},
        {"SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=1"},
        {"SLURM_TRES_PER_TASK": "cpu:4,gres:gpu:1"},
        {"SLURMD_TRES_BIND": "gpu:per_task:1"},  # srun --gpus-per-task=1 in Slurm 22.05, where nothing else tells
        {"SLURMD_TRES_BIND": "gpu:single:1"},
        {"SLURM_TRES_BIND": "gres/gpu:verbose,map:1,0+gres/nic:closest"},
        {"SLURM_GPU_BIND": "map_gpu:1,0"},
        {"SLURM_GPU_BIND": "map_gpu:0*1,3*1"},
        {"SLURM_GPU_BIND": "mask_gpu:0x2,0x1"},
    ],
)
def test_slurm_shows_a_task_its_own_device_only(bind):
    assert local_device({"LOCAL_RANK": "1", **SRUN, **bind}, gpus=1) == 0


@pytest.mark.parametrize(
    "bind",
    [
        {"SLURM_TRES_PER_TASK": "cpu=4"},
        *(
            {"SLURM_GPU_BIND": bind}
            for bind in (
                "none",
                "closest",
                "single:2",
                "map_gpu:0",
                "map_gpu:0*2,1*2",
                "map_gpu:0,1,1",
                "mask_gpu:0x3,0x2",
            )
        ),
    ],
)
def test_tasks_that_slurm_binds_to_no_gpu_of_their_own_do_not_share(bind):
    with pytest.raises(ConfigError, match="local rank 1 has no GPU of its own"):
        local_device({"LOCAL_RANK": "1", **SRUN, **bind}, gpus=1)


def test_a_binding_that_may_share_is_named():
    said = "sees 1 .*; leave out --gpu-bind=closest, or take single:1; else start at most 1 ranks"
    with pytest.raises(ConfigError, match=said):
        local_device({"LOCAL_RANK": "1", **SRUN, "SLURMD_TRES_BIND": "gpu:closest"}, gpus=1)


def test_ranks_of_torchrun_within_one_bound_task_do_not_share():
    task = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with pytest.raises(ConfigError, match="local rank 1 has no GPU of its own"):
        local_device({**task, **torchrun, "SLURM_GPUS_PER_TASK": "1"}, gpus=1)


@pytest.mark.parametrize(("more", "gpus"), [({}, 1), (SRUN, 1), ({"SLURM_GPUS_PER_TASK": "1"}, 1), ({}, 2)])
def test_ranks_do_not_share_a_device(more, gpus):
    with pytest.raises(ConfigError, match=f"local rank 2 has no GPU of its own: .* sees {gpus} .*at most {gpus}"):
        local_device({"LOCAL_RANK": "2", **more}, gpus=gpus)


def test_the_cpu_when_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # as on a machine with GPUs
    assert gpu_count({}) == 8
    assert gpu_count({"DS_ACCELERATOR": "cpu"}) == 0


def test_nothing_else_asks_whether_there_is_a_gpu():
    """One home for the question, or `DS_ACCELERATOR=cpu` holds for a part of the program only."""
    asks = ("cuda.is_available", "cuda.device_count")
    files = [
        path
        for folder in ("adatad_ds", "tools")
        for path in (REPOSITORY / folder).rglob("*.*")
        if path.suffix in (".py", ".sh")
    ]
    asking = [str(path.relative_to(REPOSITORY)) for path in files if any(ask in path.read_text() for ask in asks)]
    assert asking == ["adatad_ds/system/launch.py"]


@pytest.mark.slow
def test_collectives_give_up_after_the_watch_over_them():
    """Also in groups made later, and in DeepSpeed's own."""
    code = (
        "from adatad_ds.distributed.world import World; import torch.distributed as dist;"
        "world = World.join(); waits = lambda group: group._get_backend(world.device).options._timeout.total_seconds();"
        "print(waits(dist.group.WORLD)); world.allow(hang_timeout_sec=7200);"
        "print(waits(dist.group.WORLD), waits(world.groups(1).handle));"
        "from adatad_ds.distributed.engine import partitioner; from deepspeed.utils import groups;"
        "partitioner({'zero_optimization': {'stage': 3}}, world=world);"
        "print(waits(groups._get_data_parallel_group()), waits(groups._clone_world_group())); world.leave()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1860.0", *["7260.0"] * 4]


class Runtime:
    """CUDA's functions for page-locked memory, which need a GPU: what was asked of them."""

    def __init__(self, status: int) -> None:
        self.status, self.locked = status, {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if self.status == 0:
            self.locked[address] = size
        return self.status

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.locked[address]
        return 0


def test_pages_are_locked_as_long_as_the_buffer_lives():
    buffer, runtime = torch.zeros(1000), Runtime(0)
    assert lock_pages(buffer, runtime)
    view = buffer.view(10, 100)
    address = buffer.data_ptr()
    del buffer
    assert runtime.locked == {address: 4000}
    del view
    assert runtime.locked == {}


def test_pages_that_cannot_be_locked_are_said():
    runtime = Runtime(2)
    with pytest.warns(UserWarning, match=r"could not be page-locked \(CUDA error 2\)"):
        assert not lock_pages(torch.zeros(1000), runtime)


def test_one_warning_for_buffers_of_all_sizes():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for size in (10_000_000, 20_000_000, 10_000_000):
            lock_pages(torch.empty(size), Runtime(2))
    assert len(caught) == 1


def test_a_rank_ends_without_taking_the_interpreter_from_its_threads():
    script = """
import atexit, os
os.environ["WORLD_SIZE"] = "2"
from adatad_ds.distributed.process import end_process

class Group:  # like one that DeepSpeed's hooks keep: it must not be taken apart with the interpreter
    def __del__(self):
        os.abort()

group = Group()
atexit.register(print, "exit function")
print("all done")
end_process(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split("\n")) == (3, ["all done", "exit function", ""]), done.stderr
