"""Random weights and windows in the place of pretrained ones and videos."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import AnnotationSet
from adatad_ds.data.batch import Batch
from adatad_ds.data.window_dataset import WindowDataset
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.clips import chunk_size
from adatad_ds.models.transformers import backbone_spec
from adatad_ds.tasks.detection import DetectionTask
from adatad_ds.weights.files import StoredTensor

CLASSES = 20


def default_chunk(backbone: str, pixels: int) -> int:
    """Clips that a GPU runs at once where nobody says how many."""
    spec = backbone_spec(backbone)
    return chunk_size(None, spec=spec, clip_tokens=8 * spec.positions(pixels), cuda=True)


def random_tensors(module: nn.Module, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """Weights that stand in for pretrained ones: small random matrices, plain norms, no biases."""
    tensors = {}
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        is_scale = name.endswith("weight") and len(shape) == 1
        tensors[name] = StoredTensor(shape=shape, read=partial(_random, shape, dtype, is_scale))
    return tensors


@cache  # blocks of one shape share their numbers: drawing a billion of them would take longer than what is measured
def _random(shape: tuple[int, ...], dtype: torch.dtype, is_scale: bool) -> Tensor:
    if len(shape) == 1:
        return torch.full(shape, float(is_scale), dtype=dtype)
    return torch.empty(shape).normal_(std=0.02, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def task_without_videos(config: Config, *, world: World) -> DetectionTask:
    """Detection of `CLASSES` classes, for steps on batches of one's own."""
    nothing = AnnotationSet(videos=(), classes=tuple(f"class {index}" for index in range(CLASSES)))
    data = WindowDataset(config=config.data, annotations=nothing, paths={}, training=True)
    return DetectionTask(config=config, mesh=Mesh(world=world, config=config), train_data=data, test_data=data)


def random_batch(config: Config, *, windows: int, pin: bool = False) -> Batch:
    """Windows of random frames with three actions each."""
    generator = torch.Generator().manual_seed(0)
    steps, side = config.data.window_size, config.data.resolution
    frames = torch.randint(
        256, (windows, config.data.window_frames, side, side, 3), dtype=torch.uint8, generator=generator
    )
    segments = torch.tensor([[0.1, 0.15], [0.3, 0.5], [0.55, 0.9]]) * steps
    batch = Batch(
        frames=frames,
        valid=torch.ones(windows, steps, dtype=torch.bool),
        segments=[segments] * windows,
        labels=[torch.tensor([0, 1, 2])] * windows,
        grids=[],
        videos=["random"] * windows,
        sample_ids=list(range(windows)),
        seeds=torch.arange(windows),
        errors=[None] * windows,
        damage=[None] * windows,
        padding=[False] * windows,
    )
    return batch.pin_memory() if pin else batch
