"""What a GPU takes in frames, against what a core gives."""

from __future__ import annotations

from dataclasses import replace

from adatad_ds.config.schema import Config, TrainConfig
from adatad_ds.planning.layouts import frames_line


def test_frames_and_cores():
    config = replace(Config(train=TrainConfig(global_batch=4))).with_sample_frames(768)
    line = frames_line(config, gpus=2, step_sec=0.5, core_frames_per_sec=200.0)
    assert line == "frames at that speed: 3072 per second and GPU; at 200 per core: 16 cores per GPU"
    assert "tools/bench/data.py measures" in frames_line(config, gpus=2, step_sec=0.5, core_frames_per_sec=None)
