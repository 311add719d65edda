"""A run that waits for its data says so once, with how many workers would do; where loading's time goes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.loader import check_shared_memory
from adatad_ds.data.video_dataset import LoadingSeconds
from adatad_ds.errors import DataError
from adatad_ds.system.launch import local_ranks
from adatad_ds.training.guards import DataWait


def said(*, workers: int, wait_sec: float, steps: int = 120, spare_cores: bool = True) -> list[str]:
    lines: list[str] = []
    wait = DataWait(workers=workers, spare_cores=spare_cores, report=lines.append)
    for step in range(steps):
        wait.add(wait_sec=30.0 if step < 2 else wait_sec, step_sec=40.0 if step < 2 else 1.0)
    return lines


def test_said_once_after_fifty_steps():
    (line,) = said(workers=2, wait_sec=0.75)
    assert line.startswith("waiting for data 75% of the time: data.workers=8 a rank (now 2)")
    assert not said(workers=2, wait_sec=0.75, steps=49)
    assert not said(workers=2, wait_sec=0.05), "nor for the time in which workers start"
    assert "data.workers=3 a rank (now 0)" in said(workers=0, wait_sec=0.75)[0]
    assert not said(workers=0, wait_sec=0.75, spare_cores=False), "workers would take what the ranks compute on"
    assert said(workers=1, wait_sec=0.75, spare_cores=False), "prepared videos would do"


def test_ranks_of_a_node_as_launchers_tell_them():
    assert local_ranks({"WORLD_SIZE": "8", "LOCAL_SIZE": "4"}) == 4  # deepspeed
    assert local_ranks({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}) == 2  # torchrun
    assert local_ranks({"WORLD_SIZE": "8"}) == 8
    assert local_ranks({}) == 1


def test_seconds_are_summed():
    parts = [LoadingSeconds(decode=1.0, augment=2.0), LoadingSeconds(decode=3.0, copy=0.5)]
    assert LoadingSeconds.total(parts, copy=1.0) == LoadingSeconds(decode=4.0, augment=2.0, copy=1.5)


def test_shared_memory_that_is_too_small_says_what_fits(tmp_path: Path):
    config = DataConfig(workers=4, prefetch=2)
    check_shared_memory(batch_bytes=10**6, batches=99, config=config, folder=tmp_path)
    check_shared_memory(batch_bytes=10**18, batches=99, config=replace(config, workers=0), folder=tmp_path)
    check_shared_memory(batch_bytes=10**18, batches=99, config=config, folder=tmp_path / "absent")
    free = shutil.disk_usage(tmp_path).free
    for share, fits in ((0.15, "data.workers=4 --set data.prefetch=1"), (0.4, "data.workers=2 --set data.prefetch=1")):
        with pytest.raises(DataError, match="MB of shared memory") as caught:
            check_shared_memory(batch_bytes=int(share * free), batches=99, config=config, folder=tmp_path)
        assert f"Use --set {fits}, or" in str(caught.value)
    check_shared_memory(batch_bytes=int(0.4 * free), batches=2, config=config, folder=tmp_path)
    with pytest.raises(DataError, match=r"Use --set data\.workers=0, or"):
        check_shared_memory(batch_bytes=2 * free, batches=1, config=config, folder=tmp_path)
