"""One global batch, however it is split: the same losses. Real launches, real decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.launch import finish, losses, train_command

STEPS = 4  # two epochs of two global batches
LAYOUTS = {
    "1 rank, ZeRO-3": {"ranks": 1, "ds_config": "zero3"},
    "1 rank, ZeRO-2, accumulating": {"ranks": 1, "ds_config": "zero2", "train__micro_batch": 1},
    "2 ranks, ZeRO-3": {"ranks": 2, "ds_config": "zero3"},
    "2 ranks, ZeRO-2": {"ranks": 2, "ds_config": "zero2"},
    "2 ranks, ZeRO-1": {"ranks": 2, "ds_config": "zero1"},
    "2 ranks, ZeRO-3 + offload, accumulating": {  # as README launches it
        "ranks": 2,
        "ds_config": "zero3_offload",
        "launcher": "deepspeed",
        "train__micro_batch": 1,
    },
    "2 ranks, ZeRO-3 + offload, recomputing in chunks": {
        "ranks": 2,
        "ds_config": "zero3_offload",
        "backbone__activation_checkpointing": True,
        "backbone__clips_per_chunk": 1,
    },
}
LEARNING = {
    "train__lr_head": 1e-3,
    "train__lr_adapter": 1e-3,
    "train__stop_epoch": 2,
    "train__schedule_epochs": 2,
    "train__eval_from_epoch": 2,
}


@pytest.fixture(scope="module")
def reference(small_videos, tmp_path_factory):
    run = tmp_path_factory.mktemp("reference") / "run"
    finish(train_command(data=small_videos, run=run, ranks=1, ds_config="zero1", **LEARNING))
    assert len(losses(run)) == STEPS
    return losses(run)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_losses(layout, reference, small_videos, tmp_path):
    run = tmp_path / "run"
    finish(train_command(data=small_videos, run=run, **LAYOUTS[layout], **LEARNING))
    assert losses(run) == pytest.approx(reference, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_that_do_not_stay(checkpointing, reference, small_videos, tmp_path):
    """As a giant's: every weight is gathered when needed, some are in flight when averaged weights are written."""
    ds_config = json.loads(Path("ds_configs/zero3_offload.json").read_text())
    ds_config["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 200_000,
        "stage3_max_live_parameters": 500_000,
        "stage3_max_reuse_distance": 500_000,
    }
    ds_config["activation_checkpointing"]["profile"] = checkpointing
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(ds_config))
    run = tmp_path / "run"
    layout = {
        "ranks": 2,
        "ds_config": str(path),
        "train__compact_checkpoints": False,
    }
    execution = {"backbone__activation_checkpointing": checkpointing, "backbone__clips_per_chunk": 1}
    learning = LEARNING | {"train__eval_from_epoch": 1}
    finish(train_command(data=small_videos, run=run, **layout, **execution, **learning))
    assert losses(run) == pytest.approx(reference, rel=1e-5)
    assert len(list((run / "evaluations").iterdir())) == 2
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = {name for line in lines for name in line if name.startswith("segment_sec/")}
    assert ({"segment_sec/block_5/forward", "segment_sec/block_5/backward"} <= timed) == checkpointing
