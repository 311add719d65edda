"""The same numbers on the GPU as on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from adatad_ds.config.schema import Config
from adatad_ds.distributed.world import World
from adatad_ds.models.detector import Detector, Predictions
from adatad_ds.models.execution.activation_store import Storage, StoragePolicy
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.factory import Runtime, build_detector
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.weights.loading import fill_backbone, find_weights
from tools.gpu_parts.inputs import CLASSES, random_batch, task_without_videos
from tools.gpu_parts.record import Recorder

# Relative to the largest number of its kind: fp32 without TF32, as the golden numerics are compared; bf16 has 8 bits.
MOST = {"fp32": {"loss": 1e-5, "features": 1e-4, "gradients": 1e-3}, "bf16": {"loss": 2e-2, "features": 5e-2}}


def run(record: Recorder, device: torch.device) -> None:
    """Losses, features and gradients of the quickstart's model, run in several ways, against fp32 on a CPU.

    The CPU's own numbers are held to the published implementations' by tests/golden.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = find_recipe("quickstart").config
    if record.miniature:
        config = replace(config, data=replace(config.data, window_size=32, resolution=32))
    expected = compute(config, torch.device("cpu"), precision="fp32")
    recomputed = replace(config.backbone, activation_checkpointing=True, clips_per_chunk=2)
    ways = [
        ("every graph kept", config.backbone, Runtime()),
        ("recomputed in chunks", recomputed, Runtime()),
        ("some graphs kept", recomputed, Runtime(retention=Retention(graphs=9))),
        ("inputs made again", recomputed, Runtime(retention=Retention(inputs=3))),
    ]
    if device.type == "cuda":
        ways.append(("stored on the host", recomputed, Runtime(storage=Storage(StoragePolicy(offload=True)))))
    for name, backbone, runtime in ways:
        for precision in ("fp32", "bf16") if name == "recomputed in chunks" or not record.miniature else ("fp32",):
            changed = replace(config, backbone=backbone)
            try:
                actual = compute(changed, device, precision=precision, runtime=runtime)
            except RuntimeError as error:
                record.failed(f"{precision}, {name}", error)
                continue
            for kind, most in MOST[precision].items():
                what = f"{precision}, {name}: largest relative difference of {kind} from the CPU's fp32"
                record.difference(what, _difference(actual[kind], expected[kind]), most=most)


class Autograd:
    """An engine of one micro batch a step that leaves its gradients."""

    accumulation = 1

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def __call__(self, *inputs: Tensor) -> Predictions:
        """The forward pass."""
        return self._detector(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the parameters."""
        loss.backward()

    def step(self) -> None:
        """The weights stay as they are."""


def compute(
    config: Config, device: torch.device, *, precision: Literal["fp32", "bf16"], runtime: Runtime | None = None
) -> dict[str, list[Tensor]]:
    """First losses, features, and all gradients, on the CPU in fp32."""
    config = replace(config, train=replace(config.train, precision=precision))
    detector = _detector(config, runtime).to(device, config.train.dtype)
    world = World(rank=0, size=1, device=device)
    batch = random_batch(config, windows=1)
    with torch.no_grad():
        features = detector.backbone(batch.frames.to(device))
    _, losses = task_without_videos(config, world=world).step(Autograd(detector), [batch])
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    numbers = {"loss": list(losses), "features": [features], "gradients": gradients}
    return {kind: [each.detach().float().cpu() for each in tensors] for kind, tensors in numbers.items()}


def _detector(config: Config, runtime: Runtime | None) -> Detector:
    torch.manual_seed(0)
    detector = build_detector(config, num_classes=CLASSES, runtime=runtime)
    weights = find_weights(config.backbone, detector.backbone.vit)
    assert weights is not None, "the quickstart has weights of its own"
    vit = detector.backbone.vit
    fill_backbone(vit, weights.vit, dtype=torch.float32, read=True, host=lambda module: None)
    for name, parameter in detector.named_parameters():
        if name.endswith(
            "up_proj.weight"
        ):  # zero at first: adapters would add nothing, and their inner parts learn nothing
            torch.nn.init.normal_(parameter, std=0.02)
    return detector


def _difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, relative to the largest expected number; infinite where something is missing."""
    if len(actual) != len(expected):
        return math.inf
    largest = max(float(tensor.abs().max()) for tensor in expected)
    pairs = zip(actual, expected, strict=True)
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs) / largest
