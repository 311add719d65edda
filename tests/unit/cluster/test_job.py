"""slurm/job.sh by itself, between stand-ins of Slurm's commands: when it gives up, and what the ranks get."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY

PROGRAMS = {  # the ranks end with the exit code in a file; a requeue ends the job
    "scontrol": '[ "$1" != requeue ] || kill -KILL $PPID; [ "$2" != hostnames ] || echo node1',
    "srun": 'echo "$*" >>"$FOLDER/srun"; env >"$FOLDER/environment"; exit "$(cat "$FOLDER/code")"',
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "0",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_CPUS_PER_TASK": "1",
}


class Job:
    """A cell's job."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "grid/cell"
        for made in (folder / "grid/code/slurm", folder / "grid/cells", folder / "bin"):
            made.mkdir(parents=True)
        (folder / "grid/code/slurm/site.env").write_text("activate() { :; }\n")
        (folder / "grid/cells/0.args").write_text("--recipe\nquickstart\n")
        (folder / "grid/cells/0.run").write_text(f"{self.run}\n")
        for name, script in PROGRAMS.items():
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / "bin" / name).chmod(0o755)

    def start(self, restarts: int = 0, *, code: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it, as Slurm does for the first time or again; `code`: of every srun."""
        (self.folder / "code").write_text(f"{code}\n")
        variables = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FOLDER": str(self.folder)} | SLURM
        variables |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        command = [
            "bash",
            str(REPOSITORY / "slurm/job.sh"),
            str(self.folder / "grid"),
            "apptainer exec image.sif",
            "--exact",
        ]
        return subprocess.run(command, env=variables | environment, capture_output=True, text=True, check=False)

    def environment(self) -> dict[str, str]:
        """Of the ranks."""
        lines = (self.folder / "environment").read_text().splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def save(self, step: int) -> None:
        """As if the ranks had written a checkpoint."""
        (self.run / f"checkpoints/step_{step:08d}").mkdir(parents=True)


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_a_job_that_never_saves_is_not_queued_for_ever(job):
    for restarts in range(5):
        assert job.start(restarts).returncode == -signal.SIGKILL  # queued again
    job.save(10)
    for restarts in range(5, 10):
        assert job.start(restarts).returncode == -signal.SIGKILL
    done = job.start(10)
    assert done.returncode == 1
    assert done.stderr == (
        "error: a node is gone, and the job was queued again 5 times without a new checkpoint; "
        "slurm/again.sh submits it again\n"
    )
    assert (job.run / "failed").exists()
    assert job.start().returncode == -signal.SIGKILL  # by again.sh: counted anew
    assert not (job.run / "failed").exists()


def test_ranks_get_what_the_job_set_whatever_sbatch_was_told(job):
    job.start(code=0, SLURM_EXPORT_ENV="NONE")
    assert job.environment()["SLURM_EXPORT_ENV"] == "ALL"


def test_ranks_train_on_the_gpus_that_the_job_has(job):
    """Whatever the shell was told that submitted it, on a login node without a GPU."""
    job.start(code=0, SLURM_GPUS_ON_NODE="2", DS_ACCELERATOR="cpu")
    assert "DS_ACCELERATOR" not in job.environment()
    job.start(code=0)
    assert job.environment()["DS_ACCELERATOR"] == "cpu"


def test_container_and_options_are_those_of_the_submission(job):
    job.start(code=0, CONTAINER="docker", SRUN_OPTIONS="--overlap")
    (called,) = (job.folder / "srun").read_text().splitlines()
    assert called == (
        "--kill-on-bad-exit=1 --cpus-per-task=1 --exact "
        f"apptainer exec image.sif python -u {job.folder}/grid/code/adatad_ds/train.py --recipe quickstart"
    )
