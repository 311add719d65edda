"""How fast this machine's cores make frames, and how many of them each recipe needs."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.data.generated.videos import encode
from adatad_ds.data.loader import TrainBatches, make_train_loader
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.distributed.world import World
from tools.gpu_parts.record import Recorder
from tools.gpu_parts.steps import BASE, GIANT, SMALL, Setting, config_of
from tools.gpu_parts.whole_step import WholeStep

FPS, WIDTH, HEIGHT = 30, 320, 240


def run(record: Recorder, device: torch.device) -> None:
    """Samples a second of one core, workers needed, and how long training waits for them."""
    setting = Setting("quickstart", 64, 64, "zero2") if record.miniature else Setting(SMALL, 768, 160, "zero2")
    config = config_of(setting)
    cores = len(os.sched_getaffinity(0))
    steps = 2 if record.miniature else 30
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = replace(config.data, workers=max(1, cores - 2) if not record.miniature else 1)
        config = replace(config, data=_with_videos(data, folder, videos=2))
        dataset = WindowDataset.for_training(config.data, seed=0, repeats=2 * steps)
        plain = replace(config.data, augment=())
        unaugmented = WindowDataset.for_training(plain, seed=0, repeats=2 * steps)
        decode_sec, sample_sec = (_seconds(each, count=1 if record.miniature else 3) for each in (unaugmented, dataset))
        frames = config.sample_frames
        record.amount(f"{setting}: frames of one core, decoded alone", frames / decode_sec, "frames/s")
        record.amount(f"{setting}: frames of one core, with augmentation", frames / sample_sec, "frames/s")
        _workers_needed(record, sample_sec)
        _waiting(record, setting, config, dataset, steps=steps)


def _seconds(dataset: WindowDataset, *, count: int) -> float:
    torch.set_num_threads(1)
    dataset[0, 0]  # libraries are loaded
    began = time.perf_counter()
    for index in range(count):
        sample = dataset[0, index]
        assert sample.error is None, sample.error
    return (time.perf_counter() - began) / count


def _workers_needed(record: Recorder, sample_sec: float) -> None:
    for recipe in (SMALL, BASE, GIANT):
        setting = Setting(recipe, 768, 160, "zero2")
        step_sec = record.fact(f"{setting}, chunks of {setting.chunk}: seconds a step of 2 windows")
        if step_sec:
            record.amount(f"{setting}: workers that keep up with a GPU", math.ceil(2 * sample_sec / step_sec), "")


def _waiting(record: Recorder, setting: Setting, config: Config, dataset: WindowDataset, *, steps: int) -> None:
    world = World.join()
    try:
        step = WholeStep(config, ds_config=read_ds_config(Path("ds_configs/zero2.json")), world=world)
        batches = TrainBatches(
            num_samples=len(dataset), global_batch=2, data_rank=0, data_ranks=1, micro_batch=1, seed=0
        )
        loader = make_train_loader(
            dataset, batches=batches.between(0, steps), config=config.data, pin_memory=world.device.type == "cuda"
        )
        waited, micro_batches, began = 0.0, iter(loader), time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            accumulated = list(islice(micro_batches, step.engine.accumulation))
            waited += time.perf_counter() - asked
            step(accumulated).item()
        total = time.perf_counter() - began
        what = f"{setting}: {steps} steps with {config.data.workers} workers, share of the time waiting for data"
        record.amount(what, 100 * waited / total, "%", high=10, more_is_better=False)
        step.close()
    finally:
        world.leave()


def _with_videos(data: DataConfig, folder: Path, *, videos: int) -> DataConfig:
    """Textured H.264 videos of THUMOS14's size and rate, long enough for a window, and their annotations."""
    assert data.feature_stride_frames is not None
    count = data.window_size * data.feature_stride_frames + FPS
    random = np.random.default_rng(0)
    canvas = random.integers(0, 256, (HEIGHT // 8 + 16, WIDTH // 8 + 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    database = {}
    for index in range(videos):
        shifts = ((np.arange(count) * (index + 1)) // 2) % 128
        pictures = (np.ascontiguousarray(canvas[s : s + HEIGHT, s : s + WIDTH]) for s in shifts)
        encode(pictures, folder / f"video_{index}.mp4", fps=FPS, width=WIDTH, height=HEIGHT)
        actions = [{"segment": [1.0, count / FPS / 2], "label": "action"}]
        entry = {"duration": count / FPS, "frame": count, "fps": FPS, "annotations": actions}
        database[f"video_{index}"] = entry | {"subset": data.train_subset}
    (folder / "annotations.json").write_text(json.dumps({"database": database}), encoding="utf-8")
    return replace(data, annotations=str(folder / "annotations.json"), videos=str(folder))
