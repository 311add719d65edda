"""Generated untrimmed videos whose action classes differ only in MOTION.

A scene is a textured, slowly panning background with clutter, a shaking camera and several textured objects. Objects
idle (rest, wander, drift, spin, jump away), and now and then one of them performs an action; actions of two objects may
overlap. Objects, colours and positions carry no information about the class: only the motion does.

F frames of a video, H x W pixels; a pose is (x, y, scale, angle, brightness) of an object in one frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.generated.scenery import (
    ANGLE,
    HEIGHT,
    LIGHT,
    SCALE,
    WIDTH,
    Scene,
    X,
    Y,
    random_background,
    random_look,
    render,
)

CLASSES = ("blink", "grow", "left", "right", "up")
FRAME_RATES = (8, 10, 12)
DURATION_SEC = (15.0, 40.0)
MIN_DURATION_SEC = 2.0

# The first word of every seed, so that different purposes never share generated videos.
Purpose = Literal["training", "test", "pretraining"]
_STREAMS: dict[str, int] = {"training": 1, "test": 2, "pretraining": 3}

# Shortest and longest action, and stroke, in seconds: an action repeats the same stroke.
_ACTION_SEC = (1.5, 6.0)
_STROKE_SEC = (0.9, 1.6)
_HEADINGS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0)}
_IDLE_KINDS = ("rest", "wander", "drift", "spin", "jump")
_IDLE_ODDS = (0.4, 0.2, 0.15, 0.15, 0.1)
_REST_BOX = (30.0, 26.0, 82.0, 70.0)  # x0, y0, x1, y1: an action that starts here stays inside the centre crop


@dataclass(frozen=True)
class Action:
    """One ground-truth segment, in seconds."""

    start_sec: float
    end_sec: float
    label: str


@dataclass(frozen=True, kw_only=True)
class SyntheticVideo:
    """A generated video: its scene and the actions in it."""

    scene: Scene
    fps: int
    frame_count: int
    actions: tuple[Action, ...]

    @property
    def duration_sec(self) -> float:
        """Length of the video."""
        return self.frame_count / self.fps

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Its frames, each (H, W, 3) RGB."""
        return render(self.scene)


def generator(purpose: Purpose, seed: int, index: int) -> np.random.Generator:
    """Random generator of item `index` for a purpose; different for every purpose, seed and item."""
    return np.random.default_rng(np.random.SeedSequence([_STREAMS[purpose], seed, index]))


def make_video(rng: np.random.Generator, *, duration_sec: tuple[float, float] = DURATION_SEC) -> SyntheticVideo:
    """Generate a random video: length within `duration_sec`, frame rate, objects and their motions."""
    fps = int(rng.choice(FRAME_RATES))
    count = int(rng.uniform(*duration_sec) * fps)
    objects = int(rng.integers(2, 4))
    plan = _plan_actions(rng, objects=objects, seconds=count / fps)
    poses = np.empty((objects, count, 5), np.float32)
    actions = []
    for index in range(objects):
        frame = 0
        pose = random_pose(rng)
        own = [(int(start * fps), int(end * fps), label) for who, start, end, label in plan if who == index]
        for start, end, label in own:
            pose = _idle(rng, poses[index, frame:start], pose, fps=fps)
            poses[index, start:end] = move(rng, label, pose, frames=end - start, fps=fps)
            actions.append(Action(start / fps, end / fps, label))
            frame = end  # back at its pose
        _idle(rng, poses[index, frame:], pose, fps=fps)
    scene = make_scene(rng, poses=poses, fps=fps)
    ordered = tuple(sorted(actions, key=lambda action: action.start_sec))
    return SyntheticVideo(scene=scene, fps=fps, frame_count=count, actions=ordered)


def make_scene(rng: np.random.Generator, *, poses: NDArray[np.floating], fps: float) -> Scene:
    """Make a scene of poses (objects, F, 5), with random looks, background and camera."""
    count = poses.shape[1]
    time_sec = np.arange(count) / fps
    margin = 24
    period_sec = rng.uniform(15, 45, size=2)
    pan = 0.5 * margin * (1 + np.sin(2 * np.pi * (time_sec[:, None] / period_sec + rng.random(2))))
    camera = _shake(rng, count, sigma=rng.uniform(0.1, 0.6))
    exposure = 1 + 0.08 * np.sin(2 * np.pi * (time_sec / rng.uniform(4, 12) + rng.random()))
    view = np.clip(pan + 4 - camera, 0, margin + 8 - 1e-3)
    return Scene(
        canvas=random_background(rng, height=HEIGHT + margin + 9, width=WIDTH + margin + 9),
        view=view.astype(np.float32),
        camera=camera.astype(np.float32),
        exposure=exposure.astype(np.float32),
        looks=[random_look(rng) for _ in range(len(poses))],
        poses=poses,
        grain_seed=int(rng.integers(2**31)),
    )


# ---- motion ----------------------------------------------------------------------------------------------------------


def random_pose(rng: np.random.Generator) -> NDArray[np.floating]:
    """A random pose of an object at rest, (5,)."""
    x0, y0, x1, y1 = _REST_BOX
    scale = rng.uniform(0.9, 1.6)
    return np.array([rng.uniform(x0, x1), rng.uniform(y0, y1), scale, rng.uniform(0, 2 * np.pi), 1.0], np.float32)


def move(
    rng: np.random.Generator, kind: str, pose: NDArray[np.floating], *, frames: int, fps: float
) -> NDArray[np.floating]:
    """Poses (frames, 5) of an action or an idle motion that continues from `pose`.

    Each stroke of `left`, `right`, `up` and `grow` starts at the same pose.
    """
    path = np.repeat(pose[None], frames, axis=0).astype(np.float32)
    seconds = frames / fps
    share = np.arange(1, frames + 1) / max(frames, 1)  # of the motion completed at each frame
    strokes = max(1, round(seconds / rng.uniform(*_STROKE_SEC)))
    stroke = (np.arange(frames) / max(frames, 1) * strokes) % 1 - 0.5  # -0.5 to 0.5 in each
    if kind in _HEADINGS:
        reach = rng.uniform(22, 34)
        path[:, X] += reach * stroke * _HEADINGS[kind][0]
        path[:, Y] += reach * stroke * _HEADINGS[kind][1]
    elif kind == "grow":
        path[:, SCALE] *= np.exp(rng.uniform(0.6, 0.9) * stroke)
    elif kind == "blink":
        path[:, LIGHT] = 0.65 + 0.35 * np.cos(2 * np.pi * 2 * strokes * share)
    elif kind == "wander":
        path[:, :2] += np.cumsum(_smooth_noise(rng, frames) * rng.uniform(4, 10) / fps, axis=0)
    elif kind == "drift":
        heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(2, 6)
        path[:, X] += speed * seconds * share * np.cos(heading)
        path[:, Y] += speed * seconds * share * np.sin(heading)
    elif kind == "spin":
        path[:, ANGLE] += rng.choice([-1, 1]) * rng.uniform(1.5, 5) * seconds * share
    elif kind == "jump":
        target = random_pose(rng)
        step = np.clip(share * seconds / rng.uniform(0.3, 0.8), 0, 1)
        path[:, :2] += (target[:2] - pose[:2]) * (step * step * (3 - 2 * step))[:, None]
    else:
        assert kind == "rest", kind
    return path


def _plan_actions(rng: np.random.Generator, *, objects: int, seconds: float) -> list[tuple[int, float, float, str]]:
    """(object, start, end, label) by start, with idle stretches in between and a few overlaps."""
    plan: list[tuple[int, float, float, str]] = []
    free_at = np.zeros(objects)
    now = rng.uniform(0.5, 4.0)
    bag: list[str] = []
    while True:
        bag = bag or list(rng.permutation(CLASSES))
        label = str(bag.pop())
        length = np.exp(rng.uniform(*np.log(_ACTION_SEC)))
        free = np.flatnonzero(free_at + 0.5 <= now)
        if now + length > seconds - 0.3:
            return plan
        if free.size:
            who = int(rng.choice(free))
            plan.append((who, now, now + length, label))
            free_at[who] = now + length
        overlap = rng.random() < 0.1
        now += rng.uniform(0.3, 0.8) * length if overlap else length + rng.uniform(0.8, 5.0)


def _idle(
    rng: np.random.Generator, out: NDArray[np.floating], pose: NDArray[np.floating], *, fps: int
) -> NDArray[np.floating]:
    """Fill `out` (frames, 5) with idle motions; returns the last pose, where an action may start."""
    frame = 0
    while frame < len(out):
        stop = min(len(out), frame + max(1, int(rng.uniform(0.8, 3.5) * fps)))
        kind = str(rng.choice(_IDLE_KINDS, p=_IDLE_ODDS))
        out[frame:stop] = move(rng, kind, pose, frames=stop - frame, fps=fps)
        x0, y0, x1, y1 = _REST_BOX
        out[frame:stop, X] = _reflect(out[frame:stop, X], x0, x1)
        out[frame:stop, Y] = _reflect(out[frame:stop, Y], y0, y1)
        pose, frame = out[stop - 1].copy(), stop
    return pose


def _reflect(x: NDArray[np.floating], low: float, high: float) -> NDArray[np.floating]:
    """Reflect values into [low, high], like a ball between two walls."""
    span = high - low
    return low + span - np.abs((x - low) % (2 * span) - span)


def _smooth_noise(rng: np.random.Generator, count: int) -> NDArray[np.floating]:
    """A slowly changing 2-D vector of about unit length, (count, 2)."""
    out = np.empty((count, 2))
    value = rng.normal(size=2)
    for i in range(count):
        value = 0.85 * value + 0.53 * rng.normal(size=2)
        out[i] = value
    return out


def _shake(rng: np.random.Generator, count: int, *, sigma: float) -> NDArray[np.floating]:
    """A hand-held camera's displacement in pixels, at most 4, (count, 2)."""
    return np.clip(sigma * _smooth_noise(rng, count), -4, 4)


# ---- files -----------------------------------------------------------------------------------------------------------


def write_video(video: SyntheticVideo, path: Path) -> None:
    """Encode a video's frames."""
    encode(video.frames(), path, fps=video.fps, width=WIDTH, height=HEIGHT)


def encode(pictures: Iterable[NDArray[np.uint8]], path: Path, *, fps: int, width: int, height: int) -> None:
    """Encode RGB pictures (height, width, 3) as H.264 (yuv420p, B-frames, a keyframe at least every 48 frames)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # videos are encoded in parallel
        # Without mbtree: it adds up in fp32, in an order of the machine, and the others would get other videos.
        stream.options = {"crf": "24", "preset": "veryfast", "bf": "2", "g": "48", "mbtree": "0"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def annotation(video: SyntheticVideo, *, subset: str) -> dict[str, object]:
    """The video's entry in an annotation file of the community format; times in seconds."""
    return {
        "subset": subset,
        "duration": video.duration_sec,
        "frame": video.frame_count,
        "fps": video.fps,
        "annotations": [
            {"segment": [action.start_sec, action.end_sec], "label": action.label} for action in video.actions
        ],
    }
