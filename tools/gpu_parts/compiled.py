"""Training with compiled regions (`train.compile`) beside the same steps without."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from adatad_ds.config.schema import Precision
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.compiling import compile_regions
from tools.gpu_parts.record import Recorder
from tools.gpu_parts.steps import SMALL, Setting, config_of, free, one_rank
from tools.gpu_parts.whole_step import WholeStep

FIRST_STEPS, STEPS = 2, 4  # those that compile, and those after them
MOST = {"fp32": 1e-4, "bf16": 2e-2}  # between losses, relative; later steps carry on earlier ones' differences
SETTINGS: list[tuple[Setting, Precision]] = [
    (Setting("quickstart", 64, 64, "zero2"), "fp32"),
    (Setting(SMALL, 768, 160, "zero2"), "bf16"),
]
MINIATURE: list[tuple[Setting, Precision]] = [(Setting("quickstart", 32, 32, "zero2", ((2, False),)), "fp32")]


def run(record: Recorder, device: torch.device) -> None:
    """Losses, compilations and the time of a step."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with one_rank() as world:
        for setting, precision in MINIATURE if record.miniature else SETTINGS:
            what = f"{setting}, {precision}, compiled"
            try:
                _compare(record, setting, precision, what=what, world=world)
            except (RuntimeError, ConfigError) as error:
                record.failed(what, error)
            free(device)


def _compare(record: Recorder, setting: Setting, precision: Precision, *, what: str, world: World) -> None:
    from torch._dynamo.utils import counters  # seconds

    config, graphs = config_of(setting), counters["stats"]
    config = replace(config, train=replace(config.train, precision=precision))
    ds_config = read_ds_config(Path("ds_configs") / f"{setting.ds_config}.json")
    plain, compiled = ways = [WholeStep(config, ds_config=ds_config, world=world) for _ in range(2)]
    # A CPU's compiler takes a minute for the same graphs; tests/unit/models/test_compile.py waits for it.
    compile_regions(compiled.model, device=world.device, backend="aot_eager" if record.miniature else "inductor")
    before = first = graphs["unique_graphs"]
    losses: dict[WholeStep, list[float]] = {way: [] for way in ways}
    seconds: dict[WholeStep, list[float]] = {way: [] for way in ways}
    for number in range(FIRST_STEPS + STEPS):
        for way in ways:
            batches = [replace(batch, seeds=batch.seeds + 1000 * number) for batch in way.batches]
            began = time.perf_counter()
            losses[way].append(way(batches).item())  # waits for the device
            seconds[way].append(time.perf_counter() - began)
        if number == FIRST_STEPS - 1:
            first = graphs["unique_graphs"]
    record.amount(f"{what}: graphs", first - before, "")
    record.amount(f"{what}: first {FIRST_STEPS} steps", sum(seconds[compiled][:FIRST_STEPS]), "s")
    record.difference(f"{what}: graphs of the {STEPS} steps after them", graphs["unique_graphs"] - first, most=0)
    ours, theirs = (torch.tensor(losses[way]) for way in (compiled, plain))
    apart = float((ours / theirs - 1).abs().max())  # NaN stays
    record.difference(f"{what}: largest relative difference of {len(ours)} losses", apart, most=MOST[precision])
    ratio = median(seconds[compiled][FIRST_STEPS:]) / median(seconds[plain][FIRST_STEPS:])
    record.amount(f"{what}: seconds of a step / not compiled", ratio, "", high=1.0, more_is_better=False)
    for way in ways:
        way.close()
