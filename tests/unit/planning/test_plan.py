"""Plans against what really happens: FLOPs counted by PyTorch, bytes by its allocator."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from adatad_ds.config.backbone import BESIDE
from adatad_ds.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    ParallelConfig,
    RecognitionConfig,
    TrainConfig,
)
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.factory import Runtime, build_detector
from adatad_ds.planning.activations import BudgetError
from adatad_ds.planning.memory import Plan, backbone_cost, gradient_lines, make_plan, step_flop, usable_bytes
from adatad_ds.train import main
from tests.support.count_gradient_bytes import BUCKET
from tests.support.launch import environment
from tests.support.pool import forked
from tools.bench.step import cpu_allocator_peak

SIDE = 32  # pixels
CONFIG = Config(
    data=DataConfig(window_size=128, resolution=SIDE, short_side_before_crop=SIDE),
    backbone=BackboneConfig(name="tiny", clips_per_chunk=2),
    head=HeadConfig(width=32, arch=(1, 0, 1), regression_range=((0, 4), (4, 99))),
    train=TrainConfig(precision="fp32", global_batch=1, lr_backbone=1e-5),
)
ZERO2 = {"zero_optimization": {"stage": 2}}


class Flop(TorchDispatchMode):
    """PyTorch's own counts; its FlopCounterMode cannot be around autograd.grad of parameters.

    Attention is counted here whichever kernel a release or a device takes, 2 matrix products forward and 4 backward:
    the scores that a fused kernel makes again for itself are in no plan. An unknown operator that multiplies is an
    error.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name.startswith("_scaled_dot_product_"):
            backward = name.endswith("_backward")
            query, key = args[1:3] if backward else args[:2]
            product = 2 * query.numel() * key.shape[-2]
            self.total += (4 if backward else 2) * product
        elif func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        else:
            assert not re.search(r"attention|mm$|matmul|^linear|conv|einsum|^dot$|^mv$", name), f"not counted: {name}"
        return out


def test_unknown_products_are_not_passed_over():
    with pytest.raises(AssertionError, match="not counted: mv"), Flop():
        torch.ones(2, 2).mv(torch.ones(2))


@pytest.mark.slow
def test_the_memory_of_gradients_is_what_is_allocated():
    """DeepSpeed's bucket is whole, however little learns. In a process of its own: it joins a process group."""
    done = subprocess.run(
        forked(1, ["tests/support/count_gradient_bytes.py"]),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert [case[:4] for case in measured["buckets"]] == [
        [stage, offloaded, precision, sent]
        for stage, offloaded in ((1, False), (2, False), (2, True), (3, False))
        for precision, sent in (("bf16", "auto"), ("bf16", "fp32"), ("fp32", "auto"))
    ]
    for stage, offloaded, precision, sent, allocated in measured["buckets"]:
        config = replace(CONFIG, train=replace(CONFIG.train, precision=precision))
        zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET}
        if offloaded:
            zero["offload_optimizer"] = {"device": "cpu"}
        ds_config = {"communication_data_type": sent, "zero_optimization": zero}
        lines = make_plan(config, ds_config=ds_config, ranks=1, num_classes=3).lines
        buckets = [line.device for line in lines if line.name == "gradient bucket"]
        assert buckets == allocated, (stage, offloaded, sent)
        assert len(buckets) == (stage == 3 or offloaded)
    assert len(measured["peaks"]) == 6
    for precision, sent, trainable, accumulation, held, peak in measured["peaks"]:
        ds_config = {
            "communication_data_type": precision if sent == "auto" else sent,
            "zero_optimization": {"stage": 2},
            "gradient_accumulation_steps": accumulation,
        }
        size = 4 if precision == "fp32" else 2
        lines = gradient_lines(ds_config, trainable=trainable, size=size, ranks=1)
        whole, kept = (sum(line.device for line in lines if not line.transient or all_of) for all_of in (True, False))
        beside = 0.01 if precision == "fp32" else 0.03  # a CPU that multiplies in bf16 takes 0.1 MB to work in
        assert held + peak == pytest.approx(whole, rel=beside), (precision, sent, accumulation)
        assert held + size * trainable == pytest.approx(kept, rel=0.01), (precision, sent, accumulation)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3", "zero3_offload"])
def test_the_repositorys_buckets_are_small(name):
    """DeepSpeed's own default is 5e8 numbers: 1 to 2 GB of a GPU for nothing."""
    plan = make_plan(CONFIG, ds_config=read_ds_config(f"ds_configs/{name}.json"), ranks=1, num_classes=3)
    (bucket,) = (line.device for line in plan.lines if line.name == "gradient bucket")
    assert bucket <= 0.1e9


def learn(config: Config) -> None:
    torch.manual_seed(0)
    model = build_detector(config, num_classes=3)
    frames = torch.zeros(1, config.data.window_frames, SIDE, SIDE, 3, dtype=torch.uint8)
    model.backbone(frames).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuning", ["frozen", "full", "tia", "plain", "side", "ladder", "lora", "bitfit", "norm", "tia+lora"]
)
@pytest.mark.parametrize("blocks", [None, (2, 4)])
def test_flop_are_those_that_pytorch_counts(tuning, blocks):
    backbone = replace(CONFIG.backbone, tuning=tuning, adapter_blocks=blocks, activation_checkpointing=False)
    config = replace(CONFIG, backbone=backbone)
    if tuning == "frozen":
        with Flop() as counter, torch.no_grad():
            build_detector(config, num_classes=3).backbone(torch.zeros(1, 128, SIDE, SIDE, 3, dtype=torch.uint8))
    else:
        with Flop() as counter:
            learn(config)
    assert step_flop(config) == pytest.approx(counter.total, rel=0.02)


@pytest.mark.parametrize("tuning", ["tia", "side", "ladder", "lora", "bitfit", "tia+lora"])
def test_recomputation_is_counted(tuning):
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, tuning=tuning, adapter_blocks=(1, 3, 5)))
    with Flop() as counter:
        learn(config)
    assert step_flop(config, executed=True) == pytest.approx(counter.total, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "tuning", "blocks", "checkpointing"),
    [
        (64, "tia", (1, 4), True),
        (256, "tia", None, True),
        (256, "tia", (0, 2), True),
        (128, "tia", None, False),
        (128, "full", None, True),
        (128, "full", None, False),
        (128, "plain", None, True),
        (128, "side", None, True),
        (128, "side", None, False),
        (256, "ladder", None, True),
        (128, "ladder", (1, 4), False),
        (128, "lora", None, True),
        (256, "lora", (0, 2, 5), True),
        (128, "lora", None, False),
        (128, "tia+lora", (1, 4), False),
        (256, "bitfit", None, True),
        (256, "norm", (1, 4), True),
        (256, "tia+lora", None, True),
        (128, "tia+lora", (1, 4), True),
        (128, "side_plain", None, True),
        (128, "plain+lora", None, True),
    ],
)
def test_memory_is_what_the_allocator_gives(frames, tuning, blocks, checkpointing):
    backbone = replace(CONFIG.backbone, tuning=tuning, adapter_blocks=blocks, activation_checkpointing=checkpointing)
    config = replace(CONFIG, data=replace(CONFIG.data, window_size=frames), backbone=backbone)
    model = build_detector(config, num_classes=3)
    window = torch.zeros(1, frames, SIDE, SIDE, 3, dtype=torch.uint8)

    def step() -> None:
        model.backbone(window).sum().backward()

    step()  # gradients are there from now on
    assert backbone_bytes(config) == pytest.approx(cpu_allocator_peak(step), rel=0.1)


def backbone_bytes(config: Config) -> int:
    """Planned for the backbone's activations."""
    return bytes_of_backbone(make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3))


def bytes_of_backbone(plan: Plan) -> int:
    return sum(line.device for line in plan.lines if re.search("stored tensors|graphs|backbone", line.name))


def budgeted(gb: float | str | None, **backbone) -> Config:
    changed = replace(CONFIG.backbone, activation_memory_gb=gb, **backbone)
    return replace(CONFIG, data=replace(CONFIG.data, window_size=256), backbone=changed)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["tia", "side", "ladder", "lora", "tia+lora"])
def test_every_budget_is_kept_used_and_planned_as_it_is(tuning):
    """From the least to no recomputation: more memory, less time, never more than asked for, as planned within 10 %."""
    with pytest.raises(BudgetError) as too_little:
        make_plan(budgeted(0.0, tuning=tuning), ds_config=ZERO2, ranks=1, num_classes=3)
    least = too_little.value.needed
    most = backbone_bytes(replace(budgeted(None, tuning=tuning, activation_checkpointing=False)))
    window = torch.zeros(1, 256, SIDE, SIDE, 3, dtype=torch.uint8)
    before, repeats = float("inf"), 0
    for share in (0, 0.02, 0.05, 0.2, 0.6, 1):
        budget = least + share * (most - least)
        config = budgeted((budget + 1) / 1e9, tuning=tuning)
        plan = make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3)
        placed = plan.activations
        runtime = Runtime(retention=placed.retention, clips_per_chunk=placed.clips_per_chunk)
        model = build_detector(config, num_classes=3, runtime=runtime).backbone
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        peak = cpu_allocator_peak(lambda model=model: model(window).sum().backward())
        assert placed.peak_bytes == bytes_of_backbone(plan) <= budget + 1
        assert placed.peak_bytes == pytest.approx(peak, rel=0.1), share
        assert placed.recomputed <= before
        repeats += placed.recomputed < before
        before = placed.recomputed
    assert before == 0
    assert repeats >= (3 if tuning in BESIDE else 5)


@pytest.mark.slow
def test_what_is_recomputed_within_a_budget_is_counted():
    config = budgeted(0.015)
    plan = make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3)
    placed = plan.activations
    assert 0 < placed.recomputed < 1
    torch.manual_seed(0)
    runtime = Runtime(retention=placed.retention, clips_per_chunk=placed.clips_per_chunk)
    model = build_detector(config, num_classes=3, runtime=runtime).backbone
    with Flop() as counter:
        model(torch.zeros(1, 256, SIDE, SIDE, 3, dtype=torch.uint8)).sum().backward()
    assert plan.executed_flop == pytest.approx(counter.total, rel=0.02)


@pytest.mark.slow
def test_host_memory_is_taken_before_inputs_are_made_again():
    """Where the DeepSpeed config allows it."""
    host = ZERO2 | {"activation_checkpointing": {"cpu_checkpointing": True}}
    stored = make_plan(budgeted(None), ds_config=ZERO2, ranks=1, num_classes=3).activations
    config = budgeted(0.8 * stored.peak_bytes / 1e9)
    here, away = (make_plan(config, ds_config=each, ranks=1, num_classes=3).activations for each in (ZERO2, host))
    assert here.recomputed > 1 >= away.recomputed
    assert here.on_device == here.stored < stored.stored
    assert 0 < away.on_device < away.stored == stored.stored
    assert away.peak_bytes <= 0.8 * stored.peak_bytes


@pytest.mark.slow
def test_smaller_chunks_where_one_is_most_of_the_peak():
    config = replace(budgeted(0.005, clips_per_chunk=0), train=replace(CONFIG.train, precision="fp32"))
    assert make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3).activations.clips_per_chunk in (1, 2, 4)


def test_a_gpu_takes_as_many_clips_at_once_as_keep_it_busy():
    """Of a small transformer the host launches a block no faster than of a large one."""
    sizes = {}
    for name in ("videomae_s", "videomae_b", "videomaev2_g"):
        config = replace(CONFIG, data=DataConfig(resolution=160), backbone=BackboneConfig(name=name))
        sizes[name] = [backbone_cost(config).chunk(cuda=cuda) for cuda in (False, True)]
    assert sizes == {"videomae_s": [8, 64], "videomae_b": [8, 16], "videomaev2_g": [8, 8]}
    for chosen in (0, 2):
        config = replace(CONFIG, backbone=BackboneConfig(clips_per_chunk=chosen))
        assert backbone_cost(config).chunk(cuda=True) == chosen


@pytest.mark.slow
def test_within_a_budget_a_gpu_keeps_large_chunks():
    """Half as many clips at once take it as long as all its arithmetic once more."""
    config = budgeted(0.014, clips_per_chunk=16)
    cpu, gpu = (
        make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3, cuda=cuda).activations for cuda in (False, True)
    )
    assert gpu.clips_per_chunk == 16
    assert cpu.clips_per_chunk < 16
    assert cpu.recomputed < gpu.recomputed


@pytest.mark.slow
def test_auto_is_what_the_device_has_left():
    """All the rest of the plan beside it: the head's while everything kept waits, too."""
    config, zero = budgeted("auto"), {"zero_optimization": {"stage": 2, "reduce_bucket_size": 20000}}
    today = make_plan(budgeted(None), ds_config=zero, ranks=1, num_classes=3).device_bytes

    def memory_gb(usable: float) -> float:
        return (usable / 1e9 + 1) / 0.95

    for more in (5e6, 40e6, 1e9):
        device = memory_gb(today + more)
        plan = make_plan(config, ds_config=zero, ranks=1, num_classes=3, memory_gb=device)
        assert plan.device_bytes <= usable_bytes(device)
        assert plan.device_bytes > 0.9 * usable_bytes(device) or plan.activations.recomputed == 0
        assert plan.activations.recomputed < 1
    assert plan.activations.recomputed == 0
    with pytest.raises(ConfigError, match="needs a GPU whose memory is known"):
        make_plan(config, ds_config=zero, ranks=1, num_classes=3)
    with pytest.raises(BudgetError, match=r"0.000 GB are too little; the minimum is 0\.\d+ GB, with clips_per_chunk=1"):
        make_plan(config, ds_config=zero, ranks=1, num_classes=3, memory_gb=1.05)


AIM_SIDE = 64  # below, an adapter's weights outweigh what is planned
AIM = replace(
    CONFIG,
    data=replace(CONFIG.data, window_size=32, resolution=AIM_SIDE, short_side_before_crop=AIM_SIDE),
    backbone=BackboneConfig(name="vit_tiny_patch16_224", tuning="aim", clip_frames=8, clips_per_chunk=2),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "adapters", "checkpointing"),
    [
        ("aim", None, False),
        ("aim", ("spatial",), False),
        ("aim", None, True),
        ("full", None, True),
        ("full", ("temporal",), False),
    ],
)
def test_image_transformers(tuning, adapters, checkpointing):
    """As the others: FLOPs counted, bytes measured."""
    backbone = replace(AIM.backbone, tuning=tuning, aim_adapters=adapters, activation_checkpointing=checkpointing)
    config = replace(AIM, backbone=backbone)
    model = build_detector(config, num_classes=3).backbone
    window = torch.zeros(1, 32, AIM_SIDE, AIM_SIDE, 3, dtype=torch.uint8)

    def step() -> None:
        model(window).sum().backward()

    with Flop() as counter:
        step()
    assert step_flop(config, executed=True) == pytest.approx(counter.total, rel=0.02)
    lines = make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3).lines
    planned = sum(line.device for line in lines if "backbone" in line.name)
    assert planned == pytest.approx(cpu_allocator_peak(step), rel=0.1)
    # A chunk that is recomputed through all blocks holds all their weights, however few ZeRO-3 is to gather.
    few = {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 10, "stage3_prefetch_bucket_size": 10}}
    lines = make_plan(config, ds_config=few, ranks=1, num_classes=3).lines
    gathered = sum(line.device for line in lines if line.name == "gathered weights")
    weights = sum(line.device for line in lines if line.name in ("frozen weights", "trainable weights"))
    assert gathered == (weights if checkpointing else 20 * config.train.dtype.itemsize)


@pytest.mark.slow
def test_recognition():
    clips = RecognitionConfig(train_list="", test_list="", frames=8)
    config = replace(AIM, recognition=clips, train=replace(CONFIG.train, global_batch=16))
    alone, shared = (make_plan(config, ds_config=ZERO2, ranks=ranks, num_classes=400) for ranks in (1, 8))
    assert alone.useful_flop == shared.useful_flop == 16 * step_flop(config)
    frames = {plan: line.device for plan in (alone, shared) for line in plan.lines if line.name == "frames"}
    assert list(frames.values()) == [16 * 8 * AIM_SIDE**2 * 3, 2 * 8 * AIM_SIDE**2 * 3]


@pytest.mark.slow
def test_ranks_share():
    config = replace(CONFIG, parallel=ParallelConfig(temporal=4), data=replace(CONFIG.data, window_size=1024))

    def lines(ranks: int, ds_config: dict, config: Config) -> dict[str, tuple[int, int]]:
        plan = make_plan(config, ds_config=ds_config, ranks=ranks, num_classes=3)
        return {line.name.split(" of ")[0]: (line.device, line.host) for line in plan.lines}

    offload = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    checkpointing = {"activation_checkpointing": {"cpu_checkpointing": True}}
    alone = lines(1, ZERO2, replace(config, parallel=ParallelConfig()))
    shared = lines(4, {"zero_optimization": offload} | checkpointing, config)
    assert shared["6 stored tensors"] == (0, alone["6 stored tensors"][0] // 4)
    assert shared["frames"][0] == alone["frames"][0] // 4
    assert shared["frozen weights"] == (0, alone["frozen weights"][0] // 4)
    assert shared["masters, moments, average"] == (0, alone["masters, moments, average"][0] // 4)


FEATURES = replace(
    CONFIG,
    data=replace(CONFIG.data, window_size=256, features="somewhere"),
    backbone=BackboneConfig(name="features", tuning="frozen", feature_channels=192),
)


@pytest.mark.slow
def test_steps_on_features_are_those_of_the_head():
    detector = build_detector(FEATURES, num_classes=3)
    features, valid = torch.zeros(1, 256, 192), torch.ones(1, 256, dtype=torch.bool)

    def step() -> None:
        levels, masks = detector.pyramid(features.requires_grad_(), valid, None)
        class_logits, distances, _ = detector.head(levels, masks)
        (class_logits.sum() + distances.sum()).backward()

    step()  # gradients are there from now on
    plan = make_plan(FEATURES, ds_config=ZERO2, ranks=1, num_classes=3)
    planned = {line.name: line.device for line in plan.lines}
    assert planned["features"] == 256 * 192 * 4
    assert planned["head"] == pytest.approx(cpu_allocator_peak(step), rel=0.1)
    assert not [name for name in planned if "backbone" in name or "stored" in name]
    with Flop() as counter:
        step()
    assert plan.executed_flop == pytest.approx(counter.total, rel=0.02)
    four = replace(FEATURES, train=replace(FEATURES.train, global_batch=4))
    shared = make_plan(four, ds_config=ZERO2, ranks=2, num_classes=3)
    assert shared.useful_flop == pytest.approx(4 * counter.total, rel=0.02)
    with pytest.raises(ConfigError, match="temporal=2 splits a backbone's frames"):
        make_plan(replace(four, parallel=ParallelConfig(temporal=2)), ds_config=ZERO2, ranks=2, num_classes=3)


def cached(annotations: Path, *, sampling: Literal["resize", "random_trunc"]) -> Config:
    data = replace(CONFIG.data, annotations=str(annotations), window_size=512, sampling=sampling, augment=())
    return replace(
        CONFIG,
        data=replace(data, feature_stride_frames=2),
        backbone=BackboneConfig(name="tiny", tuning="frozen", cache_features=True),
        train=replace(CONFIG.train, global_batch=2, repeats=3),
    )


@pytest.mark.slow
def test_a_cache_is_planned_as_it_is_filled(tmp_path):
    """Memory of a piece of 16 clips; FLOPs and disk of all videos once, where an epoch on frames runs its own."""
    action = [{"label": "a", "segment": [1.0, 9.0]}]
    database = {
        name: {"subset": subset, "duration": 100.0, "frame": 3000, "annotations": action}
        for name, subset in (("a", "training"), ("b", "training"), ("c", "validation"))
    }
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({"database": database}))
    config = cached(annotations, sampling="random_trunc")
    plan = make_plan(config, ds_config=ZERO2, ranks=1, num_classes=3, cuda=False)
    assert plan.cache is not None
    model = build_detector(config, num_classes=3).backbone.eval()
    assert isinstance(model, AdaptedBackbone)
    frames = torch.zeros(1, 256, SIDE, SIDE, 3, dtype=torch.uint8)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():  # inference mode's operators would not be counted
        peak = cpu_allocator_peak(lambda: model.tubelet_features(frames))
        with Flop() as counter:
            model.tubelet_features(frames)
    assert plan.cache.device_bytes == pytest.approx(weights + frames.numel() + peak, rel=0.1)
    assert plan.cache.window_flop == pytest.approx(512 / 256 * counter.total, rel=0.02)
    assert plan.cache.window_bytes == 512 * model.width * 4
    assert (plan.cache.windows, plan.cache.epoch_windows) == (3 * 1500 / 512, 2 * 3)
    assert plan.device_bytes == max(plan.step_bytes, plan.cache.device_bytes)
    on_features = replace(FEATURES, train=config.train, data=config.data)
    on_features = replace(on_features, backbone=replace(FEATURES.backbone, feature_channels=model.width))
    steps = make_plan(on_features, ds_config=ZERO2, ranks=1, num_classes=3)
    assert (plan.lines, plan.executed_flop) == (steps.lines, steps.executed_flop)
    assert "all videos: " in plan.table()
    assert plan.cache.epoch_lines(flop_per_sec=counter.total, global_batch=2, step_sec=10.0) == [
        "least time of the first epoch: 17.6 s to fill the cache and 30 s; later: 30 s"
    ]


@pytest.mark.slow
def test_a_cache_of_resized_videos_is_planned_by_the_video(tmp_path):
    nowhere = tmp_path / "none.json"
    plan = make_plan(cached(nowhere, sampling="resize"), ds_config=ZERO2, ranks=1, num_classes=3)
    assert plan.cache is not None
    assert plan.cache.windows is None
    assert "; a video: " in plan.table()
    assert "all videos" not in plan.table()
    assert plan.cache.epoch_lines(flop_per_sec=1e12, global_batch=2, step_sec=1.0) == []


def test_what_cannot_be_run_has_no_plan():
    config = replace(CONFIG, parallel=ParallelConfig(temporal=3))
    with pytest.raises(ConfigError, match="must divide 4 ranks"):
        make_plan(config, ds_config=ZERO2, ranks=4, num_classes=3)


@pytest.mark.slow
def test_dry_run_prints_the_plan(capsys):
    options = ["--recipe", "thumos14_videomae_s", "--set", "backbone.weights=null", "--dry-run"]
    assert main([*options, "--deepspeed_config", "ds_configs/zero3_offload.json"]) == 0
    printed = capsys.readouterr().out
    assert "adapter, trainable" in printed
    assert "12 stored tensors of" in printed
    assert "TFLOP useful" in printed
