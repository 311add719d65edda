"""Lengths of the pyramid's levels; those of TemporalMaxer, maxima of three steps of the one below."""

from __future__ import annotations

import pytest
import torch

from adatad_ds.config import loading
from adatad_ds.errors import ConfigError
from adatad_ds.models.detector import detector_points, step_multiple
from adatad_ds.models.factory import build_heads
from adatad_ds.recipes.catalog import find_recipe

SMALL = ("head.name=temporalmaxer", "head.arch=[2,0,3]", "head.width=16", "data.window_size=32")


def test_levels_are_maxima_of_three_steps():
    config = loading.override(find_recipe("quickstart").config, SMALL)
    pyramid, _ = build_heads(config, in_channels=5, num_classes=2)
    assert {name.split(".")[0] for name, _ in pyramid.named_parameters()} == {"embed", "norms"}
    features, valid = torch.randn(2, 32, 5), torch.arange(32) < torch.tensor([[32], [21]])
    embedded = features
    for convolution in pyramid.embed:
        embedded = convolution(embedded, valid)
    wanted, mask = embedded, valid
    levels, masks = pyramid(features, valid)
    for level, norm in enumerate(pyramid.norms):
        if level:
            mask = mask[:, ::2]
            steps = range(0, wanted.shape[1], 2)
            pooled = [wanted[:, max(0, step - 1) : step + 2].amax(dim=1) for step in steps]
            wanted = torch.stack(pooled, dim=1) * mask[..., None]
        torch.testing.assert_close(levels[level], norm(wanted))
        assert torch.equal(masks[level], mask)


def test_no_transformer_blocks():
    with pytest.raises(ConfigError, match=r"no transformer blocks: use --set head\.arch=\[2,0,3\]"):
        loading.override(find_recipe("quickstart").config, ("head.name=temporalmaxer",))


def test_a_window_is_padded_to_the_pyramids_steps_alone():
    """However wide local attention is: only whole videos that are longer are padded to its complete windows."""
    changes = ("head.width=16", "data.window_size=64")
    config = loading.override(find_recipe("epic_verb_videomae_l").config, changes)
    assert step_multiple(config.head) == 256  # local attention over 8 steps of stride 32
    pyramid, _ = build_heads(config, in_channels=5, num_classes=2)
    points = len(detector_points(config, device=torch.device("cpu")))
    for steps in (64, 40):
        _, masks = pyramid(torch.randn(1, steps, 5), torch.ones(1, steps, dtype=torch.bool))
        assert sum(mask.shape[1] for mask in masks) == points == 64 + 32 + 16 + 8 + 4 + 2
