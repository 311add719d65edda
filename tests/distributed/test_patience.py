"""Ranks that evaluate wait for one that still reads: as long as `World.join` says, whatever DeepSpeed's groups do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.launch import finish, launched

# Two ranks evaluate; weights are gathered for each forward pass. DeepSpeed's clone of the world's group, and any other
# that is made without a time, waits for 4 s: gathering must not be in one of them.
SCRIPT = """
import datetime, sys, time
sys.path.insert(0, ".")
import torch
from torch.distributed import distributed_c10d
distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=4)

from pathlib import Path
from adatad_ds.config.loading import override
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine
from adatad_ds.models.factory import build_detector
from adatad_ds.distributed.world import World
from adatad_ds.training.optim import parameter_groups
from tools.gpu_parts.inputs import random_batch
from tools.gpu_parts.steps import Setting, config_of

world = World.join()
config = override(config_of(Setting("quickstart", 64, 32, "zero3")), ["backbone.weights=null"])
ds_config = resolve_ds_config(read_ds_config(Path("ds_configs/zero3.json")), config=config, ranks=2, cuda=False)
for name in ("max_live_parameters", "max_reuse_distance", "param_persistence_threshold"):
    ds_config["zero_optimization"][f"stage3_{name}"] = 0
model = build_detector(config, num_classes=3)
engine = Engine(
    model=model,
    groups=parameter_groups(model, config.train),
    average=AverageDecay(config.train.ema_decay),
    train=config.train,
    ds_config=ds_config,
    world=world,
)
engine.train(False)
batch = random_batch(config, windows=1)
with torch.no_grad():
    engine(batch.frames, batch.valid)
    if world.rank == 1:
        time.sleep(12)  # reads a slow video
    engine(batch.frames, batch.valid)
engine.close()
world.leave()
"""


@pytest.mark.slow
def test_ranks_wait_for_one_that_reads(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    finish(launched("pool", 2, [str(script)]))
