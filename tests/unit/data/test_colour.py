"""Colour operations and warps against torchvision's, operation by operation, which imgaug's results are held to."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adatad_ds.data.augmentation import colour, operations
from adatad_ds.data.augmentation.colour import by_colour, by_pixel
from adatad_ds.data.augmentation.transforms import draw_steps
from adatad_ds.data.augmentation.warping import by_grid, inverse_affine, warp, warp_as_pillow
from tests.support.host_numbers import TensorsOfNumbers

SIDE = 40
FEW = 1e-3  # share of levels that the order of floating operations may move by one


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Noise, a dark patchwork, one level only, and one frame of few levels."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 80, (3, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    even, few = np.full((3, SIDE, SIDE), 7), np.full((3, SIDE, SIDE), 200)
    few[:, 0, 0] = (1, 2, 3)
    noise = rng.integers(0, 256, (2, 3, SIDE, SIDE))
    return torch.from_numpy(np.concatenate([noise, np.stack([patches, even, few])]).astype(np.uint8))


@pytest.mark.parametrize("height", [1, 7])
def test_layouts_hold_the_same_frames(height: int):
    pixels = torch.randint(0, 256, (4, height, 9, 3), dtype=torch.uint8)
    frames = pixels.permute(0, 3, 1, 2)
    for given in (frames, frames.contiguous(), frames[..., 1:], frames[1:2]):
        planes = by_colour(given)
        assert torch.equal(planes, given)
        assert all(colour.is_contiguous() for colour in planes.unbind(1))
        for source in (planes, given, planes.flip(-1)):
            out = torch.empty(source.permute(0, 2, 3, 1).shape, dtype=torch.uint8)
            by_pixel(source, out)
            assert torch.equal(out, source.permute(0, 2, 3, 1))


def off_by(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    difference = (ours.int() - theirs.int()).abs()
    return int(difference.max()), float((difference > 0).float().mean())


@pytest.mark.parametrize("layout", [by_colour, lambda frames: frames.contiguous(memory_format=torch.channels_last)])
def test_colours_are_torchvisions(frames: Tensor, layout):
    ours = layout(frames)
    for factor in (0.0, 0.6, 1.72):
        assert torch.equal(colour.brighten(ours, factor=factor), F.adjust_brightness(frames, factor))
        assert torch.equal(colour.saturate(ours, factor=factor), F.adjust_saturation(frames, factor))
        assert off_by(colour.contrast(ours, factor=factor), F.adjust_contrast(frames, factor)) <= (1, FEW)
    for bits in (3, 7):
        assert torch.equal(colour.posterize(ours, bits=bits), F.posterize(frames, bits))
    for threshold in (230.4, 197):
        assert torch.equal(colour.solarize(ours, threshold=threshold), F.solarize(frames, threshold))
    assert torch.equal(colour.invert(ours), F.invert(frames))
    assert torch.equal(colour.autocontrast(ours), F.autocontrast(frames))
    assert torch.equal(colour.equalize(ours), F.equalize(frames))


@pytest.mark.parametrize("turns", [-0.33, *operations.JITTER_HUE, 0.0, 0.05])
def test_hue_is_torchvisions(frames: Tensor, turns: float):
    """To rounding, where a level lies between two: there the order of operations decides."""
    every = torch.arange(0, 256, 15, dtype=torch.uint8)
    cube = torch.cartesian_prod(every, every, every).T[None, :, None]
    for pixels in (frames, cube):
        assert off_by(colour.turn_hue(pixels, turns=turns), F.adjust_hue(pixels, turns)) <= (1, FEW)


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))], ids=str)
def test_jitter_is_its_steps(frames: Tensor, order: tuple[int, ...]):
    """As in test_frame_path.py, step by step, without fusing what is linear."""
    grey = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    brightness, contrast, saturation, turns = 1.3137, 0.6, 1.4, -0.1  # no level times 1.3137 is a whole number

    def luma(pixels: Tensor) -> Tensor:
        return (pixels * grey).sum(1, keepdim=True)

    frames = frames[:3]  # the even frame lies at a whole number, where any rounding decides
    pixels = frames.double()
    for kind in order:
        if kind == 0:
            pixels = pixels * brightness
        elif kind == 1:
            pixels = torch.lerp(luma(pixels).mean((2, 3), keepdim=True).expand_as(pixels), pixels, contrast)
        elif kind == 2:
            pixels = torch.lerp(luma(pixels).expand_as(pixels), pixels, saturation)
        else:
            pixels = F.adjust_hue(pixels.clamp(0, 255).to(torch.uint8), turns).double()
    ours = colour.jitter(
        by_colour(frames), order=order, brightness=brightness, contrast=contrast, saturation=saturation, turns=turns
    )
    most, share = off_by(ours, pixels.clamp(0, 255).to(torch.uint8))
    assert most <= 3, "a level of another rounding before the hue is multiplied by at most 1.3 * 1.4"
    assert share < 5 * FEW


WARPS = [
    {"angle": 27.0},
    {"angle": -7.0},
    {"shear": (15.471, 0.0)},
    {"shear": (0.0, -15.471)},
    {"translate": (7.2, 0.0)},
    {"translate": (0.0, -3.08)},
]


@pytest.mark.parametrize("drawn", WARPS, ids=str)
def test_warps_are_torchvisions(frames: Tensor, drawn: dict):
    given = {"angle": 0.0, "translate": (0.0, 0.0), "shear": (0.0, 0.0)} | drawn
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    bilinear = F.affine(frames, **lists, scale=1.0, interpolation=F.InterpolationMode.BILINEAR)
    assert off_by(warp(by_colour(frames), matrix=inverse_affine(**drawn)), bilinear) <= (1, 4 * FEW)
    assert off_by(
        warp(frames.contiguous(memory_format=torch.channels_last), matrix=inverse_affine(**drawn)), bilinear
    ) <= (1, 4 * FEW)
    assert off_by(by_grid(by_colour(frames), inverse_affine(**drawn)), bilinear) <= (1, 4 * FEW)
    corner = (-SIDE / 2, -SIDE / 2)
    nearest = F.affine(frames, **lists, scale=1.0, fill=[128.0] * 3, center=[0.0, 0.0])
    pillow = warp_as_pillow(by_colour(frames), matrix=inverse_affine(**drawn, center=corner))
    assert float((pillow != nearest).float().mean()) <= 2 * FEW  # pixels at a tie


def test_what_is_drawn_can_be_sent(frames: Tensor):
    """A step is the same after pickling, and does not change the frames that it gets."""
    kinds = ("flip", "rand_augment", "rand_augment_n4_m7", "color_jitter", "lighting", "random_erasing")
    before = frames.clone()
    for seed in range(12):
        steps = draw_steps(resolution=SIDE, kinds=kinds, rng=np.random.default_rng(seed))
        for step, sent in zip(steps, pickle.loads(pickle.dumps(steps)), strict=True):
            assert torch.equal(step(frames), sent(frames))
    assert torch.equal(frames, before)


def test_steps_make_no_tensor_from_numbers(frames: Tensor):
    """On a GPU, to which they may be left, the host would wait for each of them, and warps are `by_grid`."""
    with TensorsOfNumbers() as numbers:
        for draw in (operations._operations, operations._operations_n4_m7):
            for step in draw(SIDE, np.random.default_rng(0)):
                step(frames)
        for seed in range(12):  # some of which erase
            kinds = ("flip", "rand_augment_n4_m7", "color_jitter", "lighting", "random_erasing")
            for step in draw_steps(resolution=SIDE, kinds=kinds, rng=np.random.default_rng(seed)):
                step(frames)
        by_grid(frames, inverse_affine(angle=27.0))
    assert numbers.made == 0
