"""Generated clips for recognition, with pairs of twin classes that differ only in the DIRECTION OF TIME.

A clip shows a textured object that makes one stroke, next to a resting one, in front of a slowly panning background.
Its twin is the same clip in reverse: right becomes left, growing becomes shrinking. So twins have exactly the same
frames in another order, and a model that averages over single frames gets at most half of the clips right, however much
of it is trainable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.generated.scenery import ANGLE, LIGHT, SCALE, Look, X, Y, draw, random_background, random_look

FRAMES = 32
SIDE = 64  # pixels; frames are square
FPS = 10

TWINS = (("right", "left"), ("down", "up"), ("grow", "shrink"), ("appear", "vanish"))  # the second runs backwards
CLASSES = tuple(sorted(name for pair in TWINS for name in pair))

_STREAMS = {
    "train": 11,
    "test": 12,
    "pretraining": 13,
}  # the first word of every seed, different from those of videos.py
_STROKE = (0.7, 1.0)  # share of a full stroke that a clip shows
_REACH = (28.0, 38.0)  # length of a stroke in pixels
_GROWTH = (0.8, 1.2)  # logarithm of the largest to the smallest size in a stroke
_PAN = 6.0  # maximum motion of the background in pixels
DIMMED = 0.6  # brightness of all but the acting object
_GRAIN = 3.5  # standard deviation of the sensor noise


def generator(subset: str, seed: int, twins: int, index: int) -> np.random.Generator:
    """Random generator of one clip and its twin.

    Args:
        subset: "train", "test" or, for the image transformer's pictures, "pretraining".
        seed: seed of the dataset.
        twins: index of the pair of classes in `TWINS`.
        index: index of the clip in this pair.
    """
    return np.random.default_rng(np.random.SeedSequence([_STREAMS[subset], seed, twins, index]))


def make_clip(label: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A clip of a class, (FRAMES, SIDE, SIDE, 3) RGB; with an equal generator, its twin has the same frames reversed.

    Raises:
        ValueError: unknown class.
    """
    for forward, backward in TWINS:
        if label in (forward, backward):
            frames = _forward(forward, rng)
            return frames if label == forward else np.ascontiguousarray(frames[::-1])
    raise ValueError(f"{label!r} is unknown; classes: {', '.join(CLASSES)}")


def show(
    background: NDArray[np.floating],
    *,
    looks: Sequence[Look],
    poses: Sequence[NDArray[np.floating]],
    opacity: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Render one frame, (SIDE, SIDE, 3) RGB.

    Args:
        background: (SIDE, SIDE, 3) in 0..255, not modified.
        looks: looks of the acting object and of the one behind it.
        poses: poses of the two.
        opacity: opacity of the acting object, 0 to 1.
        rng: generator of the sensor noise.
    """
    picture = background.copy()
    draw(picture, looks[1], poses[1], shift=(0.0, 0.0))
    acted = picture.copy()
    draw(acted, looks[0], poses[0], shift=(0.0, 0.0))
    picture += opacity * (acted - picture)
    picture += rng.normal(scale=_GRAIN, size=picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _forward(kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A clip of the first class of a pair."""
    time = np.arange(FRAMES)
    stroke = (time / (FRAMES - 1) - 0.5) * rng.uniform(*_STROKE)  # centred in the clip
    actor, bystander = _poses(rng, scale=(1.0, 1.4)), _poses(rng, scale=(0.6, 0.9))
    bystander[:, LIGHT] = DIMMED
    opacity = np.ones(FRAMES)
    if kind == "right":
        actor[:, X] += rng.uniform(*_REACH) * stroke
    elif kind == "down":
        actor[:, Y] += rng.uniform(*_REACH) * stroke
    elif kind == "grow":
        actor[:, SCALE] *= np.exp(rng.uniform(*_GROWTH) * stroke)
    else:
        assert kind == "appear", kind
        opacity = stroke + 0.5
    looks = [random_look(rng), random_look(rng)]
    canvas = random_background(rng, height=SIDE + int(_PAN) + 2, width=SIDE + int(_PAN) + 2) * DIMMED
    pan = _PAN / 2 * (1 + np.sin(2 * np.pi * (time[:, None] / rng.uniform(60, 200, size=2) + rng.random(2))))
    corners = np.rint(pan).astype(int)  # x, y
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for frame, (left, top) in enumerate(corners):
        frames[frame] = show(
            canvas[top : top + SIDE, left : left + SIDE],
            looks=looks,
            poses=(actor[frame], bystander[frame]),
            opacity=opacity[frame],
            rng=rng,
        )
    return frames


def _poses(rng: np.random.Generator, *, scale: tuple[float, float]) -> NDArray[np.floating]:
    """Poses of an object at rest near the middle of the frame, (FRAMES, 5)."""
    pose = np.zeros((FRAMES, 5), np.float32)
    pose[:, [X, Y]] = rng.uniform(0.35, 0.65, size=2) * SIDE
    pose[:, SCALE] = rng.uniform(*scale)
    pose[:, ANGLE] = rng.uniform(0, 2 * np.pi)
    pose[:, LIGHT] = 1.0
    return pose
