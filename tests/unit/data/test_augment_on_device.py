"""Augmentation left to the device: the same draws, by the same steps, as in the workers; here on CPU tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import Augmentation, DataConfig
from adatad_ds.data.augmentation.transforms import apply_steps, augment, crop_and_draw
from adatad_ds.data.loader import TrainBatches, make_train_loader
from adatad_ds.data.video_dataset import frames_on
from adatad_ds.data.window_dataset import WindowDataset
from tests.support.videos import write_video

SIDE = 32
ALL = get_args(Augmentation)
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(4))
def test_two_parts_are_the_whole(seed: int):
    frames = np.random.default_rng(9).integers(0, 256, (11, 40, 52, 3), dtype=np.uint8)
    way = {"resolution": SIDE, "scaling": "bilinear", "kinds": ALL}
    whole = augment(frames, **way, rng=np.random.default_rng(seed))
    cropped, steps = crop_and_draw(frames, **way, rng=np.random.default_rng(seed))
    batch = torch.stack([cropped, cropped])
    apply_steps(batch, [steps, ()])
    assert torch.equal(batch[0], whole)
    assert torch.equal(batch[1], cropped)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("device")
    entry = {"subset": "training", "duration": 6.0, "annotations": [{"segment": [1.0, 5.0], "label": "run"}]}
    (folder / "a.json").write_text(json.dumps({"database": {"a": entry, "b": entry}}))
    for name in "ab":
        write_video(folder / f"{name}.mp4", frames=60)
    return DataConfig(
        annotations=str(folder / "a.json"),
        videos=str(folder),
        window_size=16,
        feature_stride_frames=2,
        resolution=SIDE,
        short_side_before_crop=40,
        workers=1,
        crop_ratio=None,
    )


@pytest.mark.slow
def test_samples_are_those_of_the_workers(config: DataConfig):
    """Through worker processes and collation; padding and unreadable samples have nothing left to do."""
    there = WindowDataset.for_training(config, seed=3)
    here = WindowDataset.for_training(replace(config, augment_on_device=True), seed=3)
    keys = TrainBatches(num_samples=2, global_batch=2, data_rank=0, data_ranks=1, micro_batch=2, seed=0).between(0, 2)
    pairs = [
        make_train_loader(data, batches=keys, config=way, pin_memory=False)
        for data, way in ((there, config), (here, replace(config, workers=0)))
    ]
    for theirs, ours in zip(*pairs, strict=True):
        assert not any(theirs.steps)
        assert all(ours.steps)
        before = ours.frames.clone()
        assert torch.equal(frames_on(CPU, ours.frames, ours.steps), theirs.frames)
        assert not torch.equal(before, theirs.frames)
        assert torch.equal(ours.frames, before)
        assert theirs.seconds.decode > 0
        assert theirs.seconds.augment > 0
        assert ours.seconds.augment > 0  # the crop
    batch = here.collate([here[0, 0], here[None]])
    assert not frames_on(CPU, batch.frames, batch.steps)[1].any()
