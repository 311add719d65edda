"""RandAugment, lighting and random erasing against the libraries that AdaTAD and AIM were trained with."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from adatad_ds.data.augmentation import operations

SIDE = 32
DEFAULT = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "posterize", "solarize", "color", "contrast")
DEFAULT += ("brightness", "sharpness", "autocontrast", "equalize", "invert", "cutout")
N4_M7 = ("identity", "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast")
N4_M7 += ("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "blur", "smooth")
SETS = {
    "default": (operations._operations, DEFAULT),
    "n4_m7": (operations._operations_n4_m7, N4_M7),
}


class Draws:
    """In the place of a random generator: one sign for all, and where write_imgaug.py cuts."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def choice(self, _values: object, size: int) -> np.ndarray:
        return np.full(size, float(self.sign))

    def random(self, _size: int) -> np.ndarray:
        return np.array([0.95, 0.1])


@pytest.fixture(scope="module")
def imgaug() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("imgaug.npz")) as stored:
        return dict(stored)


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_are_imgaugs(which, sign, imgaug):
    """What they do inside and what they fill borders with, to rounding; a sign may mean the other direction."""
    image = imgaug["image"]
    frames = torch.from_numpy(image).permute(2, 0, 1)[None]
    operations, names = SETS[which]
    made = operations(len(image), Draws(sign))
    tested = {key.split("/")[1] for key in imgaug if key.startswith(f"{which}/")}
    assert tested == set(names)
    for name, operation in zip(names, made, strict=True):
        ours = operation(frames)[0].permute(1, 2, 0).numpy().astype(int)
        theirs = [imgaug[key].astype(int) for key in imgaug if f"{key}/".startswith(f"{which}/{name}/")]
        off = min((np.abs(ours - one) for one in theirs), key=lambda gap: gap.mean())
        assert (off > 3).mean() < 0.005, name  # nearest pixels at a tie
        assert off.mean() < 0.7, name  # 1 level where Pillow rounds a mean first


@pytest.mark.parametrize("which", SETS)
def test_each_operation_treats_all_frames_alike(which):
    noise = torch.randint(0, 250, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames = noise.repeat(3, 1, 1, 1)
    operations, names = SETS[which]
    outputs = [step(frames) for step in operations(SIDE, np.random.default_rng(0))]
    for name, out in zip(names, outputs, strict=True):
        assert out.shape == frames.shape
        assert out.dtype == torch.uint8
        assert (out == out[0]).all()
        assert torch.equal(out, frames) == (name == "identity")
    assert len({out.numpy().tobytes() for out in outputs}) == len(names)


@pytest.mark.parametrize("which", SETS)
def test_every_direction_is_drawn_by_itself(which):
    drawn = [SETS[which][0](SIDE, np.random.default_rng(seed)) for seed in range(60)]
    values = [[str(getattr(step, "keywords", "")) for step in steps] for steps in zip(*drawn, strict=True)]
    either = [each for each in values if len(set(each)) == 2]
    assert len(either) == {"default": 5, "n4_m7": 9}[which]
    assert all(len(set(zip(one, other, strict=True))) == 4 for one, other in itertools.combinations(either, 2))


@pytest.mark.parametrize(
    ("which", "draw", "count"),
    [("default", operations.rand_augment, 2), ("n4_m7", operations.rand_augment_n4_m7, 4)],
)
def test_which_operations_are_drawn_and_in_which_order(which, draw, count):
    """imgaug's SomeOf keeps its order but where it is told not to."""
    frames = torch.randint(0, 250, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen, ascending = set(), []
    for seed in range(40):
        made = [step(frames).numpy().tobytes() for step in SETS[which][0](SIDE, np.random.default_rng(seed))]
        chosen = [
            made.index(step(frames).numpy().tobytes()) for step in draw(SIDE, np.random.default_rng(seed))[-count:]
        ]
        assert len(set(chosen)) == count
        seen |= set(chosen)
        ascending.append(chosen == sorted(chosen))
    assert seen == set(range(len(SETS[which][1])))
    assert all(ascending) == (which == "default")


def test_colours_are_jittered_in_any_order():
    drawn = (operations.color_jitter(np.random.default_rng(seed))[0] for seed in range(200))
    assert len({tuple(step.keywords["order"]) for step in drawn}) == 24  # pyright: ignore[reportFunctionMemberAccess]


def test_four_operations_in_any_order_after_a_crop():
    chosen = [operations.rand_augment_n4_m7(SIDE, np.random.default_rng(seed)) for seed in range(40)]
    assert {len(steps) for steps in chosen} == {5}
    frames = torch.randint(0, 250, (1, 3, 224, 224), dtype=torch.uint8)
    rows = torch.arange(224, dtype=torch.uint8)[:, None].expand(1, 3, 224, 224)
    tops = [int(operations._crop_edges(224, np.random.default_rng(s))(rows)[0, 0, 0, 0]) for s in range(200)]
    assert (min(tops), max(tops)) == (0, 7)
    assert operations._crop_edges(224, np.random.default_rng(1))(frames).shape == frames.shape
    tops = [operations._crop_edges(112, np.random.default_rng(s)).keywords["top"] for s in range(200)]  # pyright: ignore
    assert (min(tops), max(tops)) == (0, 3)  # as large a share of a smaller frame


def test_sharpening_equals_torchvision():
    frames = torch.randint(0, 256, (2, 3, 21, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(operations._sharpen(frames, 1.72), F.adjust_sharpness(frames, 1.72))


def test_lighting_shifts_all_pixels_by_one_colour():
    """Mean and covariance of the shift: 0 and vectors * (0.1 * values)^2 * vectors^T."""
    frames = torch.full((2, 3, 4, 4), 128, dtype=torch.uint8)
    shifts = []
    for seed in range(1500):
        out = operations.lighting(np.random.default_rng(seed))(frames)
        assert (out == out[:1, :, :1, :1]).all()
        shifts.append(out[0, :, 0, 0].numpy().astype(float) - 128)
    vectors, values = np.array(operations.LIGHTING_VECTORS), np.array(operations.LIGHTING_VALUES)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    expected = vectors * (0.1 * values) ** 2 @ vectors.T
    np.testing.assert_allclose(np.cov(np.array(shifts).T), expected, atol=1.5)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.4
    assert operations.lighting(np.random.default_rng(0))(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).min() == 0


def test_a_quarter_of_the_samples_lose_a_rectangle():
    side, areas, aspects = 64, [], []
    frames = torch.full((2, 3, side, side), 200, dtype=torch.uint8)
    for seed in range(600):
        for step in operations.random_erasing(side, np.random.default_rng(seed)):
            out = step(frames)
            assert (out[0] == out[1]).all()
            gone = out[0, 0] != 200
            rows, columns = (int(gone.any(dim=axis).sum()) for axis in (1, 0))
            assert gone.sum() == rows * columns  # one rectangle
            assert out[0][:, gone].unique(dim=1).flatten().tolist() == [123, 117, 104]
            areas.append(rows * columns / side**2)
            aspects.append(math.log(rows / columns))
    assert 0.2 < len(areas) / 600 < 0.3
    assert 0.015 < min(areas) < 0.03
    assert 0.3 < max(areas) < 0.35
    assert abs(np.median(aspects)) < 0.2  # as many high as wide ones
    assert -1.3 < min(aspects) < -1.0
    assert 1.0 < max(aspects) < 1.3
    assert (frames == 200).all()
