"""Cells of a grid: the windows they see, the nodes they get, what is written for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adatad_ds.cluster.cells import Overrides, read_cells, resolution_settings, window_settings
from adatad_ds.cluster.grid import Cell, Grid
from adatad_ds.cluster.site import gpus_in
from adatad_ds.cluster.submission import check
from adatad_ds.config.loading import override
from adatad_ds.config.schema import DataConfig
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.planning.layouts import POLICIES, choose_policy, one_window_at_a_time
from adatad_ds.planning.memory import usable_bytes
from adatad_ds.recipes.catalog import find_recipe
from tests.support.site import SITE

THUMOS = find_recipe("thumos14_videomae_b").config


@pytest.mark.parametrize(
    ("frames", "features", "per_feature", "stride"),
    [(192, 192, 1, 16), (384, 384, 1, 8), (768, 768, 1, 4), (1536, 768, 2, 4), (3072, 768, 4, 4), (6144, 1536, 4, 4)],
)
def test_more_frames_of_the_same_stretch(frames, features, per_feature, stride):
    data = override(THUMOS, window_settings(THUMOS.data, frames)).data
    assert (data.window_size, data.frames_per_feature, data.feature_stride_frames) == (features, per_feature, stride)
    assert data.window_frames == frames
    if frames <= 3072:
        assert features * stride == 768 * 4  # file frames of a window


def test_published_windows_are_among_them():
    giant, published = (find_recipe(f"thumos14_videomaev2_g{longer}").config for longer in ("", "_1536"))
    settings = (*window_settings(giant.data, 1536), *resolution_settings(giant.data, 224))
    assert override(giant, settings).data == published.data


def test_whole_videos_are_sampled_more_densely():
    data = DataConfig(window_size=192, frames_per_feature=4, feature_stride_frames=None, sampling="resize")
    for frames, per_feature in ((192, 1), (384, 2), (3072, 16)):
        assert window_settings(data, frames)[:2] == (
            "data.window_size=192",
            f"data.frames_per_feature={per_feature}",
        )
    assert window_settings(data, 96)[0] == "data.window_size=96"
    assert window_settings(data, 96)[2] == "data.feature_stride_frames=null"


@pytest.mark.parametrize("frames", [500, 769, 2304])
def test_odd_windows_are_refused(frames):
    with pytest.raises(ConfigError, match=f"cannot be seen in {frames} frames"):
        window_settings(THUMOS.data, frames)


@pytest.mark.slow
def test_the_planner_chooses():
    cells = read_cells(Path("slurm/models.json"), Overrides(frames=(3072,)), replace(SITE, gpu="RTX4090-24"))
    small, *_, giant = cells
    assert small.nodes == 1
    assert giant.name == "thumos14_videomaev2_g_3072f_160px"
    assert giant.config().parallel.temporal * giant.config().train.global_batch % 8 == 0
    lone = replace(SITE, ranks_per_node=1, gpu="RTX4090-24")
    (giant,) = read_cells(Path("slurm/models.json"), Overrides(recipes=(giant.recipe,), frames=(6144,)), lone)
    assert giant.nodes > 1 or giant.on_host or giant.config().backbone.clips_per_chunk < 8


@pytest.mark.slow
def test_zero_2_where_the_frozen_weights_fit():
    """2 GB of the giant's do not, beside the rest of 3.4 GB; an eighth of them do. The site's own wish comes first."""
    giant = one_window_at_a_time(find_recipe("thumos14_videomaev2_g").config)
    path, found = choose_policy(giant, 8, 3.4, num_classes=20)
    assert path == POLICIES[1]
    assert found is not None
    assert found[1].device_bytes <= usable_bytes(3.4)
    overrides = Overrides(recipes=("thumos14_videomae_s",), frames=(768,), resolutions=(160,))
    for wish, of_cell, taken in (
        ("", POLICIES[0], POLICIES[0]),
        ("ds_configs/zero1.json", "", "ds_configs/zero1.json"),
    ):
        site = replace(SITE, gpu="A100-80", ds_config=wish)
        (cell,) = read_cells(Path("slurm/frames.json"), overrides, site)
        assert cell.ds_config == of_cell
        assert Grid(Path("grid"), site, (cell,)).ds_config_of(cell) == taken


@pytest.mark.slow
def test_what_fits_nowhere_is_said():
    lone = replace(SITE, ranks_per_node=1, gpu="RTX4090-24")
    with pytest.raises(ConfigError, match="fits on no 1 nodes of 1 x RTX4090-24"):
        read_cells(Path("slurm/frames.json"), Overrides(frames=(786432,), nodes=1), lone)


@pytest.mark.slow
def test_clips_of_recognition_cover_the_same_frames_of_the_file():
    """As published: 8, 16 and 32 frames, 16, 8 and 4 apart."""
    site = replace(SITE, gpu="A100-80")
    cells = read_cells(Path("slurm/frames.json"), Overrides(recipes=("kinetics400_clip_b16_8",)), site)
    assert [cell.config().recognition.frames for cell in cells] == [8, 16, 32]
    for cell in cells:
        assert (
            cell.config().recognition
            == find_recipe(f"kinetics400_clip_b16_{cell.config().sample_frames}").config.recognition
        )
        assert cell.config().train.global_batch % (cell.nodes * SITE.ranks_per_node) == 0
    with pytest.raises(ConfigError, match="24 does not divide 128"):
        read_cells(Path("slurm/frames.json"), Overrides(recipes=("kinetics400_clip_b16_8",), frames=(24,)), site)


def test_the_quickstart_has_a_grid_of_its_own():
    cells = read_cells(Path("slurm/frames.json"), Overrides(recipes=("quickstart",)), replace(SITE, gpus_per_node=0))
    assert [cell.config().data.window_frames for cell in cells] == [64, 128, 256]
    assert {cell.config().data.resolution for cell in cells} == {64}


@pytest.mark.parametrize(
    "content", ['{"recipes": ["quickstart"', '{"frames": [64]}', "[1]", '{"recipes": ["quickstart"], "frames": 64}']
)
def test_what_is_no_grid_is_named(tmp_path, content):
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(ConfigError, match=r"own\.json is no grid, which holds lists of recipes, frames"):
        read_cells(tmp_path / "own.json", Overrides(), replace(SITE, gpus_per_node=0))


def test_written_and_read(tmp_path):
    cells = (
        Cell(name="a", recipe="quickstart", assignments=("data.resolution=32",), nodes=1),
        Cell(name="b", recipe="quickstart", assignments=(), nodes=2, on_host=True, extra=("--resume", "never")),
        Cell(name="c", recipe="quickstart", assignments=(), nodes=2, ds_config="ds_configs/zero2.json", on_host=True),
    )
    grid = Grid(tmp_path / "grid", SITE, cells)
    grid.write()
    grid.submitted(0, "17")
    assert Grid.read(tmp_path / "grid") == grid
    assert (tmp_path / "grid/cells/0.job").read_text() == "17_0\n"
    words = (tmp_path / "grid/cells/1.args").read_text().splitlines()
    ds_config = json.loads(Path(words[words.index("--deepspeed_config") + 1]).read_text())
    assert ds_config["activation_checkpointing"]["cpu_checkpointing"] is True
    assert "activation_checkpointing" not in json.loads((tmp_path / "grid/code/ds_configs/zero3.json").read_text())
    words = (tmp_path / "grid/cells/2.args").read_text().splitlines()
    ds_config = json.loads(Path(words[words.index("--deepspeed_config") + 1]).read_text())
    assert ds_config["zero_optimization"]["stage"] == 2
    assert ds_config["activation_checkpointing"]["cpu_checkpointing"] is True
    assert (tmp_path / "grid/code/adatad_ds/train.py").exists()
    assert json.loads((tmp_path / "grid/code/revision.json").read_text()).keys() == {"git", "git_changes"}
    with pytest.raises(ConfigError, match="is not a grid's folder"):
        Grid.read(tmp_path)


@pytest.mark.parametrize(
    ("gres", "count"), [("(null)", 0), ("gpu:8", 8), ("gpu:a100:4(S:0-1)", 4), ("gpu:a:2,gpu:b:1,nic:3", 3)]
)
def test_gpus_of_a_node(gres, count):
    assert gpus_in(gres) == count


def test_each_cells_features_are_looked_for(tmp_path):
    """Of the same annotations, too."""
    entry = {"duration": 4.0, "fps": 10, "annotations": [{"segment": [1.0, 2.0], "label": "run"}]}
    database = {name: entry | {"subset": subset} for name, subset in (("a", "training"), ("b", "validation"))}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    for folder, name in (("whole", "a.npy"), ("lacking", "b.npy")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / name, np.zeros((10, 8), np.float32))
    places = (f"data.annotations={tmp_path}/annotations.json", "data.feature_stride_frames=4", "train.global_batch=1")
    cells = tuple(
        Cell(
            name=folder,
            recipe="quickstart_features",
            assignments=(*places, f"data.features={tmp_path}/{folder}", "backbone.feature_channels=8"),
            nodes=1,
        )
        for folder in ("whole", "lacking")
    )
    grid = Grid(tmp_path / "grid", replace(SITE, gpus_per_node=0, ranks_per_node=1, ds_config=""), cells)
    check(grid, [0])
    with pytest.raises(DataError, match=r"^lacking: data\.features: 1 of 1 annotated videos have no features"):
        check(grid, [0, 1])
