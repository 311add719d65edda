"""`adatad-ds plan`: which layout it plans, and where it can be run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from adatad_ds.cli.commands import main

SMALL = ["--recipe", "quickstart", "--gpu", "H100-80"]


def planned(capsys, *options: str) -> str:
    assert main(["plan", *SMALL, *options]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_needs_no_working_directory(tmp_path, monkeypatch, capsys):
    """The ds_config that it names is there, too."""
    at_home = planned(capsys)
    assert at_home.startswith("--deepspeed_config ds_configs/zero2.json: ")
    monkeypatch.chdir(tmp_path)
    elsewhere = planned(capsys)
    assert elsewhere.splitlines()[1:] == at_home.splitlines()[1:]
    assert Path(shlex.split(elsewhere)[1].removesuffix(":")).is_file()
