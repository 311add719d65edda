"""From a file to what the backbone sees, held to values worked out in NumPy from the published pipelines' definitions.

These are mmaction2's Resize, RandomResizedCrop, CenterCrop and ColorJitter, and the mean and deviation of its data
preprocessor, as AdaTAD's configs combine them; docs/reference/datasets.md has the differences from the libraries.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from adatad_ds.data.augmentation import operations, transforms
from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from tests.support.scaling import of_four_neighbours
from tests.support.videos import write_textured

WIDTH, HEIGHT, SIDE, SHORT_SIDE = 150, 112, 40, 46


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textured(tmp_path_factory.mktemp("path") / "v.mp4", frames=2, width=WIDTH // 8 * 8, height=HEIGHT)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [
            frame.reformat(format="rgb24", interpolation="BILINEAR").to_ndarray() for frame in container.decode(video=0)
        ]


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.rint(of_four_neighbours(picture, height, width))


def short_side(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = side / min(height, width)
    return resized(picture, int(height * factor + 0.5), int(width * factor + 0.5))


def test_what_is_tested_on(textured: Path):
    frames = read_frames(textured, np.array([1]), short_side=SIDE, scaling="bilinear", backend="pyav")
    ours = transforms.center_crop(frames, resolution=SIDE, scaling="bilinear").numpy()[0]
    scaled = short_side(decoded(textured)[1], SIDE)
    left = (scaled.shape[1] - SIDE) // 2
    difference = np.abs(ours - scaled[:, left : left + SIDE])
    assert ours.shape == (SIDE, SIDE, 3)
    assert difference.max() <= 1
    assert difference.mean() < 0.5
    assert PIXEL_MEAN == (123.675, 116.28, 103.53)
    assert PIXEL_STD == (58.395, 57.12, 57.375)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_trained_on(textured: Path, seed: int):
    frames = read_frames(textured, np.array([0]), short_side=SHORT_SIDE, scaling="bilinear", backend="pyav")
    ours = transforms.augment(
        frames,
        resolution=SIDE,
        scaling="bilinear",
        kinds=("random_resized_crop", "flip"),
        rng=np.random.default_rng(seed),
    ).numpy()[0]
    scaled = short_side(decoded(textured)[0], SHORT_SIDE)
    height, width = scaled.shape[:2]
    rng = np.random.default_rng(seed)
    while True:
        area = rng.uniform(0.08, 1.0) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = int(np.round(np.sqrt(area * aspect))), int(np.round(np.sqrt(area / aspect)))
        if w <= width and h <= height:
            break
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    expected = resized(scaled[top : top + h, left : left + w], SIDE, SIDE)
    if rng.random() < 0.5:
        expected = expected[:, ::-1]
    difference = np.abs(ours - expected)
    assert difference.max() <= 3  # two roundings, the first one enlarged by the weights of the second
    assert difference.mean() < 0.6


@pytest.mark.parametrize("seed", range(6))
def test_colour_jitter(seed: int):
    """Between the steps nothing is cut off: what was brightened beyond white comes back with less contrast."""
    picture = np.random.default_rng(99).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    brightness, contrast, saturation = rng.uniform(0.5, 1.5, size=3)
    hue = rng.uniform(-0.1 * 255 / 180, 0.1 * 255 / 180)
    expected = picture.astype(np.float64)
    for index in rng.permutation(4):
        grey = expected @ [0.2989, 0.587, 0.114]
        if index == 0:
            expected = expected * brightness
        elif index == 1:
            expected = contrast * expected + (1 - contrast) * grey.mean()
        elif index == 2:
            expected = saturation * expected + (1 - saturation) * grey[..., None]
        else:
            flat = np.floor(np.clip(expected, 0, 255)).reshape(-1, 3) / 255
            turned = [colorsys.rgb_to_hsv(*rgb) for rgb in flat]
            flat = np.array([colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in turned])
            expected = 255 * flat.reshape(picture.shape)
    (step,) = operations.color_jitter(np.random.default_rng(seed))
    ours = step(torch.from_numpy(picture).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - np.floor(np.clip(expected, 0, 255))).max() <= 3


# Kr and Kb, and FFmpeg's number of the matrix
MATRICES = {"BT.601": (0.299, 0.114, 5), "BT.709": (0.2126, 0.0722, 1)}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_colours_are_those_that_a_file_means(tmp_path: Path, matrix: str, full: bool):
    red, blue, number = MATRICES[matrix]
    y, u, v = 120, 90, 170
    planes = np.concatenate([np.full(64 * 64, y), np.full(32 * 32, u), np.full(32 * 32, v)]).astype(np.uint8)
    with av.open(str(tmp_path / "flat.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p" if full else "yuv420p"
        stream.options = {"qp": "0"}
        stream.codec_context.colorspace = number
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame.from_ndarray(planes.reshape(96, 64), format=stream.pix_fmt)
        frame.colorspace, frame.color_range = number, 2 if full else 1
        container.mux([*stream.encode(frame), *stream.encode(None)])
    luma = y if full else (y - 16) * 255 / 219
    cb, cr = ((value - 128) * (1 if full else 255 / 224) for value in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    expected = np.clip([r, (luma - red * r - blue * b) / (1 - red - blue), b], 0, 255)
    for backend in ("pyav", "decord", "torchcodec"):
        shown = read_frames(tmp_path / "flat.mp4", np.array([0]), short_side=64, scaling="bilinear", backend=backend)
        assert np.abs(shown[0].astype(float) - expected).max() <= 2, backend


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "gray"])
def test_readers_agree_on_other_pixels(tmp_path: Path, pixels: str):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    first, *others = (
        read_frames(tmp_path / "v.mp4", np.arange(3), short_side=60, scaling="bilinear", backend=backend)
        for backend in ("pyav", "decord", "torchcodec")
    )
    for other in others:
        np.testing.assert_array_equal(other, first)
