"""Training time on this machine, estimated from a few clips through the model and a few windows read from files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from adatad_ds.config.schema import Config
from adatad_ds.data.inspection.training_length import BACKWARD_COST
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.errors import ConfigError
from adatad_ds.models.factory import build_backbone, build_detector
from adatad_ds.planning.memory import backbone_cost, step_flop

TIMED_SEC = 1.0  # target duration of one timed pass
SLOW_SEC = 2.0  # a longer pass is run only once
TIMED_WINDOWS = 2  # read from files
MOST_CLIP_FLOP = 2e12  # per clip and training pass on a CPU; training more there is not practical


@dataclass(frozen=True)
class WindowTime:
    """Seconds per window: training pass, forward pass alone, and reading it in one process."""

    train_sec: float
    forward_sec: float
    read_sec: float


def time_window(config: Config, *, num_classes: int, device: torch.device) -> WindowTime:
    """Time a randomly initialised detector on a window, forward and backward, and reading of training windows.

    Args:
        config: config of the run, with its data in place.
        num_classes: K.
        device: device that it would run on.

    Raises:
        ConfigError: too much for this device.
        DataError: the videos cannot be used.
    """
    clips = config.data.window_frames // config.clip_frames
    clip_flop = step_flop(config) / clips
    if device.type == "cpu" and clip_flop > MOST_CLIP_FLOP:
        raise ConfigError(f"{clip_flop / 1e12:.1f} TFLOP for one clip of {config.clip_frames} frames are for a GPU")
    backbone_train, backbone_forward = _backbone_times(config, clips=clips, device=device)
    head_train, head_forward = _head_times(config, num_classes=num_classes, device=device)
    return WindowTime(
        train_sec=backbone_train + head_train,
        forward_sec=backbone_forward + head_forward,
        read_sec=_reading_time(config),
    )


def step_seconds(times: WindowTime, *, windows: int, config: Config, cores: int, on_gpu: bool) -> tuple[float, float]:
    """Seconds for a number of windows in training, and in evaluation, on one device.

    A GPU computes while the workers read; on a CPU both share the same cores.
    """
    readers = min(cores, max(1, config.data.workers)) if on_gpu else cores
    read_sec = times.read_sec / readers

    def together(compute_sec: float) -> float:
        return windows * (max(compute_sec, read_sec) if on_gpu else compute_sec + read_sec)

    return together(times.train_sec), together(times.forward_sec)


def fp32_is_faster(dtype: torch.dtype) -> bool:
    """Whether this CPU, which may lack instructions for `dtype`, multiplies matrices faster in fp32."""
    seconds = []
    for kind in (torch.float32, dtype):
        matrix = torch.ones((1024, 1024), dtype=kind)
        torch.mm(matrix, matrix)
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - began)
    return seconds[0] < seconds[1]


def _backbone_times(config: Config, *, clips: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a window's training and forward pass through the backbone, extrapolated from a few clips."""
    bare = replace(config, backbone=replace(config.backbone, weights=None))
    model = build_backbone(bare, feature_steps=1).to(device, config.train.dtype)
    side = config.data.resolution

    def passes(count: int) -> tuple[float, float]:
        frames = torch.zeros((1, count * config.clip_frames, side, side, 3), dtype=torch.uint8, device=device)
        return _train_and_forward(lambda: model(frames), device=device)

    train_sec, forward_sec = passes(1)
    count = 1
    if device.type == "cuda":  # one clip does not keep it busy
        count = min(clips, backbone_cost(config).chunk(cuda=True) or clips, max(1, int(TIMED_SEC / train_sec)))
        train_sec, forward_sec = passes(count)
    return train_sec * clips / count, forward_sec * clips / count


def _head_times(config: Config, *, num_classes: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a window's training and forward pass through pyramid and heads."""
    absent = replace(config, backbone=replace(config.backbone, weights="never read"))  # a transformer without memory
    detector = build_detector(absent, num_classes=num_classes)
    pyramid, head = (part.to(device, config.train.dtype) for part in (detector.pyramid, detector.head))
    steps, dtype = config.data.window_size, config.train.dtype
    features = torch.zeros((1, steps, detector.backbone.width), dtype=dtype, device=device)
    valid = torch.ones((1, steps), dtype=torch.bool, device=device)

    def run() -> torch.Tensor:
        predictions = head(*pyramid(features, valid, None))
        return torch.cat([part.flatten() for part in predictions if part.is_floating_point()])

    return _train_and_forward(run, device=device)


def _train_and_forward(run: Callable[[], torch.Tensor], *, device: torch.device) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and of a forward pass alone, after a warm-up."""

    def seconds(action: Callable[[], object]) -> float:
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def train() -> None:
        output = run().float().sum()
        if output.requires_grad:  # a frozen backbone's does not
            output.backward()

    def forward() -> None:
        with torch.no_grad():
            run()

    first_sec = seconds(train)
    if first_sec > SLOW_SEC:  # warm-up hardly matters then, and a second pass would take too long
        return first_sec, first_sec / BACKWARD_COST
    return seconds(train), seconds(forward)


def _reading_time(config: Config) -> float:
    """Mean seconds to decode, scale and augment a training window in one process."""
    data = WindowDataset.for_training(config.data, seed=config.train.seed)
    count = min(TIMED_WINDOWS, len(data))
    began = time.perf_counter()
    for index in range(count):
        data[0, index * len(data) // count]
    return (time.perf_counter() - began) / count
