"""Measure what a training sample costs before it reaches the model: CPU seconds by stage, file and reader.

    python tools/bench/data.py                        # makes a video of 320 x 240, 30 frames a second, H.264
    python tools/bench/data.py --video match.mp4 --recipe thumos14_videomae_s --samples 8 --workers 1 2 4
    python tools/bench/data.py --before ../adatad_before       # a checkout of an earlier commit (git worktree)

Files: the original, and what `prepare-videos` makes of it with each codec. Ways, sample by sample in turn, each with
one thread: the readers of `data.reader`; "reference", the published pipelines' way: decord, then frame by frame OpenCV
(resize, crop, flip, jitter) and Pillow (RandAugment); and "before", another commit's code.

Stages: `decode` decodes and scales; `cropped` crops, too, which is all that a worker does with
`data.augment_on_device=true`; `all` has all augmentations. CPU seconds are the process's own (user and system), so that
other load on the machine matters little; their ratio is what compares. `--workers` starts worker processes and counts
frames a second by the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # runs from a fresh clone, without installing

import av
import numpy as np
import torch

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.augmentation.transforms import augment, crop_and_draw
from adatad_ds.data.decoding.frames import Backend, VideoFrames, read_frames
from adatad_ds.data.decoding.prepared import MANIFEST, Codec, Header, header_line
from adatad_ds.data.decoding.video import decoded_frames, opened, packets_of, probe
from adatad_ds.data.loader import TrainBatches, make_train_loader
from adatad_ds.data.preparation.encoding import QUALITY, SUFFIXES, prepare_file
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.data.worker_process import keep_freed_memory
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.utf8 import use_utf8
from tools.bench.reference_data import OtherCheckout, reference_augment, reference_read

WIDTH, HEIGHT, FPS = 320, 240, 30
READERS: tuple[Backend, ...] = ("auto", "pyav", "torchcodec", "decord")
LIBRARIES = {"reference": ("decord", "cv2"), "decord": ("decord",), "torchcodec": ("torchcodec",)}
WARM_UP = 16  # frames
Stages = tuple[float, float, float]  # CPU seconds: decode, cropped, all
Way = Callable[[int, int], Stages]  # of a seed and a number of frames
Row = dict[str, float | str]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="thumos14_videomae_s", help="%(default)s; its data section")
    parser.add_argument("--video", type=Path, help="a file to read; default: one is made in --folder")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "data/bench")
    parser.add_argument("--samples", type=int, default=4, help="of each way, %(default)s")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=["auto", "pyav", "decord", "torchcodec"])
    parser.add_argument("--codecs", nargs="*", choices=tuple(QUALITY), default=list(QUALITY), help="of prepared files")
    parser.add_argument("--before", type=Path, help="a checkout of another commit, to compare with")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="also by the clock with so many processes")
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    config = find_recipe(arguments.recipe).config.data
    stride = config.frame_stride
    video = arguments.video or make_video(arguments.folder / "texture.mp4", frames=config.window_frames * stride + 40)
    indices = np.minimum(np.arange(config.window_frames) * stride, probe(video).num_frames - 1)
    files, prepared = {"original": video}, []
    for codec in arguments.codecs:
        files[codec], row = prepare(video, codec, arguments.folder, config=config)
        prepared.append(row)
    ways: dict[tuple[str, str], Way] = {}
    for name, path in files.items():
        for reader in [reader for reader in arguments.readers if available(reader)]:
            ways[name, reader] = partial(by_reader, reader, path, indices, config)
    if available("reference"):
        ways["original", "reference"] = partial(by_reference, video, indices, config)
    other = other_checkout(arguments.before, video, indices, config) if arguments.before else None
    if other is not None:
        ways["original", "before"] = partial(by_checkout, other)
    rows = measure(ways, samples=arguments.samples, frames=config.window_frames)
    if other is not None:
        other.close()
    print(f"{video.name}, {config.window_frames} frames a sample, {arguments.samples} samples; CPU seconds a sample")
    print(f"{'file':<10} {'way':<12} {'decode':>8} {'cropped':>8} {'all':>8} {'frames/s a core, cropped and all':>34}")
    for row in rows:
        print(
            f"{row['file']:<10} {row['way']:<12} {row['decode_sec']:>8.3f} {row['cropped_sec']:>8.3f} "
            f"{row['all_sec']:>8.3f} {row['cropped_frames_per_sec']:>22.0f} {row['all_frames_per_sec']:>11.0f}"
        )
    for row in prepared:
        print(
            f"prepare {row['codec']:<10} {row['prepare_sec']:.2f} CPU s, {row['over_decoding']:.2f} of decoding all "
            f"frames once, {row['over_reading']:.2f} of decoding and scaling those kept; {row['megabytes']:.1f} MB of "
            f"{row['original_megabytes']:.1f}, {row['db']:.1f} dB, worst frame {row['worst_db']:.1f}"
        )
    clocked = [by_the_clock(video, config=config, workers=count) for count in arguments.workers]
    for row in clocked:
        print(f"{row['workers']:.0f} workers: {row['frames_per_sec']:.0f} frames/s by the clock")
    if arguments.json:
        result = {"video": str(video), "recipe": arguments.recipe, "ways": rows}
        text = json.dumps(result | {"prepared": prepared, "workers": clocked}, indent=1) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    return 0


def available(way: str) -> bool:
    """Whether a way's libraries are there; says so if not."""
    missing = [name for name in LIBRARIES.get(way, ()) if find_spec(name) is None]
    if missing:
        print(f"{way}: left out, as {', '.join(missing)} is not installed")
    return not missing


def measure(ways: dict[tuple[str, str], Way], *, samples: int, frames: int) -> list[Row]:
    """A row for each way: mean CPU seconds of a sample, up to each stage."""
    spent = {way: np.zeros(3) for way in ways}
    for sample in range(-1, samples):  # the first one warms up, on a few frames
        for way, run in ways.items():
            stages = np.array(run(max(sample, 0), frames if sample >= 0 else WARM_UP))
            spent[way] += stages / samples if sample >= 0 else 0.0
    return [
        {
            "file": file,
            "way": way,
            "decode_sec": float(decode),
            "cropped_sec": float(cropped),
            "all_sec": float(whole),
            "cropped_frames_per_sec": frames / float(cropped),
            "all_frames_per_sec": frames / float(whole),
        }
        for (file, way), (decode, cropped, whole) in spent.items()
    ]


def cpu_sec(work: Callable[[], object]) -> float:
    """CPU seconds of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def by_reader(reader: Backend, video: Path, indices: np.ndarray, config: DataConfig, seed: int, count: int) -> Stages:
    """By the package's code, as a worker does it."""

    def frames() -> VideoFrames:
        side = config.short_side_before_crop
        return VideoFrames(video, indices[:count], short_side=side, scaling=config.scaling, backend=reader)

    def way(kinds: Sequence[str]) -> dict:
        rng, out = np.random.default_rng(seed), torch.empty((count, *2 * (config.resolution,), 3), dtype=torch.uint8)
        return {"resolution": config.resolution, "scaling": config.scaling, "kinds": kinds, "rng": rng, "out": out}

    return (
        cpu_sec(lambda: [None for _ in frames()]),
        cpu_sec(lambda: crop_and_draw(frames(), **way(config.augment))),
        cpu_sec(lambda: augment(frames(), **way(config.augment))),
    )


def by_reference(video: Path, indices: np.ndarray, config: DataConfig, seed: int, count: int) -> Stages:
    """As the published pipelines do; they have no stage of cropping alone."""
    began = time.process_time()
    frames = reference_read(video, indices[:count], short_side=config.short_side_before_crop)
    read = time.process_time() - began
    reference_augment(frames, side=config.resolution, rng=np.random.default_rng(seed))
    return read, math.nan, time.process_time() - began


def by_checkout(other: OtherCheckout, seed: int, count: int) -> Stages:
    """By another commit's code."""
    decode, augmentation = other.sample(seed, count)
    return decode, math.nan, decode + augmentation


def other_checkout(folder: Path, video: Path, indices: np.ndarray, config: DataConfig) -> OtherCheckout:
    """Another commit's code, for the same samples."""
    sizes = {"short_side": config.short_side_before_crop, "resolution": config.resolution}
    return OtherCheckout(folder, video, indices, **sizes, scaling=config.scaling, kinds=config.augment)


def prepare(video: Path, codec: Codec, folder: Path, *, config: DataConfig) -> tuple[Path, Row]:
    """A video's prepared file, and what it took, in turn with decoding and reading the original, least of three."""
    target = folder / codec / f"{video.stem}{SUFFIXES[codec]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    last, side = probe(video).num_frames - 1, config.short_side_before_crop
    held = np.union1d(np.arange(0, last + 1, config.frame_stride), [last])
    header = Header(codec=codec, quality=QUALITY[codec], scaling=config.scaling)

    def write() -> None:
        entry = prepare_file(video, target, frames=held, short_side=side, header=header)
        lines = header_line(header) + json.dumps(asdict(entry)) + "\n"
        (target.parent / MANIFEST).write_text(lines, encoding="utf-8")

    def frames(path: Path, reader: Backend) -> np.ndarray:
        return read_frames(path, held, short_side=side, scaling=config.scaling, backend=reader)

    def read() -> None:
        for _ in VideoFrames(video, held, short_side=side, scaling=config.scaling, backend="pyav"):
            pass

    spent = np.array([[cpu_sec(work) for work in (lambda: decode(video), read, write)] for _ in range(3)]).min(0)
    apart = frames(target, "auto").astype(np.float32) - frames(video, "pyav")
    errors = np.square(apart).mean((1, 2, 3)).clip(1e-9)
    return target, {
        "codec": codec,
        "prepare_sec": float(spent[2]),
        "over_decoding": float(spent[2] / spent[0]),
        "over_reading": float(spent[2] / spent[1]),
        "megabytes": target.stat().st_size / 1e6,
        "original_megabytes": video.stat().st_size / 1e6,
        "db": float(10 * np.log10(255**2 / errors.mean())),
        "worst_db": float(10 * np.log10(255**2 / errors.max())),
    }


def decode(path: Path) -> None:
    """Decode all frames of a file, no more."""
    with opened(path, num_threads=1) as (container, stream):
        for packet in packets_of(container, stream):
            decoded_frames(stream, packet)


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


# ---- a video


def make_video(path: Path, *, frames: int) -> Path:
    """A coloured texture with detail at every scale, as of photographs, under a moving camera, with some noise.

    As x264 encodes it by default; kept for the next time.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, shape = np.random.default_rng(0), (2 * HEIGHT, 2 * WIDTH)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    frequency[0, 0] = 1
    grey, *colours = rng.standard_normal((4, *shape))
    channels = [np.fft.irfft2(np.fft.rfft2(grey + 0.3 * colour) / frequency**1.25, shape) for colour in colours]
    scene = np.stack([128 + 45 * channel / channel.std() for channel in channels], axis=-1).clip(0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(frames):
            top, left = int(120 + 100 * math.cos(index / 70)), int(160 + 150 * math.sin(index / 90))
            picture = scene[top : top + HEIGHT, left : left + WIDTH] + rng.normal(0, 3, (HEIGHT, WIDTH, 1))
            pixels = np.clip(picture, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    use_utf8()
    raise SystemExit(main())
