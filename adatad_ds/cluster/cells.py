"""Cells of a grid file: recipes by frames by resolutions, each on as many nodes as it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from adatad_ds.cluster.grid import Cell
from adatad_ds.cluster.site import Site
from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.planning.gpus import GPUS, gpu_named
from adatad_ds.planning.layouts import Planner, choose_policy, one_window_at_a_time
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.json_text import read_json

NODES = (1, 2, 4, 8, 16, 32, 64, 128)  # that the planner may choose


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the environment changes in a grid's file; empty: nothing."""

    recipes: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    resolutions: tuple[int, ...] = ()
    assignments: tuple[str, ...] = ()
    nodes: int | None = None
    temporal: int | None = None


def read_cells(file: Path, overrides: Overrides, site: Site) -> list[Cell]:
    """A grid file's cells: recipes x frames x resolutions, with nodes chosen where none are given.

    Raises:
        ConfigError: the file is no grid, or a cell cannot be, or fits nowhere.
    """
    cells = []
    for recipe, count, side in _wanted(file, overrides):
        base = find_recipe(recipe).config
        cell = Cell(
            name=f"{recipe}_{count}f_{side}px",
            recipe=recipe,
            assignments=(*frame_settings(base, count), *resolution_settings(base.data, side), *overrides.assignments),
            nodes=overrides.nodes or 1,
        )
        if overrides.temporal:
            cell = replace(cell, assignments=(*cell.assignments, f"parallel.temporal={overrides.temporal}"))
        elif site.gpus_per_node:
            cell = choose_layout(cell, site, nodes=(overrides.nodes,) if overrides.nodes else NODES)
        cells.append(cell)
    return cells


def _wanted(file: Path, overrides: Overrides) -> list[tuple[str, int, int]]:
    """Recipe, frames and side of each cell."""
    found: list[tuple[str, int, int]] = []
    try:
        content = read_json(file)
        for recipe in dict.fromkeys(overrides.recipes or content["recipes"]):  # two cells of a name share a folder
            of_recipe = content | content.get(recipe.split("_")[0], {}) | content.get(recipe, {})
            frames = overrides.frames or of_recipe["frames"]
            resolutions = overrides.resolutions or of_recipe["resolutions"]
            sizes = product(dict.fromkeys(frames), dict.fromkeys(resolutions))
            found += [(recipe, int(count), int(side)) for count, side in sizes]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} is no grid, which holds lists of recipes, frames and resolutions, as slurm/frames.json: {error!r}"
        ) from error
    return found


def frame_settings(config: Config, frames: int) -> tuple[str, ...]:
    """Settings for samples of so many frames that see the same stretch of video as the recipe's.

    Raises:
        ConfigError: there are none.
    """
    clip = config.recognition
    if clip is None:
        return window_settings(config.data, frames)
    if clip.sampling == "dense" and clip.frames * clip.stride % frames:
        raise ConfigError(
            f"FRAMES: {frames} does not divide {clip.frames * clip.stride}, the frames of the file that a clip covers"
        )
    stride = clip.frames * clip.stride // frames
    dense = (f"recognition.stride={stride}",) if clip.sampling == "dense" else ()
    return (f"recognition.frames={frames}", *dense)


def window_settings(data: DataConfig, frames: int) -> tuple[str, ...]:
    """Settings for windows of so many frames that see the same stretch of video as the recipe's.

    More frames lie denser in time, at the same feature length, until every frame of the file is used; then the window
    grows. Fewer than one a feature: features become fewer and lie farther apart.

    Raises:
        ConfigError: no whole number of frames a feature, or of features, gives that.
    """
    features, stride = data.window_size, data.feature_stride_frames
    if frames < features:
        apart = features // frames
        whole = features % frames == 0
        features, per_feature, stride = frames, 1, None if stride is None else stride * apart
    elif stride is not None and frames > features * stride:
        whole = frames % stride == 0
        features, per_feature = frames // stride, stride
    else:
        per_feature = frames // features
        whole = frames % features == 0 and (stride is None or stride % per_feature == 0)
    if not whole:
        raise ConfigError(
            f"FRAMES: the recipe's window of {data.window_size} features, {data.feature_stride_frames} frames of the "
            f"file apart, cannot be seen in {frames} frames; take its own count times or by a power of two"
        )
    return (
        f"data.window_size={features}",
        f"data.frames_per_feature={per_feature}",
        f"data.feature_stride_frames={'null' if stride is None else stride}",
    )


def resolution_settings(data: DataConfig, side: int) -> tuple[str, ...]:
    """Settings for frames of that side in pixels, cropped as the recipe does, of an even short side."""
    short = 2 * math.ceil(side * data.short_side_before_crop / data.resolution / 2)
    return f"data.resolution={side}", f"data.short_side_before_crop={short}"


def choose_layout(cell: Cell, site: Site, *, nodes: Sequence[int]) -> Cell:
    """The first of these numbers of nodes that a cell fits, with temporal ranks, chunks and ZeRO stage, by the planner.

    Raises:
        ConfigError: none.
    """
    config, kind = one_window_at_a_time(cell.config()), _planned_gpu(cell, site)
    classes, memory_gb = max(1, len(config.data.classes)), GPUS[kind].memory_gb
    for count in nodes:
        ranks = count * site.ranks_per_node
        if site.ds_config:
            planner = Planner(config, read_ds_config(site.ds_config), num_classes=classes, memory_gb=memory_gb)
            path, found = "", planner.first_fit(ranks, memory_gb)
        else:
            path, found = choose_policy(config, ranks, memory_gb, num_classes=classes)
        if found is None:
            continue
        layout = found[0]
        chosen = (
            f"parallel.temporal={layout.temporal}",
            f"backbone.clips_per_chunk={layout.chunk}",
            f"train.micro_batch={config.train.micro_batch or 'null'}",
        )
        return replace(cell, nodes=count, assignments=(*cell.assignments, *chosen), on_host=layout.host, ds_config=path)
    tried = " or ".join(map(str, nodes))
    raise ConfigError(
        f"{cell.name} fits on no {tried} nodes of {site.ranks_per_node} x {kind}, by adatad-ds plan; "
        "set NODES, GPU, or SET='train.global_batch=...'"
    )


def _planned_gpu(cell: Cell, site: Site) -> str:
    try:
        if not site.gpu:
            raise ConfigError("sinfo names no type of the nodes' GPUs")
        return gpu_named(site.gpu)
    except ConfigError as error:
        raise ConfigError(
            f"{cell.name}: how many nodes it takes depends on the GPU, and {error}. Set GPU in slurm/site.env to one "
            f"of {', '.join(GPUS)}; or NODES and TEMPORAL, which leave nothing to plan"
        ) from error
