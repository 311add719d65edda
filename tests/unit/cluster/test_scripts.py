"""The scripts that submit, with a stand-in for python: where they find the clone, what they hand on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY


@pytest.fixture
def clone(tmp_path):
    """A clone's scripts, whose python prints its folder, arguments and environment."""
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "clone/slurm")
    (tmp_path / "clone/adatad_ds").mkdir()
    (tmp_path / "clone/adatad_ds/train.py").touch()
    with (tmp_path / "clone/slurm/site.env").open("a", encoding="utf-8") as file:
        file.write(f'activate() {{ PATH="{tmp_path}:$PATH"; }}\n')
    (tmp_path / "python").write_text('#!/bin/sh\necho "$PWD: $*"\nenv\n')
    (tmp_path / "python").chmod(0o755)
    return tmp_path / "clone"


def run(script: Path | str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start one of the scripts in a folder."""
    variables = {"PATH": os.environ["PATH"]} | environment
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_gpus_of_a_login_node_are_no_jobs(clone):
    done = run("slurm/train.sh", folder=clone, CUDA_VISIBLE_DEVICES="3", HF_HOME="/data/hf")
    assert done.returncode == 0, done.stderr
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout
    assert "HF_HOME=/data/hf" in done.stdout


def test_what_sbatch_keeps_back_is_said(clone):
    assert "warning" not in run("slurm/train.sh", folder=clone, SLURM_EXPORT_ENV="ALL").stderr
    done = run("slurm/train.sh", folder=clone, SLURM_EXPORT_ENV="NONE")
    assert done.returncode == 0
    assert "warning: sbatch kept this shell's environment back (--export=NONE, perhaps by SBATCH_EXPORT)" in done.stderr
