"""The scripts that submit, with a stand-in for python: where they find the clone, what they hand on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY


@pytest.fixture
def clone(tmp_path):
    """A clone's scripts, whose python prints its folder, arguments and environment."""
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "clone/slurm")
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
    assert "\nCUDA_VISIBLE_DEVICES=" not in done.stdout
    assert "\nHF_HOME=/data/hf\n" in done.stdout


def test_what_sbatch_keeps_back_is_said(clone):
    assert "warning" not in run("slurm/train.sh", folder=clone, SLURM_EXPORT_ENV="ALL").stderr
    done = run("slurm/train.sh", folder=clone, SLURM_EXPORT_ENV="NONE")
    assert done.returncode == 0
    assert "warning: sbatch kept this shell's environment back (--export=NONE, perhaps by SBATCH_EXPORT)" in done.stderr


SCRIPTS = ("train", "scale_frames", "scale_models", "again")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_clone_is_that_of_the_script_or_of_sbatch(script, clone, tmp_path):
    """In an allocation that was made elsewhere; from the copy that sbatch runs; not where this is in no clone."""
    elsewhere = {"folder": tmp_path, "SLURM_SUBMIT_DIR": str(tmp_path)}
    there = run(f"clone/slurm/{script}.sh", "--dry-run", **elsewhere)
    assert re.match(rf"{clone}: -m adatad_ds slurm .* --dry-run\n", there.stdout), there.stderr
    copy = tmp_path / "slurm_script"
    shutil.copy(clone / f"slurm/{script}.sh", copy)
    submitted = run(copy, "--dry-run", folder=clone, SLURM_SUBMIT_DIR=str(clone))
    assert submitted.stdout.splitlines()[0] == there.stdout.splitlines()[0]
    lost = run(copy, **elsewhere)
    assert (lost.returncode, lost.stderr) == (2, f"error: submit in the clone's folder (here: {tmp_path})\n")
