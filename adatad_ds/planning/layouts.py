"""Layouts of a run over ranks: what fits a GPU, what would, and both in words.

Nothing is allocated. Memory is that of PyTorch's allocator; what else a process takes on a GPU (context, libraries,
fragments) is held back when it is asked what fits: 1 GB and 5 %. The time is a floor: all executed FLOPs at the GPU's
dense bf16 peak.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import read_ds_config, temporal_choices
from adatad_ds.errors import ConfigError
from adatad_ds.planning.activations import BudgetError, halved
from adatad_ds.planning.gpus import GPU, GPUS, gpu_here
from adatad_ds.planning.memory import Plan, backbone_cost, make_plan, usable_bytes
from adatad_ds.planning.reading import reading_plan
from adatad_ds.system.clone import DS_CONFIGS

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GRID_COUNTS = (1, 8, 64, 512, 1024)
# ZeRO-3 shares out frozen weights, too, and gathers them again for every span: where they fit, ZeRO-2 is faster.
POLICIES = (str(DS_CONFIGS / "zero2.json"), str(DS_CONFIGS / "zero3.json"))
GRID_FRAMES = (1536, 3072, 6144, 12288)


@dataclass(frozen=True)
class Layout:
    """A way to run: ranks, ranks a window, clips a chunk, where stored tensors wait."""

    gpus: int
    temporal: int
    chunk: int
    host: bool

    def __str__(self) -> str:
        """As options and settings."""
        wait = "in host memory (cpu_checkpointing)" if self.host else "on the device"
        return (
            f"--gpus {self.gpus} --set parallel.temporal={self.temporal} --set backbone.clips_per_chunk={self.chunk}, "
            f"stored tensors {wait}"
        )


def choose_policy(
    config: Config, gpus: int, memory_gb: float, *, num_classes: int
) -> tuple[str, tuple[Layout, Plan] | None]:
    """The ds_config for so many GPUs, and its first layout that fits them; None: no layout fits with either.

    ZeRO-2, where with ZeRO-3 neither larger chunks nor stored tensors on the device would fit that with ZeRO-2 do not.
    """
    found = {}
    for path in POLICIES:
        planner = Planner(config, read_ds_config(path), num_classes=num_classes, memory_gb=memory_gb)
        if fit := planner.first_fit(gpus, memory_gb):
            found[path] = fit
    if not found:
        return POLICIES[-1], None
    best = min(found, key=lambda path: (-found[path][0].chunk, found[path][0].host))  # of equals the first
    return best, found[best]


def policy_line(path: str) -> str:
    """One of POLICIES as an option that works in the working directory, and why it was chosen."""
    here, reason = Path.cwd(), "are partitioned over the GPUs"
    if path == POLICIES[0]:
        reason = "fit on each GPU, so they need not be gathered for every chunk"
    shown = Path(path).relative_to(here) if Path(path).is_relative_to(here) else path
    return f"--deepspeed_config {shown}: frozen weights {reason}"


class Planner:
    """Plans a recipe in other layouts and with other windows.

    Args:
        config: of the recipe; a micro batch of one window, the rest of the batch by accumulation.
        ds_config: ZeRO stage, offload, buckets.
        num_classes: K.
        memory_gb: of a GPU, for `backbone.activation_memory_gb=auto`.
    """

    def __init__(
        self, config: Config, ds_config: Mapping[str, Any], *, num_classes: int, memory_gb: float | None = None
    ) -> None:
        self.config, self._num_classes, self._memory_gb = config, num_classes, memory_gb
        self._ds_config = copy.deepcopy(dict(ds_config))

    @property
    def chunk(self) -> int:
        """Clips that a GPU runs at once; 0: all."""
        return backbone_cost(self.config).chunk(cuda=True)

    def plan(self, layout: Layout, *, frames: int | None = None) -> Plan:
        """One layout, with windows of another length if wanted.

        Raises:
            ConfigError: it cannot be run so.
        """
        config = self._with_frames(frames)
        config = replace(
            config,
            parallel=replace(config.parallel, temporal=layout.temporal),
            backbone=replace(config.backbone, clips_per_chunk=layout.chunk),
        )
        section = self._ds_config.get("activation_checkpointing", {}) | {"cpu_checkpointing": layout.host}
        ds_config = self._ds_config | {"activation_checkpointing": section}
        return make_plan(
            config,
            ds_config=ds_config,
            ranks=layout.gpus,
            num_classes=self._num_classes,
            memory_gb=self._memory_gb,
        )

    def first_fit(self, gpus: int, memory_gb: float, *, frames: int | None = None) -> tuple[Layout, Plan] | None:
        """The layout for so many GPUs that fits, the fastest first: on the device, then in host memory, then chunks."""
        for chunk, host, temporal in self._choices(gpus, frames):
            layout = Layout(gpus, temporal, chunk, host)
            try:
                plan = self.plan(layout, frames=frames)
            except BudgetError:
                continue
            if fits(plan, memory_gb):
                return layout, plan
        return None

    def layout(self, gpus: int, memory_gb: float, *, temporal: int | None, host: bool) -> Layout:
        """The layout to plan for so many GPUs.

        Args:
            gpus: N.
            memory_gb: of each.
            temporal: ranks that share a window; None: as the recipe has it, or where that cannot be, as `first_fit`
                does, or if nothing fits, all that can.
            host: stored tensors wait in host memory, unless `first_fit` says where.
        """
        choices = self.temporal_choices(gpus, None)
        given = self.config.parallel.temporal if temporal is None else temporal
        if temporal is not None or given in choices or not choices:
            return Layout(gpus, given, self.chunk, host)
        found = self.first_fit(gpus, memory_gb)
        return found[0] if found else Layout(gpus, choices[-1], self.chunk, host)

    def most_frames(self, layout: Layout, memory_gb: float) -> int:
        """The longest window, in frames, that fits a layout; 0: none does."""
        step = self.config.sample_frames_step
        return step * most_within(usable_bytes(memory_gb), lambda steps: self._bytes(layout, steps * step), most=4095)

    def _bytes(self, layout: Layout, frames: int) -> float:
        try:
            return self.plan(layout, frames=frames).device_bytes
        except ConfigError:
            too_short = frames // self.config.clip_frames < layout.temporal  # for its ranks: look at longer ones
            return 0.0 if too_short else math.inf

    def temporal_choices(self, gpus: int, frames: int | None) -> list[int]:
        """By how many ranks windows can be shared on so many GPUs, the batches as they are."""
        return temporal_choices(self._with_frames(frames), gpus)

    def _choices(self, gpus: int, frames: int | None) -> Iterator[tuple[int, bool, int]]:
        temporal = self.temporal_choices(gpus, frames)
        for chunk in halved(self.chunk or self.config.sample_frames // self.config.clip_frames, least=1):
            for host in (False, True):
                for count in temporal:
                    yield chunk, host, count

    def _with_frames(self, frames: int | None) -> Config:
        return self.config if frames is None else self.config.with_sample_frames(frames)


def most_within(room: float, bytes_of: Callable[[int], float], *, most: int) -> int:
    """The largest number up to `most` whose bytes are within `room`, where they grow with it; 0: none is.

    They grow nearly in a line: the last two tries say where to look, in steps that double where they mislead.
    """
    low, high, number, step = 0, most + 1, 1, 1
    points: list[tuple[int, float]] = []
    for tries in itertools.count():
        taken = bytes_of(number)
        low, high = (number, high) if taken <= room else (low, number)
        if high - low < 2:
            break
        if 0 < taken < math.inf:
            points = [*points[-1:], (number, taken)]
        reached = _reached(points, room)
        if reached is None and high > most:
            number = 8 * low
        elif reached is None or taken == math.inf or tries > 12:
            number = 0  # the middle
        elif low < reached < high:
            number, step = reached, 1
        else:
            number, step = low + step if reached <= low else high - step, 2 * step
        if not low < number < high:
            number = (low + high) // 2
    return low


def _reached(points: Sequence[tuple[int, float]], room: float) -> int | None:
    """The last number within `room` on the line through two points; None: none rises."""
    if len(points) < 2:
        return None
    (x0, y0), (x1, y1) = points
    slope = (y1 - y0) / (x1 - x0)
    return x1 + math.floor((room - y1) / slope) if slope > 0 else None


def one_window_at_a_time(config: Config) -> Config:
    """The config to plan by, where it doesn't set `train.micro_batch`: windows are long, so more by accumulation.

    Clips of recognition are short, and features small: there the micro batch stays what the ranks make it.
    """
    if config.recognition or config.backbone.reads_features:
        return config
    return replace(config, train=replace(config.train, micro_batch=config.train.micro_batch or 1))


def fits(plan: Plan, memory_gb: float) -> bool:
    """Whether a plan fits a GPU of so many GB, with 1 GB and 5 % held back."""
    return plan.device_bytes <= usable_bytes(memory_gb)


def planned_gpu(named: str | None) -> str:
    """The GPU that a plan is for: the named one, else this machine's.

    Raises:
        ConfigError: this machine's is not known.
    """
    try:
        return named or gpu_here()
    except ConfigError as error:
        raise ConfigError(f"{error}; choose a GPU with --gpu, one of {', '.join(GPUS)}") from error


def plan_report(planner: Planner, layout: Layout, gpu: GPU, *, name: str, core_frames_per_sec: float | None) -> str:
    """One layout, what fits, and what to change.

    Args:
        planner: of the recipe.
        layout: how it is to run.
        gpu: what it is to run on.
        name: of that GPU.
        core_frames_per_sec: frames that one core decodes and augments in a second, if known.

    Raises:
        ConfigError: it cannot be run so.
    """
    config = planner.config
    plan = planner.plan(layout)
    floor = floor_sec(plan, layout.gpus, gpu)
    if config.backbone.reads_features:
        return _report_on_features(config, plan, gpus=layout.gpus, gpu=gpu, name=name)
    lines = [
        f"{config.backbone.name}, {config.backbone.tuning}, {config.sample_frames} frames, "
        f"{config.data.resolution} px, {config.train.precision}, global batch {config.train.global_batch}, "
        f"micro batch {config.train.micro_batch}",
        f"{layout}\n",
        plan.table(),
        f"least time of a step on {layout.gpus} x {name}: {floor:.2f} s",
        f"{frames_line(config, gpus=layout.gpus, step_sec=floor, core_frames_per_sec=core_frames_per_sec)}\n",
        f"{name}: {'fits' if fits(plan, gpu.memory_gb) else 'does NOT fit'}",
        f"most frames in this layout: {planner.most_frames(layout, gpu.memory_gb)}",
    ]
    for gpus in COUNTS:
        found = planner.first_fit(gpus, gpu.memory_gb)
        if found:
            lines.append(f"fewest GPUs: {gpus} ({found[0]})")
            break
    else:
        lines.append(f"fewest GPUs: more than {COUNTS[-1]}, or another global batch")
    found = planner.first_fit(layout.gpus, gpu.memory_gb)
    lines.append(f"suggested for {layout.gpus}: {found[0] if found else 'nothing fits; use more GPUs or fewer frames'}")
    return "\n".join([*lines, *reading_plan(config)])


def _report_on_features(config: Config, plan: Plan, *, gpus: int, gpu: GPU, name: str) -> str:
    """`plan_report` of a run whose steps read features, which leave neither frames nor chunks to choose."""
    floor = floor_sec(plan, gpus, gpu)
    lines = [
        f"{config.head.name} on features, {config.data.window_size} steps, {config.train.precision}, global batch "
        f"{config.train.global_batch}, {gpus} ranks\n",
        plan.table(),
        f"least time of a step on {gpus} x {name}: {floor:.2g} s; reading files and starting kernels take longer",
    ]
    if plan.cache:
        lines += plan.cache.epoch_lines(
            flop_per_sec=gpus * gpu.tflop_per_sec * 1e12, global_batch=config.train.global_batch, step_sec=floor
        )
    return "\n".join([*lines, f"\n{name}: {'fits' if fits(plan, gpu.memory_gb) else 'does NOT fit'}"])


def frames_line(config: Config, *, gpus: int, step_sec: float, core_frames_per_sec: float | None) -> str:
    """How many frames a second a GPU takes in steps of so many seconds, and how many cores give them."""
    needed = config.train.global_batch * config.sample_frames / (step_sec * gpus)
    line = f"frames at that speed: {needed:.0f} per second and GPU"
    if core_frames_per_sec is None:
        return f"{line}; tools/bench/data.py measures the rate of one core, for --core-frames-per-sec"
    return f"{line}; at {core_frames_per_sec:g} per core: {math.ceil(needed / core_frames_per_sec)} cores per GPU"


def grid_lines(planner: Planner) -> Iterator[str]:
    """What fits where, as lines of Markdown: D stored tensors on the device, H in host memory, with the layout's P."""
    memories = (24, 40, 80, 141)
    yield "| frames | GPUs | P | device GB | with host GB | host GB | " + " | ".join(f"{m} GB" for m in memories) + " |"
    yield "|---" * (6 + len(memories)) + "|"
    for frames in GRID_FRAMES:
        for gpus in GRID_COUNTS:
            layouts = [planner.first_fit(gpus, memory, frames=frames) for memory in memories]
            most = max(planner.temporal_choices(gpus, frames), default=None)
            if most is None:
                yield f"| {frames} | {gpus} | - | | | |" + " |" * len(memories)
                continue
            here = planner.plan(Layout(gpus, most, planner.chunk, host=False), frames=frames)
            away = planner.plan(Layout(gpus, most, planner.chunk, host=True), frames=frames)
            marks = [_mark(found, chunk=planner.chunk) for found in layouts]
            yield (
                f"| {frames} | {gpus} | {most} | {here.device_bytes / 1e9:.1f} | {away.device_bytes / 1e9:.1f} | "
                f"{away.host_bytes / 1e9:.1f} | {' | '.join(marks)} |"
            )
    plan = planner.plan(Layout(1, 1, planner.chunk, True))
    floors = [f"{name} {floor_sec(plan, 1, gpu):.2f} s" for name, gpu in GPUS.items()]
    yield f"\n(least time of a step on one GPU: {', '.join(floors)})"


def _mark(found: tuple[Layout, Plan] | None, *, chunk: int) -> str:
    if found is None:
        return "-"
    layout = found[0]
    smaller = f", chunk {layout.chunk}" if layout.chunk < chunk else ""
    return f"{'H' if layout.host else 'D'}, P={layout.temporal}{smaller}"


def floor_sec(plan: Plan, gpus: int, gpu: GPU) -> float:
    """Seconds that a step's executed FLOPs take at least."""
    return plan.executed_flop / (gpus * gpu.tflop_per_sec * 1e12)
