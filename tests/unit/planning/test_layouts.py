"""`adatad-ds plan`: which layout it plans, and where it can be run."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.config.loading import override
from adatad_ds.config.schema import BackboneConfig, Config
from adatad_ds.distributed.ds_config import temporal_choices
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
def test_where_the_batch_cannot_be_spread_windows_are_shared(capsys):
    """2 windows over 8 GPUs, as the guide has it; a wish of the user's is an error that names the way."""
    text = planned(capsys, "--gpus", "8", "--set", "train.global_batch=2", "--set", "data.window_size=256")
    _, moved, *_ = lines = text.splitlines()
    assert moved.startswith("--set parallel.temporal=4: with parallel.temporal=1 a global batch of 2 cannot be spread")
    assert f"suggested for 8: {lines[3]}" in lines
    assert "--gpus 8 --set parallel.temporal=4 " in lines[3]
    options = ["--gpus", "8", "--temporal", "1", "--set", "train.global_batch=2", "--set", "data.window_size=256"]
    assert main(["plan", *SMALL, *options]) == 2
    said = "over 8 ranks; use --set parallel.temporal=4, which leaves the training unchanged; or 1, 2 ranks; or --set"
    assert said in capsys.readouterr().err


def test_by_how_many_ranks_a_window_can_be_shared():
    config = override(Config(), ["data.window_size=256", "train.global_batch=2"])  # 16 clips
    for ranks, wanted in ((1, [1]), (2, [1, 2]), (8, [4, 8]), (12, [6, 12]), (16, [8, 16]), (32, [16]), (64, [])):
        assert temporal_choices(config, ranks) == wanted
        assert temporal_choices(override(config, ["train.micro_batch=2"]), ranks) == [n for n in wanted if n == ranks]
    features = override(config, ["backbone.name=features", "backbone.tuning=frozen", "data.features=somewhere"])
    assert temporal_choices(features, 8) == []


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_a_few_blocks_say_what_all_take(tuning, checkpointing):
    backbone = BackboneConfig(
        name="videomae_s", tuning=tuning, activation_checkpointing=checkpointing, clips_per_chunk=2
    )
    for clips in (1, 4, 7):
        assert whole_bytes(backbone, "bf16", 64, 1, clips) == bytes_of_blocks(12, backbone, "bf16", 64, 1, clips)
