"""Frames at another size: by OpenCV's rule where published, the same from every reader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adatad_ds.config.loading import override
from adatad_ds.config.schema import Config
from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.decoding.scaling import scale, scaled_size
from adatad_ds.recipes.catalog import all_recipes
from tests.support.scaling import of_four_neighbours
from tests.support.videos import write_textured


@pytest.mark.parametrize(("height", "width"), [(18, 21), (50, 64), (96, 112), (31, 17)])
def test_bilinear_is_opencvs(height: int, width: int):
    picture = np.random.default_rng(0).integers(0, 256, (40, 45, 3), dtype=np.uint8)
    pixels = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
    scaled = scale(pixels, height=height, width=width, scaling="bilinear")[0].permute(1, 2, 0).numpy()
    difference = np.abs(scaled - of_four_neighbours(picture, height, width))
    assert difference.max() <= 1  # rounding, once for rows and once for columns
    averaged = scale(pixels, height=18, width=21, scaling="antialias")[0].permute(1, 2, 0).numpy()
    assert np.abs(averaged - of_four_neighbours(picture, 18, 21)).mean() > 10, "the two ways differ"


def test_sizes_are_rounded_as_openmmlab_does():
    assert scaled_size(height=240, width=320, short_side=182) == (182, 243)  # 242.67
    assert scaled_size(height=320, width=240, short_side=160) == (213, 160)  # 213.33
    assert scaled_size(height=320, width=240, short_side=182) == (243, 182)
    assert scaled_size(height=4, width=5, short_side=2) == (2, 3)  # 2.5: up, not to the even number
    assert scaled_size(height=1080, width=1920, short_side=160) == (160, 284)


@pytest.mark.parametrize("scaling", ["bilinear", "antialias"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_readers_give_the_same_pixels(tmp_path, scaling, container):
    path = write_textured(tmp_path / f"v.{container}", frames=24, width=112, height=96)
    wanted = np.arange(0, 24, 3)
    first, *others = (
        read_frames(path, wanted, short_side=72, scaling=scaling, backend=backend)
        for backend in ("pyav", "decord", "torchcodec", "auto")
    )
    assert first.shape == (8, 72, 84, 3)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_recipes_scale_as_their_checkpoints_were_trained():
    with_frames = {name: recipe.config for name, recipe in all_recipes().items() if not recipe.config.data.features}
    ways = {name: config.data.scaling for name, config in with_frames.items()}
    assert {name for name, way in ways.items() if way == "antialias"} == {n for n in ways if n.startswith("quickstart")}
    assert override(Config(), ["data.scaling=bilinear"]).data.scaling == "bilinear"
