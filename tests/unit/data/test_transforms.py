"""Augmentation: one draw for all frames, from the given generator only."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import Augmentation
from adatad_ds.data.augmentation import transforms

augment = partial(transforms.augment, scaling="antialias")
center_crop = partial(transforms.center_crop, scaling="antialias")

ALL = get_args(Augmentation)
SIDE = 32


def picture(height: int = 40, width: int = 70) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 5, (x + y) * 2], axis=2).astype(np.uint8)


def still(frames: int, **size: int) -> np.ndarray:
    return np.repeat(picture(**size)[None], frames, axis=0)


@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in ALL), ALL])
def test_all_frames_are_treated_alike(kinds):
    for seed in range(6):
        out = augment(still(70), resolution=SIDE, kinds=kinds, rng=np.random.default_rng(seed))  # 3 chunks
        assert out.shape == (70, SIDE, SIDE, 3)
        assert out.dtype == torch.uint8
        assert (out == out[0]).all()


def test_only_the_given_generator_decides():
    frames = still(4)
    torch.manual_seed(0)
    np.random.seed(0)
    first = augment(frames, resolution=SIDE, kinds=ALL, rng=np.random.default_rng(7))
    torch.manual_seed(1)
    np.random.seed(1)
    again = augment(torch.from_numpy(frames), resolution=SIDE, kinds=ALL, rng=np.random.default_rng(7))
    assert torch.equal(first, again)
    others = {
        augment(frames, resolution=SIDE, kinds=ALL, rng=np.random.default_rng(s)).numpy().tobytes() for s in range(30)
    }
    assert len(others) == 30


def test_global_random_state_is_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    augment(still(4), resolution=SIDE, kinds=ALL, rng=np.random.default_rng(7))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_flip_mirrors_half_of_the_samples():
    plain = center_crop(still(1, height=SIDE, width=50), resolution=SIDE)
    mirrored = 0
    for seed in range(200):
        out = augment(
            still(1, height=SIDE, width=50), resolution=SIDE, kinds=("flip",), rng=np.random.default_rng(seed)
        )
        mirrored += torch.equal(out, plain.flip(2))
        assert torch.equal(out, plain) or torch.equal(out, plain.flip(2))
    assert 70 < mirrored < 130


def test_random_crop_stays_inside_and_varies():
    # red grows with x and green with y by a known slope, so corners tell what was cropped
    height, width = 40, 70
    shares, aspects, corners = [], [], []
    for seed in range(300):
        out = augment(still(1), resolution=SIDE, kinds=("random_resized_crop",), rng=np.random.default_rng(seed))[
            0
        ].float()
        crop_width = (out[:, -1, 0] - out[:, 0, 0]).mean() / 3 * SIDE / (SIDE - 1)
        crop_height = (out[-1, :, 1] - out[0, :, 1]).mean() / 5 * SIDE / (SIDE - 1)
        shares.append(float(crop_width * crop_height / (height * width)))
        aspects.append(float(crop_width / crop_height))
        corners.append((float(out[0, :, 1].mean() / 5), float(out[:, 0, 0].mean() / 3)))
    assert 0.06 < min(shares) < 0.15
    assert 0.68 < max(shares) <= 0.79  # the whole height at aspect 4/3 is the most that fits
    assert 0.68 < min(aspects) < 0.85
    assert 1.2 < max(aspects) < 1.45
    for top_or_left, side in zip(zip(*corners, strict=True), (height, width), strict=True):
        assert min(top_or_left) < 1
        assert 0.5 * side < max(top_or_left) < 0.9 * side


def test_center_crop():
    frames = still(2, height=SIDE, width=51)
    assert torch.equal(center_crop(frames, resolution=SIDE), torch.from_numpy(frames[:, :, 9:41]))
    tall = center_crop(still(2, height=48, width=24), resolution=12)
    assert tall.shape == (2, 12, 12, 3)
    assert abs(tall[0, :, :, 1].float().mean() - 5 * 23.5) < 1.5  # the middle rows
