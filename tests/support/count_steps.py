"""Started by test_engine.py on each rank: steps taken and skipped, and what is restored of a hosted detector."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.distributed import partitions
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.ds_config import read_ds_config, resolve_ds_config
from adatad_ds.distributed.engine import Engine, deepspeed
from adatad_ds.distributed.world import World
from adatad_ds.errors import CheckpointError, TrainingError
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.factory import build_detector
from adatad_ds.training.guards import SkippedSteps
from adatad_ds.training.optim import parameter_groups
from adatad_ds.weights.files import StoredTensor
from adatad_ds.weights.trainable_state import AVERAGE, MASTER

SPEC = ViTSpec(width=64, depth=2, heads=4, mlp_hidden=256, pretrained_side=32)
State = dict[str, dict[str, Tensor]]


class Operations(TorchDispatchMode):
    """Counts operations on tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def make(world: World, *, ds_config: str, precision: Any, seed: int, width: int = 16) -> Engine:
    """A small detector, hosted; the seed is of what learns."""
    config = Config(
        data=DataConfig(window_size=32, resolution=32, short_side_before_crop=32),
        backbone=BackboneConfig(adapter_ratio=0.05),
        head=HeadConfig(width=width, arch=(1, 0, 1), regression_range=((0, 4), (4, 99)), drop_path=0.0),
        train=TrainConfig(precision=precision, global_batch=world.size),
    )
    torch.manual_seed(0)
    detector = build_detector(config, spec=SPEC, num_classes=3)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    resolved = resolve_ds_config(
        read_ds_config(f"ds_configs/{ds_config}.json"), config=config, ranks=world.size, cuda=False
    )
    resolved.setdefault("fp16", {}).update(initial_scale_power=8, hysteresis=1)
    engine = Engine(
        model=detector,
        groups=parameter_groups(detector, config.train),
        average=AverageDecay(config.train.ema_decay, warmup=True),
        train=config.train,
        ds_config=resolved,
        world=world,
    )
    engine.set_learning_rate(100.0)
    return engine


def step(engine: Engine, world: World, *, finite: bool = True) -> bool:
    """One step; without a finite gradient on the last rank, though with a finite loss."""
    generator = torch.Generator().manual_seed(world.rank)
    frames = torch.randint(0, 255, (1, 32, 32, 32, 3), dtype=torch.uint8, generator=generator)
    predictions = engine(frames, torch.ones(1, 32, dtype=torch.bool))
    loss = predictions.class_logits.float().sum() + predictions.distances.float().sum()
    if not finite and world.rank == world.size - 1:
        loss = loss + (0 * predictions.distances.float()).sqrt().sum()
    assert torch.isfinite(loss)
    engine.backward(loss)
    engine.step()
    return engine.step_taken


def state_of(engine: Engine) -> State:
    kinds: State = {}
    for name, tensors in engine.trainable_state():
        for kind, value in tensors.items():
            kinds.setdefault(kind, {})[name] = value
    return kinds


def stored(state: State) -> dict[str, dict[str, StoredTensor]]:
    return {
        kind: {name: StoredTensor(tuple(value.shape), lambda value=value: value) for name, value in tensors.items()}
        for kind, tensors in state.items()
    }


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[kind][name]) for kind, tensors in first.items() for name, value in tensors.items()
    )


def refusal(engine: Engine, state: State, **options: Any) -> str:
    """What loading a state is refused with, which must change nothing."""
    before = state_of(engine)
    try:
        engine.load_trainable_state(stored(state), source="FILE", **options)
    except CheckpointError as error:
        return str(error) if same(before, state_of(engine)) else "refused, but changed"
    return "taken"


def computes_with(engine: Engine, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights that the model computes with are these, rounded."""
    parameters = engine.trainable_parameters
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=engine.stage == 3):
        return all(torch.equal(p.data, tensors[name].to(p.dtype)) for name, p in parameters.items())


def skip(engine: Engine, world: World, found: dict[str, Any]) -> None:
    """Three of four steps are not finite, then as many as end the run."""
    said: list[str] = []
    counted = SkippedSteps(
        parameters=engine.trainable_parameters, total=0, in_a_row=0, most=3, world=world, report=said.append
    )
    before = state_of(engine)
    taken = []
    try:
        for index, finite in enumerate((False, False, True, False, False, False)):
            taken.append(step(engine, world, finite=finite))
            counted.add(index, taken=taken[-1])
            if index == 1:
                found["skipped changes nothing"] = same(before, state_of(engine))
    except TrainingError as error:
        found["error"] = str(error)
    found |= {"taken": taken, "said": said, "total": counted.total, "in a row": counted.in_a_row}


class Two(nn.Module):
    """Two layers, of which the second is not always used; it is so large that a sum in fp32 would be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 1500), nn.Linear(1500, 1500)

    def forward(self, x: Tensor, both: Tensor) -> Tensor:
        hidden = self.first(x)
        return (self.second(hidden) if both else hidden).square().sum()


def accumulated(world: World, ds_config: str) -> float:
    """How far a step's gradient norm is from autograd's; its first micro batch leaves a group without gradients."""
    config = Config(train=TrainConfig(precision="fp32", global_batch=2 * world.size, micro_batch=1))
    torch.manual_seed(0)
    plain, hosted = Two(), Two()
    hosted.load_state_dict(plain.state_dict())
    of_groups = {"lr": 1.0, "base_lr": 1.0, "weight_decay": 0.0}
    engine = Engine(
        model=hosted,
        groups=[
            {"params": list(layer.parameters()), "name": name, **of_groups} for name, layer in hosted.named_children()
        ],
        average=AverageDecay(config.train.ema_decay),
        train=config.train,
        ds_config=resolve_ds_config(
            read_ds_config(f"ds_configs/{ds_config}.json"), config=config, ranks=world.size, cuda=False
        ),
        world=world,
    )
    for both in (torch.tensor(False), torch.tensor(True)):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(world.rank))
        plain(x, both).backward()
        engine.backward(engine(x, both))
        engine.step()
    squares = 0.0
    for parameter in plain.parameters():
        assert parameter.grad is not None
        world.add_up(parameter.grad)
        squares += float((parameter.grad.double() / (2 * world.size)).square().sum())
    norm = engine.gradient_norm()
    engine.close()
    return abs(norm - squares**0.5) / squares**0.5


def main() -> None:
    """Write one JSON file a rank."""
    ds_config, precision, folder = sys.argv[1:]
    world = World.join()
    partitions.GATHERED_AT_ONCE = 5000  # so that some parameters are gathered together, not all
    if precision == "fp16":  # CPUs can do what is needed here, only slowly
        deepspeed.get_accelerator().is_fp16_supported = lambda: True
    found: dict[str, Any] = {}
    engine = make(world, ds_config=ds_config, precision=precision, seed=0)
    initial = state_of(engine)
    found["fused"] = all(group["fused"] for group in engine._adam.param_groups)
    waits = [
        group._get_backend(world.device).options._timeout
        for group in (dist.group.WORLD, deepspeed.utils.groups._WORLD_GROUP)
    ]
    found["waits alike"] = waits[0] == waits[1]

    # The average by hand: (1 + n) / (10 + n) of it stays in the n-th update.
    average = {name: value.clone() for name, value in initial[MASTER].items()}
    for update in (1, 2):
        with Operations() as operations:
            assert step(engine, world)
        masters = state_of(engine)[MASTER]
        for name, value in average.items():
            value.lerp_(masters[name], 1 - (1 + update) / (10 + update))
    after = state_of(engine)
    found["average"] = max(float((after[AVERAGE][name] - value).abs().max()) for name, value in average.items())
    found["moved"] = max(float((after[MASTER][name] - value).abs().max()) for name, value in initial[MASTER].items())

    if engine.stage < 3:  # linalg_vector_norm takes one tensor's norm, isnan is "ne"
        found["measuring"] = sum(operations.counts[name] for name in ("_foreach_norm", "linalg_vector_norm", "ne"))
        found["copying"] = operations.counts["copy_"]

    found["accumulated"] = accumulated(world, ds_config)
    skip(engine, world, found)
    state = state_of(engine)
    with engine.averaged_weights():
        found["averaged"] = computes_with(engine, state[AVERAGE]) and not computes_with(engine, state[MASTER])
    found["masters again"] = computes_with(engine, state[MASTER])
    found["optimizer"] = engine.optimizer_state()
    saved, saved_optimizer = state_of(engine), json.loads(json.dumps(engine.optimizer_state()))

    # Restored into another process's engine, both go on alike.
    other = make(world, ds_config=ds_config, precision=precision, seed=1)
    found["fresh is another"] = not same(state_of(other), saved)
    other.load_trainable_state(stored(saved), source="FILE")
    other.load_optimizer_state(saved_optimizer)
    found["restored"] = same(state_of(other), saved) and other.optimizer_state() == saved_optimizer
    goes_on = step(engine, world) and step(other, world)
    found["goes on alike"] = goes_on and same(state_of(engine), state_of(other))

    # An average that is missing starts from the masters.
    other.load_trainable_state(stored({MASTER: saved[MASTER]}), source="FILE")
    restored = state_of(other)
    found["average from masters"] = same({MASTER: restored[AVERAGE]}, {MASTER: saved[MASTER]})
    name = next(iter(saved[MASTER]))
    found["missing"] = refusal(other, {MASTER: {key: v for key, v in saved[MASTER].items() if key != name}})
    found["unexpected"] = refusal(other, saved | {MASTER: saved[MASTER] | {"head.more": torch.zeros(2)}}, partial=True)
    wider = make(world, ds_config=ds_config, precision=precision, seed=1, width=32)
    found["other shapes"] = refusal(wider, saved)
    found["other shapes of a part"] = refusal(wider, saved, partial=True)
    found["a part"] = refusal(other, {MASTER: {name: saved[MASTER][name]}}, partial=True)

    (Path(folder) / f"rank{world.rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main()
