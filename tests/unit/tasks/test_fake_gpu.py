"""Whole steps on a GPU that is not there: nothing mixes devices, and the host waits only where it has to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, RecognitionConfig, TrainConfig
from adatad_ds.data.augmentation import colour, operations
from adatad_ds.data.augmentation.transforms import apply_steps
from adatad_ds.data.batch import Batch
from adatad_ds.data.clip_dataset import ClipBatch
from adatad_ds.detection.timegrid import TimeGrid
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.internvideo2 import INTERNVIDEO2_SPECS
from adatad_ds.models.backbones.vjepa2 import VJEPA2_SPECS
from adatad_ds.models.execution import activation_store
from adatad_ds.models.execution.activation_store import CopyStreams, Storage, StoragePolicy
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.factory import Runtime, build_detector, build_recogniser
from adatad_ds.models.sample_noise import SampleNoise
from adatad_ds.models.shapes import shapes_only
from adatad_ds.tasks.detection import DetectionTask
from adatad_ds.tasks.detection_pipeline import find_candidates
from adatad_ds.tasks.recognition import RecognitionTask
from tests.support import copy_streams
from tests.support.fake_gpu import GPU, FakeGPU, fake_gpu, on_gpu

SPEC = ViTSpec(width=24, depth=2, heads=2, mlp_hidden=48, pretrained_side=32)
SPECS = {
    "videomae_s": SPEC,
    "vjepa2_l": replace(VJEPA2_SPECS["vjepa2_l"], width=24, depth=2, heads=2, mlp_hidden=48),
    "internvideo2_s": replace(INTERNVIDEO2_SPECS["internvideo2_s"], width=24, depth=2, heads=2, mlp_hidden=48),
}
DATA = DataConfig(window_size=32, resolution=28, short_side_before_crop=28)
HEAD = HeadConfig(width=16, arch=(1, 1, 1), heads=2, num_convs=1, regression_range=((0, 4), (4, 99)))
NOISY = replace(HEAD, input_dropout=0.3, input_noise=0.1, proj_dropout=0.1, abs_pos_embed=True, attn_window=5)
TRIDET = replace(HEAD, name="tridet", sgp_window=3, label_smoothing=0.1)
CLASSES = ("jump", "run", "throw")
WORLD = World(rank=0, size=1, device=GPU)

SUM = "distributed/world.py World.sum: aten._local_scalar_dense"  # of positives, and of losses at the end
PAIRS = "detection/points.py Targets.pairs: aten.nonzero"  # before the forward pass


def backbone(name: str = "videomae_s", tuning="tia", **changes) -> BackboneConfig:
    return BackboneConfig(name=name, tuning=tuning, clips_per_chunk=1, drop_path=0.5, **changes)


FEATURES = BackboneConfig(name="features", tuning="frozen", feature_channels=20)
CASES = {
    "tia": (backbone(), NOISY, {SUM}),
    "tia+lora": (backbone(tuning="tia+lora", lora_dora=True), TRIDET, {SUM, PAIRS}),
    "ladder": (backbone(tuning="ladder", adapter_blocks=(0,)), replace(HEAD, name="temporalmaxer"), {SUM}),
    "bitfit": (backbone("vjepa2_l", "bitfit"), HEAD, {SUM}),
    "side": (backbone("internvideo2_s", "side", clip_frames=16), HEAD, {SUM}),
    "full": (backbone(tuning="full"), replace(HEAD, actionformer_norms=True), {SUM}),
    "features": (FEATURES, TRIDET, {SUM, PAIRS}),
}
OTHERS, SLOW = ("bitfit", "side", "full"), pytest.mark.slow


@dataclass
class Engine:
    """A `StepEngine` of a single rank that updates nothing; from forward to backward pass, the host is not to wait."""

    model: nn.Module
    gpu: FakeGPU
    accumulation: int = 1
    waits_before: int = 0

    def __call__(self, *inputs: Tensor):
        self.waits_before = self.gpu.waits.total()
        return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        assert self.gpu.waits.total() == self.waits_before

    def step(self) -> None:
        pass


def configured(backbone: BackboneConfig, head: HeadConfig) -> Config:
    return Config(data=DATA, backbone=backbone, head=head, train=TrainConfig(precision="bf16"))


def detector(config: Config, *, runtime: Runtime | None = None):
    """Without memory, to be moved."""
    with shapes_only():
        return build_detector(config, num_classes=len(CLASSES), spec=SPECS.get(config.backbone.name), runtime=runtime)


def batch(config: Config) -> Batch:
    """Two windows, the second one without an action."""
    shape = (2, 32, 20) if config.backbone.is_features else (2, 32, DATA.resolution, DATA.resolution, 3)
    return Batch(
        frames=torch.empty(shape, dtype=torch.float32 if config.backbone.is_features else torch.uint8),
        valid=torch.ones(2, 32, dtype=torch.bool),
        segments=[torch.tensor([[1.0, 5.0], [3.0, 9.0]]), torch.zeros(0, 2)],
        labels=[torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)],
        grids=[TimeGrid(origin_sec=0.0, step_sec=0.1, duration_sec=3.0)] * 2,
        videos=["one", "other"],
        sample_ids=[0, 1],
        seeds=torch.tensor([1, 2]),
        errors=[None] * 2,
        damage=[None] * 2,
        padding=[False] * 2,
    ).pin_memory()


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW if case in OTHERS else ()) for case in CASES])
def test_a_detection_step(case, monkeypatch):
    """As the trainer has it, of one micro batch; stored activations wait in host memory."""
    settings, head, waits = CASES[case]
    config = configured(settings, head)
    storage = Storage(StoragePolicy(offload=True), streams=CopyStreams(GPU, copy_streams.Runtime()))
    model = detector(config, runtime=Runtime(storage=storage, retention=Retention(graphs=1)))
    data = SimpleNamespace(classes=CLASSES, videos=[], reports=[])
    with fake_gpu() as gpu:
        monkeypatch.setattr(torch.cuda, "cudart", lambda: None)
        monkeypatch.setattr(activation_store, "lock_pages", lambda buffer, runtime: gpu.lock(buffer) is buffer)
        mesh = Mesh(world=WORLD, config=config)
        task = DetectionTask(config=config, mesh=mesh, train_data=data, test_data=data)  # pyright: ignore
        on_gpu(model, config.train.dtype)
        gpu.waits.clear()
        _, losses = task.step(Engine(model, gpu), [batch(config)])
        assert gpu.waits == dict.fromkeys(waits, 1)
        task.sum_over_samples(*losses, 0, 0, False)
        assert set(gpu.waits) == waits
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert (parameter.grad.device, parameter.grad.dtype) == (GPU, parameter.dtype)
    assert gpu.launched > 500


@pytest.mark.parametrize("case", ["side", "features"])
def test_windows_are_detected_without_a_wait_before_their_scores(case):
    config = configured(*CASES[case][:2])
    with fake_gpu() as gpu, torch.no_grad():
        model = on_gpu(detector(config), config.train.dtype).eval()
        model(*batch(config).inputs(GPU))
        assert not gpu.waits
        found = find_candidates(
            forward=model,
            batches=[batch(config)],
            config=config,
            mesh=Mesh(world=WORLD, config=config),
            report=pytest.fail,
        )
        assert set(found) == {"one", "other"}
        assert {where.partition(":")[0] for where in gpu.waits} == {
            "detection/points.py make_points",  # once
            "detection/decoding.py select_candidates",
            "tasks/detection_pipeline.py _segments_of",
        }


def test_a_recognition_step():
    settings = RecognitionConfig(train_list="", test_list="", frames=4, label_smoothing=0.1, mixup_alpha=0.8)
    image = BackboneConfig(name="vit_tiny_generated", tuning="aim", drop_path=0.2)
    data = SimpleNamespace(classes=CLASSES, videos=[], reports=[])
    config = Config(data=replace(DATA, resolution=32), backbone=image, recognition=settings)
    task = RecognitionTask(config=config, world=WORLD, train_data=data, test_data=data)  # pyright: ignore
    with shapes_only():
        model = build_recogniser(config, num_classes=len(CLASSES))
    clips = ClipBatch(
        frames=torch.empty(2, 1, 4, 32, 32, 3, dtype=torch.uint8),
        labels=torch.tensor([0, 2]),
        videos=["one", "other"],
        sample_ids=[0, 1],
        seeds=torch.tensor([1, 2]),
        errors=[None] * 2,
        damage=[None] * 2,
        padding=[False] * 2,
        steps=[(colour.by_colour, colour.invert), ()],
    )
    with fake_gpu() as gpu:
        on_gpu(model, config.train.dtype)
        task.step(Engine(model, gpu), [clips.pin_memory()])
        assert set(gpu.waits) == {SUM}
        assert all(p.grad is not None and p.grad.device == GPU for p in model.parameters() if p.requires_grad)


def test_augmentations_on_the_device():
    rng, side = np.random.default_rng(0), 32
    drawn = [
        *operations._operations(side, rng),
        *operations._operations_n4_m7(side, rng),
        operations._crop_edges(side, rng),
        *operations.color_jitter(rng),
        operations.lighting(rng),
    ]
    with fake_gpu() as gpu:
        for one in drawn:
            frames = torch.empty((1, 4, side, side, 3), dtype=torch.uint8, device=GPU)
            apply_steps(frames, [(colour.by_colour, one)])
        assert set(gpu.waits) == {"data/augmentation/colour.py equalize: aten.bincount"}


def test_noise_is_copied_from_page_locked_memory():
    """A GPU copies from other memory once all that was queued before is done; meanwhile, the host waits."""
    with fake_gpu() as gpu:
        noise = SampleNoise(seeds=[1, 2], device=GPU)
        for drawn in (noise.normal(300, 64), noise.keep(300, 64, rate=0.1)):
            assert drawn.shape == (2, 300, 64)
            assert drawn.device == GPU
        assert not gpu.waits


def test_what_a_gpu_would_refuse_is_refused_here():
    with fake_gpu():
        here, there = torch.ones(4), torch.ones(4, device=GPU)
        mixed = {
            "sum": lambda: here + there,
            "index": lambda: here[torch.zeros(2, dtype=torch.int64, device=GPU)],
            "list": lambda: torch._foreach_add_([there], [here]),
            "types": lambda: there[None] @ there[:, None].bfloat16(),
        }
        for name, action in mixed.items():
            with pytest.raises((RuntimeError, TypeError)):
                pytest.fail(f"{name}: {action()}")


def test_what_the_host_waits_for_is_seen():
    with fake_gpu() as gpu:
        there = torch.ones(4, device=GPU, requires_grad=True)
        (there * there).sum().backward()
        assert not gpu.waits
        waits = (
            lambda: there.sum().item(),
            lambda: there.nonzero(),
            lambda: there[there > 0],
            lambda: torch.tensor([1.0], device=GPU),
            lambda: there.cpu(),
            lambda: there[torch.tensor([0])],
            lambda: torch.empty(2**18).to(GPU, non_blocking=True),
        )
        for number, wait in enumerate(waits, start=1):
            wait()
            assert gpu.waits.total() == number
