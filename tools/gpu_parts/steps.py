"""Whole steps beside the plan, what a step spends its time on, and plain PyTorch's ways."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.execution.retention import Retention
from adatad_ds.planning.activations import Activations
from adatad_ds.planning.memory import make_plan, step_flop
from adatad_ds.recipes.catalog import find_recipe
from tools.bench.step import Bench, cpu_allocator_peak, matmul_flop_per_sec
from tools.gpu_parts.inputs import CLASSES, default_chunk
from tools.gpu_parts.machine import MATMUL, peak_dtype
from tools.gpu_parts.record import Recorder
from tools.gpu_parts.whole_step import WholeStep, gpu_activity, is_operation

HELD = ("frozen weights", "trainable weights", "masters, moments, average")
MAX_TRACE_BYTES = 10e6
GIANT, BASE, SMALL = "thumos14_videomaev2_g", "thumos14_videomae_b", "thumos14_videomae_s"


@dataclass(frozen=True)
class Setting:
    """A recipe at a shape, under a ds_config, and the variants of its execution."""

    recipe: str
    frames: int
    pixels: int
    ds_config: str
    chosen: tuple[tuple[int, bool], ...] = ()
    budgets: bool = False  # and backbone.activation_memory_gb
    micro_batch: int = 1  # windows at once, of the step's two

    @property
    def variants(self) -> tuple[tuple[int, bool], ...]:
        """(clips a chunk, stored tensors in host memory): those chosen, else the default."""
        return self.chosen or ((default_chunk(find_recipe(self.recipe).config.backbone.name, self.pixels), False),)

    @property
    def chunk(self) -> int:
        """Clips a chunk of the first variant."""
        return self.variants[0][0]

    def __str__(self) -> str:
        """As in the report."""
        name = self.recipe.removeprefix("thumos14_")
        together = f", {self.micro_batch} windows at once" if self.micro_batch > 1 else ""
        return f"{name}, {self.frames} frames, {self.pixels} px, {self.ds_config}{together}"


BUDGETS = (0.25, 0.5, 1.0)  # between full recomputation and none, or what the device has
# A step's seconds, at most, over those with all recomputed on the device. The backbone alone took 0.71 on a CPU.
NOTHING_RECOMPUTED, ON_THE_HOST = 0.8, 1.15
# Ours, with all recomputed, over two ways of plain PyTorch, at most. S on a CPU: 0.97 and 0.75; 1.43 and 0.15.
AT_MOST = {"blocks": {"seconds": 1.05, "peak": 1.0}, "plain": {"seconds": 1.5, "peak": 0.5}}
SETTINGS = [  # most valuable first: what does not fit the time limit is missing from the report's end
    Setting(GIANT, 1536, 224, "zero2", ((8, False), (8, True), (4, False))),
    Setting(SMALL, 768, 160, "zero2", ((64, False), (64, True), (16, False), (8, False)), budgets=True),
    Setting(SMALL, 768, 160, "zero2", micro_batch=2),  # as a run without `train.micro_batch` has it
    Setting(GIANT, 768, 160, "zero2", ((8, False), (8, True), (16, False), (2, False)), budgets=True),
    Setting(GIANT, 768, 160, "zero3_offload"),
    Setting(GIANT, 768, 160, "zero3"),
    Setting(SMALL, 768, 160, "zero3"),
    Setting(SMALL, 768, 160, "zero3_offload"),
    Setting(BASE, 768, 160, "zero2", ((16, False), (16, True), (48, False), (8, False))),
    Setting(BASE, 768, 160, "zero3"),
    Setting(BASE, 768, 160, "zero3_offload"),
    Setting(SMALL, 1536, 224, "zero2"),
    Setting(BASE, 1536, 224, "zero2"),
    Setting(GIANT, 1536, 224, "zero3"),
    Setting(GIANT, 1536, 224, "zero3_offload"),
]
MINIATURE = [
    Setting("quickstart", 64, 32, "zero2", ((2, False),), budgets=True),
    Setting("quickstart", 32, 32, "zero3_offload"),
]


def run(record: Recorder, device: torch.device) -> None:
    """Memory, time and the device's work of whole steps."""
    roof = (record.fact(MATMUL) or matmul_flop_per_sec(peak_dtype(device), device) / 1e12) * 1e12
    with one_rank() as world:
        for setting in MINIATURE if record.miniature else SETTINGS:
            try:
                _measure(record, setting, world=world, roof=roof)
            except (RuntimeError, ConfigError) as error:  # out of memory is one of the first
                record.failed(str(setting), error)
            free(device)


def _measure(record: Recorder, setting: Setting, *, world: World, roof: float) -> None:
    ds_config = read_ds_config(Path("ds_configs") / f"{setting.ds_config}.json")
    config = config_of(setting)
    step = WholeStep(config, ds_config=ds_config, world=world)
    try:
        for chunk, host in setting.variants:
            if host and world.device.type != "cuda":
                continue
            step.model.backbone.clips_per_chunk = chunk
            step.storage.policy = StoragePolicy(offload=host)
            what = f"{setting}, chunks of {chunk}" + (", stored on the host" if host else "")
            try:
                _measure_variant(record, what, step, world.device, roof=roof)
                _compare_with_plan(record, what, config, ds_config, chunk=chunk, host=host)
                if host:
                    _compare_with_recomputation(record, setting, what, chunk=chunk, high=ON_THE_HOST)
            except (RuntimeError, ConfigError) as error:
                record.failed(what, error)
        if setting.budgets:
            step.model.backbone.clips_per_chunk = setting.chunk
            step.storage.policy = StoragePolicy()
            _measure_budgets(record, setting, step, ds_config, world.device, roof=roof)
    finally:
        step.close()


def _measure_budgets(
    record: Recorder, setting: Setting, step: WholeStep, ds_config: dict[str, Any], device: torch.device, *, roof: float
) -> None:
    config, backbone = config_of(setting), step.model.backbone
    assert isinstance(backbone, AdaptedBackbone)
    on_gpu = device.type == "cuda"
    memory_gb = torch.cuda.get_device_properties(device).total_memory / 1e9 if on_gpu else None

    def placed(**backbone: Any) -> Activations:
        changed = replace(config, backbone=replace(config.backbone, **backbone))
        return make_plan(
            changed, ds_config=ds_config, ranks=1, num_classes=CLASSES, memory_gb=memory_gb, cuda=on_gpu
        ).activations

    least = placed().peak_bytes
    most = placed(activation_memory_gb="auto") if on_gpu else placed(activation_checkpointing=False)
    for share in BUDGETS[1:2] if record.miniature else BUDGETS:
        gb = (least + share * (most.peak_bytes - least)) / 1e9
        what = f"{setting}, a budget of {100 * share:.0f} % from full recomputation to none"
        try:
            here = placed(activation_memory_gb=gb)
            backbone.retention = here.retention
            backbone.clips_per_chunk = here.clips_per_chunk
            record.amount(f"{what}: forward passes recomputed", here.recomputed, "")
            _measure_variant(record, what, step, device, roof=roof)
            _compare_with_plan(record, what, config, ds_config, chunk=setting.chunk, host=False, budget_gb=gb)
            high = None if here.recomputed else NOTHING_RECOMPUTED
            _compare_with_recomputation(record, setting, what, chunk=setting.chunk, high=high)
        except (RuntimeError, ConfigError) as error:
            record.failed(what, error)
    backbone.retention = Retention()


def _measure_variant(record: Recorder, what: str, step: WholeStep, device: torch.device, *, roof: float) -> None:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    step()  # memory, kernels and copies are set up
    synchronize()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    while len(times) < (3 if sum(times) < 2 and not record.miniature else 1):
        began = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else cpu_allocator_peak(step)
    seconds = sorted(times)[len(times) // 2]
    config = step.config
    record.amount(f"{what}: seconds a step of {config.train.global_batch} windows", seconds, "s")
    flop = config.train.global_batch * step_flop(config)
    record.amount(f"{what}: MFU", 100 * flop / seconds / roof, "% of the matmul peak")
    if device.type == "cuda":
        record.amount(f"{what}: peak above what is held", (peak - before) / 1e9, "GB")
    record.amount(f"{what}: peak", peak / 1e9, "GB")
    if device.type == "cuda" and what.endswith(f"chunks of {step.config.backbone.clips_per_chunk}"):
        recorder, wall_sec = _profiled(step, device)  # reading a trace takes longer than the step: once a setting
        activity = gpu_activity(recorder.events(), wall_sec)
        giant = "_g" in what.split(",")[0]
        record.amount(f"{what}: GPU busy", activity["busy_percent"], "%", low=90 if giant else None)
        record.amount(f"{what}: host synchronisations", activity["synchronisations"], "a step")


def _compare_with_recomputation(
    record: Recorder, setting: Setting, what: str, *, chunk: int, high: float | None
) -> None:
    seconds = f"seconds a step of {config_of(setting).train.global_batch} windows"
    mine, full = record.fact(f"{what}: {seconds}"), record.fact(f"{setting}, chunks of {chunk}: {seconds}")
    if mine is not None and full is not None:
        record.amount(f"{what}: seconds / all recomputed", mine / full, "", high=high, more_is_better=False)


def _compare_with_plan(
    record: Recorder,
    what: str,
    config: Config,
    ds_config: dict[str, Any],
    *,
    chunk: int,
    host: bool,
    budget_gb: float | None = None,
) -> None:
    measured = record.fact(f"{what}: peak")
    if measured is None:
        return
    ds_config = copy.deepcopy(ds_config)
    ds_config.setdefault("activation_checkpointing", {})["cpu_checkpointing"] = host
    planned_config = replace(
        config, backbone=replace(config.backbone, clips_per_chunk=chunk, activation_memory_gb=budget_gb)
    )
    plan = make_plan(planned_config, ds_config=ds_config, ranks=1, num_classes=CLASSES)
    planned = plan.device_bytes
    if record.miniature:  # a CPU's allocator is asked for what comes and goes within a step
        planned -= sum(line.device for line in plan.lines if line.name in (*HELD, "gradient bucket"))
    ratio = measured / (planned / 1e9)
    record.amount(f"{what}: peak / planned", ratio, "", low=0.85, high=1.15, more_is_better=False)


def config_of(setting: Setting) -> Config:
    """The recipe at the setting's shape, every tensor recomputed."""
    config = find_recipe(setting.recipe).config
    size = setting.frames // config.data.frames_per_feature
    data = replace(config.data, window_size=size, resolution=setting.pixels)
    backbone = replace(config.backbone, activation_checkpointing=True, clips_per_chunk=setting.chunk)
    train = replace(config.train, micro_batch=setting.micro_batch, global_batch=2)
    return replace(config, data=data, backbone=backbone, train=train)


def run_profile(record: Recorder, device: torch.device) -> None:
    """Top kernels, gaps and launches of one step; the trace, where it is small."""
    settings = (
        MINIATURE[1:] if record.miniature else [Setting(SMALL, 768, 160, "zero3"), Setting(GIANT, 768, 160, "zero2")]
    )
    with one_rank() as world:
        for setting in settings:
            ds_config = read_ds_config(Path("ds_configs") / f"{setting.ds_config}.json")
            step = WholeStep(config_of(setting), ds_config=ds_config, world=world)
            step()
            recorder, seconds = _profiled(step, device)
            record.row(f"{setting}: most time in", most_time(recorder, device))
            if device.type == "cuda":
                for name, value in gpu_activity(recorder.events(), seconds).items():
                    record.amount(f"{setting}: {name.replace('_', ' ')}", value, "")
            _keep_trace(recorder, record, setting)
            step.close()
            del recorder, step
            free(device)


def most_time(recorder: profile, device: torch.device) -> str:
    """The 20 kernels, on a CPU operators, that take most of the time, and their shares."""
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU  # a kernel's time is its operator's, too
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = recorder.key_averages()
    print(averages.table(sort_by=key, row_limit=20, max_name_column_width=60), flush=True)
    times = {each.key: getattr(each, key) for each in averages if is_operation(each, on=kind)}
    top = sorted(times, key=lambda name: -times[name])[:20]
    return "; ".join(f"{name[:48]} {100 * times[name] / sum(times.values()):.0f} %" for name in top)


def _keep_trace(recorder: profile, record: Recorder, setting: Setting) -> None:
    path = record.folder / f"trace_{setting.recipe}.json.gz"
    recorder.export_chrome_trace(str(path))
    size = path.stat().st_size
    if size > MAX_TRACE_BYTES:
        path.unlink()
    record.row(
        f"{setting}: trace", f"{size / 1e6:.1f} MB, " + ("too large to keep" if size > MAX_TRACE_BYTES else path.name)
    )


def run_reference(record: Recorder, device: torch.device) -> None:
    """The backbone alone: explicit recomputation block by block, plain autograd, and ours, on the same card."""
    recipes = ("quickstart",) if record.miniature else (SMALL, BASE)
    with one_rank() as world:
        for recipe in recipes:
            config = config_of(MINIATURE[0]) if record.miniature else find_recipe(recipe).config
            backbone = replace(config.backbone, weights=None, activation_checkpointing=True)
            train = replace(config.train, micro_batch=1)
            bench = Bench(
                replace(config, backbone=backbone, train=train), world=world, steps=1 if record.miniature else 3
            )
            rows = {}
            for way, name in (
                ("blocks", "recomputed block by block"),
                ("plain", "plain autograd"),
                ("ours", "ours"),
                ("host", "ours, stored on the host"),
            ):
                if way == "host" and device.type != "cuda":
                    continue
                try:
                    rows[way] = row = bench.measure(way)
                except RuntimeError as error:
                    record.failed(f"{recipe}, {name}", error)
                    continue
                record.amount(f"{recipe}, {name}: seconds", float(row["median_sec"]), "s")
                record.amount(f"{recipe}, {name}: peak", float(row["peak_bytes"]) / 1e9, "GB")
                free(device)
            for way in ("blocks", "plain"):
                for key, name in (("median_sec", "seconds"), ("peak_bytes", "peak")):
                    if way in rows and "ours" in rows:
                        ratio = float(rows["ours"][key]) / float(rows[way][key])
                        high = AT_MOST[way][name]
                        record.amount(f"{recipe}: {name}, ours / {way}", ratio, "", high=high, more_is_better=False)


def _profiled(step: Callable[[], object], device: torch.device) -> tuple[profile, float]:
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorder:
        began = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return recorder, seconds


@contextmanager
def one_rank() -> Iterator[World]:
    """A world of this process alone."""
    world = World.join()
    try:
        yield world
    finally:
        world.leave()


def free(device: torch.device) -> None:
    """Give back the memory of what was deleted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
