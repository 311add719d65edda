"""Rendering of generated videos: textured objects on textured backgrounds, seen by a shaking camera.

F frames of a video, H x W pixels; a pose is (x, y, scale, angle, brightness) of an object in one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 112, 96  # pixels; not square, so that resizing and cropping matter
X, Y, SCALE, ANGLE, LIGHT = range(5)  # columns of a pose
SHAPES = ("disc", "square", "triangle", "cross", "ring", "star")
TEXTURES = ("plain", "stripes", "checks", "dots")


@dataclass(frozen=True, kw_only=True)
class Look:
    """Appearance of an object.

    Attributes:
        shape: outline, one of `SHAPES`.
        texture: pattern, one of `TEXTURES`.
        radius: pixels at scale 1.
        colors: the pattern's two RGB colours, (2, 3) in 0..255.
        frequency: radians of the pattern per radius.
    """

    shape: str
    texture: str
    radius: float
    colors: NDArray[np.floating]
    frequency: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that determines a video's pixels.

    Attributes:
        canvas: the background, larger than a frame, (H', W', 3) in 0..255.
        view: top left corner of the frame on the canvas in each frame, (F, 2) as x, y pixels.
        camera: displacement of the objects by the camera's shaking, (F, 2) pixels.
        exposure: brightness factor of each frame, (F,).
        looks: the objects, from back to front.
        poses: (objects, F, 5).
        grain_seed: seed of the sensor noise.
    """

    canvas: NDArray[np.floating]
    view: NDArray[np.floating]
    camera: NDArray[np.floating]
    exposure: NDArray[np.floating]
    looks: Sequence[Look]
    poses: NDArray[np.floating]
    grain_seed: int


def random_look(rng: np.random.Generator) -> Look:
    """A random shape, pattern and pair of colours, brighter than most of a background."""
    colors = rng.uniform(130, 255, size=(2, 3)).astype(np.float32)
    colors[0, rng.integers(3)] = rng.uniform(40, 255)
    return Look(
        shape=str(rng.choice(SHAPES)),
        texture=str(rng.choice(TEXTURES)),
        radius=float(rng.uniform(7.5, 10.5)),
        colors=colors,
        frequency=float(rng.uniform(3, 6)),
    )


def render(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Frames of the scene, each (H, W, 3) RGB."""
    rng = np.random.default_rng(scene.grain_seed)
    grain = rng.normal(scale=3.5, size=(HEIGHT * 2, WIDTH * 2, 1)).astype(np.float32)
    for frame, (view, shift, exposure) in enumerate(zip(scene.view, scene.camera, scene.exposure, strict=True)):
        picture = _crop(scene.canvas, view)
        for look, pose in zip(scene.looks, scene.poses[:, frame], strict=True):
            draw(picture, look, pose, shift=shift)
        picture *= exposure
        top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
        picture += grain[top : top + HEIGHT, left : left + WIDTH]
        yield np.clip(picture, 0, 255).astype(np.uint8)


def draw(picture: NDArray[np.floating], look: Look, pose: NDArray[np.floating], *, shift: Sequence[float]) -> None:
    """Paint an object onto `picture` (H, W, 3), with edges antialiased over a pixel."""
    height, width = picture.shape[:2]
    radius = look.radius * float(pose[SCALE])
    x, y, reach = float(pose[X] + shift[0]), float(pose[Y] + shift[1]), radius * 1.45 + 1
    x0, x1 = max(0, int(x - reach)), min(width, int(x + reach) + 1)
    y0, y1 = max(0, int(y - reach)), min(height, int(y + reach) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    across = (np.arange(x0, x1, dtype=np.float64) - x) / radius  # fp32's sines are not the same on every machine
    down = ((np.arange(y0, y1, dtype=np.float64) - y) / radius)[:, None]
    cos, sin = float(np.cos(pose[ANGLE])), float(np.sin(pose[ANGLE]))
    u, v = cos * across + sin * down, cos * down - sin * across  # the object's own axes, in radii
    cover = np.clip((1 - _outline(look.shape, u, v)) * radius + 0.5, 0, 1)[..., None]
    mix = _pattern(look.texture, u * look.frequency, v * look.frequency)[..., None]
    color = (look.colors[0] + mix * (look.colors[1] - look.colors[0])) * float(pose[LIGHT])
    region = picture[y0:y1, x0:x1]
    region += cover * (color - region)


def _outline(shape: str, u: NDArray[np.floating], v: NDArray[np.floating]) -> NDArray[np.floating]:
    """A function that is below 1 inside the shape, with about one unit per radius."""
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) * 1.1
    if shape == "triangle":
        return np.maximum(np.abs(u) * 1.55 - v * 0.8, v * 1.5) + 0.15
    if shape == "cross":
        return np.minimum(np.maximum(np.abs(u), 2.6 * np.abs(v)), np.maximum(np.abs(v), 2.6 * np.abs(u)))
    length = np.hypot(u, v)
    if shape == "ring":
        return 1 + np.abs(length - 0.72) - 0.28
    if shape == "star":
        return length * (1.15 + 0.3 * np.cos(5 * np.arctan2(v, u)))
    return length


def _pattern(texture: str, u: NDArray[np.floating], v: NDArray[np.floating]) -> NDArray[np.floating]:
    """Share of the second colour, 0..1."""
    if texture == "stripes":
        return 0.5 + 0.5 * np.sin(u + 0 * v)
    if texture == "checks":
        return 0.5 + 0.5 * np.sign(np.sin(u) * np.sin(v))
    if texture == "dots":
        return np.clip(np.cos(u) * np.cos(v) * 1.5, 0, 1)
    return np.zeros_like(u + v)


def random_background(rng: np.random.Generator, *, height: int, width: int) -> NDArray[np.floating]:
    """Blurred noise at three sizes, faint stripes and still clutter, (height, width, 3)."""
    canvas = np.full((height, width, 3), rng.uniform(30, 90, size=3), np.float32)
    for cells, strength in ((3, 20), (8, 11), (24, 7)):
        coarse = rng.normal(scale=strength, size=(cells, cells, 3)).astype(np.float32)
        canvas += _enlarge(coarse, height, width)
    heading, wave = rng.uniform(0, np.pi), rng.uniform(0.15, 0.6)
    row, column = np.mgrid[:height, :width].astype(np.float32)
    canvas += 9 * np.sin(wave * (np.cos(heading) * column + np.sin(heading) * row))[..., None]
    for _ in range(int(rng.integers(4, 11))):
        pose = np.array([rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.4, 1.3), rng.uniform(0, 6), 1])
        look = random_look(rng)
        draw(canvas, replace(look, colors=0.6 * look.colors), pose.astype(np.float32), shift=(0.0, 0.0))
    return canvas


def _enlarge(coarse: NDArray[np.floating], height: int, width: int) -> NDArray[np.floating]:
    """Bilinear enlargement of a small picture (h, w, 3)."""
    for axis, size in ((0, height), (1, width)):
        at = np.linspace(0, coarse.shape[axis] - 1.001, size)
        low = at.astype(int)
        part = (at - low).astype(np.float32)
        part = part[:, None, None] if axis == 0 else part[None, :, None]
        coarse = coarse.take(low, axis) * (1 - part) + coarse.take(low + 1, axis) * part
    return coarse


def _crop(canvas: NDArray[np.floating], corner: NDArray[np.floating]) -> NDArray[np.floating]:
    """The frame whose top left corner is at a fractional position (x, y) of the canvas."""
    x, y = int(corner[0]), int(corner[1])
    right, below = float(corner[0]) - x, float(corner[1]) - y
    rows = canvas[y : y + HEIGHT] * (1 - below) + canvas[y + 1 : y + 1 + HEIGHT] * below
    return rows[:, x : x + WIDTH] * (1 - right) + rows[:, x + 1 : x + 1 + WIDTH] * right
