"""Measure what a training sample costs before it reaches the model: CPU seconds by stage and reader, frames a second.

    python tools/bench/data.py                        # makes a video of 320 x 240, 30 frames a second, H.264
    python tools/bench/data.py --video match.mp4 --recipe thumos14_videomae_s --samples 8 --workers 1 2 4

Ways, sample by sample in turn, each in this process and with one thread: the readers of `data.reader`, and "reference",
the published pipelines' way: decord, then frame by frame OpenCV (resize, crop, flip, jitter) and Pillow (RandAugment).
CPU seconds are the process's own (user and system), so that other load on the machine matters little; the best of the
ways to compare is their ratio. `--workers` starts worker processes and counts frames a second by the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # runs from a fresh clone, without installing

import av
import numpy as np
import torch

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.augmentation.transforms import augment
from adatad_ds.data.decoding.frames import Backend, Frames, read_frames
from adatad_ds.data.decoding.video import probe
from adatad_ds.data.loader import TrainBatches, make_train_loader
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.utf8 import use_utf8

WIDTH, HEIGHT, FPS = 320, 240, 30
READERS: tuple[Backend, ...] = ("pyav", "torchcodec", "decord")
Row = dict[str, float | str]
Way = Backend | Literal["reference"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="thumos14_videomae_s", help="%(default)s; its data section")
    parser.add_argument("--video", type=Path, help="a file to read; default: one is made in --folder")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "data/bench")
    parser.add_argument("--samples", type=int, default=4, help="of each way, %(default)s")
    parser.add_argument("--ways", nargs="+", choices=(*READERS, "reference"), default=[*READERS, "reference"])
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="also by the clock with so many processes")
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = find_recipe(arguments.recipe).config.data
    video = arguments.video or make_video(arguments.folder / "bench.mp4", frames=config.window_frames * 4 + 40)
    ways = [way for way in arguments.ways if available(way)]
    rows = measure(ways, video, config=config, samples=arguments.samples)
    print(f"{video.name}, {config.window_frames} frames a sample, {arguments.samples} samples; CPU seconds a sample")
    print(f"{'way':<12} {'decode':>8} {'augment':>8} {'total':>8} {'frames/s a core':>16}")
    for row in rows:
        print(
            f"{row['way']:<12} {row['decode_sec']:>8.2f} {row['augment_sec']:>8.2f} {row['total_sec']:>8.2f} "
            f"{row['frames_per_sec']:>16.0f}"
        )
    clocked = [by_the_clock(video, config=config, workers=count) for count in arguments.workers]
    for row in clocked:
        print(f"{row['workers']:.0f} workers: {row['frames_per_sec']:.0f} frames/s by the clock")
    if arguments.json:
        result = {"video": str(video), "recipe": arguments.recipe, "ways": rows, "workers": clocked}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def available(way: Way) -> bool:
    """Whether a way's libraries are there; says so if not."""
    libraries = {"reference": ("decord", "cv2"), "decord": ("decord",), "torchcodec": ("torchcodec",)}
    needed = libraries.get(way, ())
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        print(f"{way}: left out, as {', '.join(missing)} is not installed")
    return not missing


def measure(ways: Sequence[Way], video: Path, *, config: DataConfig, samples: int) -> list[Row]:
    """A row for each way: mean CPU seconds of the stages of a sample."""
    stride = max(1, (probe(video).num_frames - 1) // config.window_frames)
    indices = np.arange(config.window_frames) * min(stride, config.feature_stride_frames or 1)
    spent = {way: [0.0, 0.0] for way in ways}
    for sample in range(-1, samples):  # the first one warms up, on a few frames
        for way in ways:
            wanted = indices if sample >= 0 else indices[:16]
            for stage, sec in enumerate(run(way, video, wanted, config=config, seed=max(sample, 0))):
                spent[way][stage] += sec / samples if sample >= 0 else 0.0
    return [
        {
            "way": way,
            "decode_sec": decode,
            "augment_sec": augmentation,
            "total_sec": decode + augmentation,
            "frames_per_sec": config.window_frames / (decode + augmentation),
        }
        for way, (decode, augmentation) in spent.items()
    ]


def run(way: Way, video: Path, indices: np.ndarray, *, config: DataConfig, seed: int) -> tuple[float, float]:
    """CPU seconds of decoding and scaling, and of augmenting, one sample."""
    rng, began = np.random.default_rng(seed), time.process_time()
    if way == "reference":
        frames = reference_read(video, indices, short_side=config.short_side_before_crop)
        read = time.process_time()
        reference_augment(frames, side=config.resolution, rng=rng)
    else:
        frames = read_frames(
            video, indices, short_side=config.short_side_before_crop, scaling=config.scaling, backend=way
        )
        read = time.process_time()
        augment(frames, resolution=config.resolution, scaling=config.scaling, kinds=config.augment, rng=rng)
    return read - began, time.process_time() - read


def by_the_clock(video: Path, *, config: DataConfig, workers: int, windows: int = 8) -> Row:
    """Frames a second of a loader with worker processes, from its first batch to its last."""
    folder = video.parent / "annotated"
    folder.mkdir(exist_ok=True)
    duration = probe(video).duration_sec
    database = {
        video.stem: {
            "subset": "training",
            "duration": duration,
            "annotations": [{"segment": [0.1 * duration, 0.9 * duration], "label": "run"}],
        }
    }
    annotations = folder / "bench.json"
    annotations.write_text(json.dumps({"database": database}), encoding="utf-8")
    data = replace(
        config,
        annotations=str(annotations),
        videos=str(video.parent),
        train_subset="training",
        classes=(),
        exclude=(),
        exclude_file="",
        workers=workers,
    )
    dataset = WindowDataset.for_training(data, seed=0, repeats=windows)
    keys = TrainBatches(
        num_samples=len(dataset), global_batch=1, data_rank=0, data_ranks=1, micro_batch=1, seed=0
    ).between(0, windows)
    batches = iter(make_train_loader(dataset, batches=keys, config=data, pin_memory=False))
    next(batches)
    began = time.perf_counter()
    count = sum(1 for _ in batches)
    return {"workers": workers, "frames_per_sec": count * config.window_frames / (time.perf_counter() - began)}


# ---- the reference's way


def reference_read(video: Path, indices: np.ndarray, *, short_side: int) -> list[Frames]:
    """decord, then cv2.resize of each frame."""
    import cv2
    import decord

    cv2.setNumThreads(1)
    decoded = decord.VideoReader(str(video), num_threads=1).get_batch(indices).asnumpy()
    height, width = decoded.shape[1:3]
    factor = short_side / min(height, width)
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    return [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in decoded]


def reference_augment(frames: list[Frames], *, side: int, rng: np.random.Generator) -> np.ndarray:
    """Crop, flip, two operations of RandAugment, and jitter, frame by frame, each drawn once."""
    import cv2
    from PIL import Image, ImageEnhance, ImageOps

    height, width = frames[0].shape[:2]
    area, aspect = rng.uniform(0.08, 1) * height * width, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    rows, columns = (min(most, round(math.sqrt(area * f))) for most, f in ((height, 1 / aspect), (width, aspect)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), 27, 1)
    shear, move = np.array([[1, 0.3, 0], [0, 1, 0]]), np.array([[1, 0, 0.18 * side], [0, 1, 0.0]])

    def warped(matrix: Any) -> Callable:
        return lambda image: Image.fromarray(cv2.warpAffine(np.asarray(image), matrix, (side, side)))

    operations = [
        *(warped(matrix) for matrix in (turn, shear, shear, move, move)),
        lambda image: ImageOps.posterize(image, 3),
        lambda image: ImageOps.solarize(image, 230),
        *(
            lambda image, kind=kind: kind(image).enhance(1.72)
            for kind in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)
        ),
        ImageOps.autocontrast,
        ImageOps.equalize,
        ImageOps.invert,
    ]
    chosen = rng.choice(len(operations), size=2, replace=False)
    flip, hue = rng.random() < 0.5, rng.uniform(-0.1, 0.1)
    brightness, contrast, saturation = rng.uniform(0.5, 1.5, size=3).tolist()
    out = []
    for frame in frames:
        image = cv2.resize(frame[top : top + rows, left : left + columns], (side, side))
        image = Image.fromarray(np.ascontiguousarray(image[:, ::-1] if flip else image))
        for index in sorted(chosen):
            image = operations[index](image)
        pixels = np.asarray(image).astype(np.float32) * brightness
        pixels = pixels * contrast + (1 - contrast) * cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        pixels = np.clip(pixels * saturation + (1 - saturation) * grey, 0, 255).astype(np.uint8)
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(hue * 255)) % 180
        out.append(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return np.stack(out)


# ---- a video


def make_video(path: Path, *, frames: int) -> Path:
    """A textured scene under a moving camera, with noise, as x264 encodes it by default; kept for the next time."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    scene = np.zeros((2 * HEIGHT, 2 * WIDTH, 3))
    for size in (4, 16, 80):
        squares = rng.normal(0, size, (2 * HEIGHT // size, 2 * WIDTH // size, 3))
        scene += np.kron(squares, np.ones((size, size, 1)))
    scene = 128 + scene * (45 / scene.std())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            top, left = int(120 + 100 * math.cos(index / 70)), int(160 + 150 * math.sin(index / 90))
            picture = scene[top : top + HEIGHT, left : left + WIDTH] + rng.normal(0, 4, (HEIGHT, WIDTH, 1))
            pixels = np.clip(picture, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    use_utf8()
    raise SystemExit(main())
