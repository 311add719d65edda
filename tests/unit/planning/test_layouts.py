"""`adatad-ds plan`: which layout it plans, and where it can be run."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.config.schema import BackboneConfig
from adatad_ds.planning.fake_run import bytes_of_blocks, whole_bytes
from adatad_ds.planning.layouts import most_within

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


@pytest.mark.parametrize("start", [0.0, 3.0])
@pytest.mark.parametrize(("each", "more"), [(1.0, 0.0), (0.01, 0.0), (7.0, 0.002)])
def test_the_longest_window_is_found_in_few_tries(start, each, more):
    """Bytes by the number of clips: a line, steeper below a chunk's 8, or bent upwards."""
    for room in (0.5, 20.0, 333.3, 1e4):
        tried = []

        def taken(clips: int, tried: list[int] = tried) -> float:
            tried.append(clips)
            return start + each * clips + min(clips, 8) + more * clips**2

        found = most_within(room, taken, most=4095)
        assert found == max((clips for clips in range(1, 4096) if taken(clips, []) <= room), default=0)
        assert len(tried) == len(set(tried)) <= 9


def test_windows_that_are_too_short_or_cannot_be():
    assert most_within(1.0, lambda clips: 0.0 if clips < 64 else clips / 1000, most=4095) == 1000
    assert most_within(1.0, lambda clips: 0.5 if clips <= 77 else math.inf, most=4095) == 77
    assert most_within(1.0, lambda clips: 0.5, most=4095) == 4095
    assert most_within(1.0, lambda clips: 2.0, most=4095) == 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_a_few_blocks_say_what_all_take(tuning, checkpointing):
    backbone = BackboneConfig(
        name="videomae_s", tuning=tuning, activation_checkpointing=checkpointing, clips_per_chunk=2
    )
    for clips in (1, 4, 7):
        assert whole_bytes(backbone, "bf16", 64, 1, clips) == bytes_of_blocks(12, backbone, "bf16", 64, 1, clips)
