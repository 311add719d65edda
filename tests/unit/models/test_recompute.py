"""Recomputation over spans of time: plain autograd's numbers, one accumulation a parameter, few tensors alive."""

from __future__ import annotations

import functools
import gc
from itertools import pairwise

import pytest
import torch

from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.vit import VisionTransformer
from adatad_ds.models.execution.activation_store import CopyStreams, DeviceTensor, HostTensor, Storage, StoragePolicy
from adatad_ds.models.execution.graphs import OnceAccumulated, build_graph
from adatad_ds.models.execution.retention import Retention, least_inputs
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.execution.segments import pool
from adatad_ds.models.execution.window_share import WholeWindow
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.models.sample_noise import SampleNoise
from adatad_ds.models.tuning.adapters import TIA, PlainAdapter
from adatad_ds.models.tuning.inside import InsideTuning
from adatad_ds.models.tuning.ladder import LongRange
from adatad_ds.models.tuning.lora import LoRALinear, LoRASettings, merged_weights
from tests.support.copy_streams import Runtime
from tests.support.host_numbers import TensorsOfNumbers
from tests.support.plain_backbone import plain_tubelet_features

SPEC = ViTSpec(width=24, depth=4, heads=2, mlp_hidden=48, pretrained_side=32)
CLIPS, TUBELETS, POSITIONS = 5, 40, 4
TUNINGS = ["tia", "side", "ladder", "lora", "bitfit", "norm", "tia+lora"]
LORA = LoRASettings(rank=3, alpha=6.0, targets=("qkv", "proj", "fc1", "fc2"), dora=False)
DORA = LoRASettings(rank=2, alpha=3.0, targets=("qkv", "fc2"), dora=True)
SLOW = pytest.mark.slow  # of cases in great number
STORED_BYTES = 2 * TUBELETS * POSITIONS * SPEC.width * 4  # of two windows


def backbone(
    *,
    tuning="tia",
    blocks=(1, 2),
    kernel=3,
    dilation=1,
    plain=False,
    retention: Retention | None = None,
    chunk=2,
    policy: StoragePolicy | None = None,
    stopwatch: Stopwatch | None = None,
    lora: LoRASettings = LORA,
) -> AdaptedBackbone:
    torch.manual_seed(0)

    def adapter() -> torch.nn.Module:
        made = (
            PlainAdapter(width=SPEC.width, ratio=0.25)
            if plain
            else TIA(width=SPEC.width, ratio=0.25, kernel=kernel, dilation=dilation)
        )
        torch.nn.init.normal_(made.up_proj.weight, std=0.3)
        torch.nn.init.normal_(made.down_proj.bias)
        return made

    def far() -> torch.nn.Module:
        made = LongRange(width=SPEC.width, ratio=0.25, dilations=(2, 9))
        torch.nn.init.normal_(made.up_proj.weight, std=0.3)
        return made

    ways = {"lora": "lora", "tia+lora": "lora", "bitfit": "bitfit", "norm": "norm"}
    made = AdaptedBackbone(
        vit=VisionTransformer(spec=SPEC, resolution=32),
        adapters={block: adapter() for block in blocks} if tuning in ("tia", "side", "ladder", "tia+lora") else {},
        long_adapters={block: far() for block in blocks} if tuning == "ladder" else {},
        inside=InsideTuning(way=ways[tuning], blocks=blocks, lora=lora) if tuning in ways else None,
        tuning=tuning,
        feature_steps=32,
        drop_path=0.4,
        activation_checkpointing=True,
        retention=retention or Retention(),
        clips_per_chunk=chunk,
        window=WholeWindow(),
        storage=Storage(policy or StoragePolicy()),
        stopwatch=stopwatch or Stopwatch(),
    )
    for name, parameter in made.named_parameters():
        if name.endswith(("lora_up", "lora_size")):
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@functools.cache
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, CLIPS * 16, 32, 32, 3), dtype=torch.uint8, generator=generator)


def learn(model: AdaptedBackbone, *, plainly: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    noise = SampleNoise(seeds=[7, 8], device=torch.device("cpu"))
    features = plain_tubelet_features(model, frames(), noise) if plainly else model.tubelet_features(frames(), noise)
    features.sin().sum().backward()
    return features.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@functools.cache
def learnt_plainly(tuning: str, blocks: tuple[int, ...], **changes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return learn(backbone(tuning=tuning, blocks=blocks, **changes), plainly=True)


@functools.cache
def learnt_without_retention(tuning: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return learn(backbone(tuning=tuning, blocks=(0, 1, 2, 3)))


@pytest.mark.parametrize("tuning", ["tia", "side", "ladder"])
@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), *(pytest.param(one, marks=SLOW) for one in [(1,), (3,)]), (0, 3)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk": 0},
        {"kernel": 5, "dilation": 3},
        {"kernel": 5, "dilation": 9, "chunk": 1},  # reaches beyond the neighbouring span, and the window
        {"plain": True},
        {"policy": StoragePolicy(offload=True)},
        {"policy": StoragePolicy(offload=True, device_bytes=STORED_BYTES), "kernel": 7, "chunk": 1},
        {"retention": Retention(graphs=None)},
        {"retention": Retention(graphs=4), "kernel": 5, "dilation": 9, "chunk": 1},
        {"retention": Retention(graphs=2), "policy": StoragePolicy(offload=True)},
    ],
    ids=str,
)
def test_same_as_plain_autograd(tuning, blocks, changes):
    plain = {name: changes[name] for name in ("kernel", "dilation", "plain", "lora") if name in changes}
    features, gradients = learnt_plainly(tuning, blocks, **plain)
    model = backbone(tuning=tuning, blocks=blocks, **changes)
    other_features, other_gradients = learn(model)
    torch.testing.assert_close(other_features, features)
    assert other_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-5, atol=1e-5 * max(scale, 1), msg=name)
    with torch.no_grad():
        noise = SampleNoise(seeds=[7, 8], device=torch.device("cpu"))
        torch.testing.assert_close(model.tubelet_features(frames(), noise), features)


@pytest.mark.parametrize("tuning", TUNINGS[3:])
@pytest.mark.parametrize(
    ("blocks", "changes"),
    [
        ((0, 1, 2, 3), {}),
        ((0, 1, 2, 3), {"retention": Retention(inputs=3)}),
        ((0, 1, 3), {"retention": Retention(graphs=4), "chunk": 1}),
        ((1, 3), {"chunk": 1, "policy": StoragePolicy(offload=True, device_bytes=STORED_BYTES)}),
        ((1, 3), {"retention": Retention(graphs=None)}),
        ((3,), {"lora": DORA}),
        ((2, 3), {"lora": DORA, "retention": Retention(graphs=None)}),
    ],
    ids=str,
)
def test_inside_blocks_the_same_as_plain_autograd(tuning, blocks, changes):
    test_same_as_plain_autograd(tuning, blocks, changes)


RETENTIONS = [Retention(graphs=graphs) for graphs in (1, 4, 7, None)] + [Retention(inputs=3)]


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("retention", RETENTIONS, ids=str)
def test_what_is_retained_does_not_change_a_bit(tuning, retention):
    features, gradients = learnt_without_retention(tuning)
    other_features, other_gradients = learn(backbone(tuning=tuning, blocks=(0, 1, 2, 3), retention=retention))
    assert torch.equal(other_features, features)
    assert all(torch.equal(other_gradients[name], gradient) for name, gradient in gradients.items())
    assert gradients.keys() == other_gradients.keys()


@pytest.mark.parametrize("segments", range(1, 41))
def test_groups_of_segments(segments):
    """As many as inputs allow, of any number; while one runs, no more tensors wait than that."""
    least = least_inputs(segments)
    for inputs in range(least, segments + 1):
        sizes = Retention(inputs=inputs).groups(segments)
        assert sum(sizes) == segments
        assert len(sizes) == inputs
        assert min(sizes) >= 1
        assert max(number + size for number, size in enumerate(sizes)) <= inputs
    if least > 1:
        with pytest.raises(ValueError, match="too few"):
            Retention(inputs=least - 1).groups(segments)
    assert Retention().groups(segments) == Retention(graphs=3).groups(segments) == [1] * segments


def test_kept_graphs_are_those_of_the_last_segments():
    assert Retention(graphs=5).graphs_of(4, 3) == [0, 0, 2, 3]
    assert Retention(graphs=None).graphs_of(2, 3) == Retention(graphs=99).graphs_of(2, 3) == [3, 3]
    with pytest.raises(ValueError, match="only where every"):
        Retention(graphs=1, inputs=2)


@pytest.mark.parametrize("retention", [Retention(), *RETENTIONS], ids=str)
def test_only_what_is_not_retained_runs_again(retention):
    """Blocks 1 to 3 run in 5 spans each, without graphs at first."""
    model, runs = backbone(blocks=(0, 1, 2, 3), retention=retention), []
    for index in (1, 2, 3):
        model.vit.blocks[index].register_forward_hook(lambda *_, index=index: runs.append(index))
    learn(model)
    # The last segment, of the adapter after block 3, has no block: its 5 graphs are kept first.
    again = {0: 15, 1: 15, 4: 15, 7: 13, None: 0}[retention.graphs]
    if retention.inputs is not None:
        again += 5  # the input of the second segment is made again
    assert len(runs) == 15 + again


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("retention", [Retention(), Retention(graphs=None), Retention(graphs=4), Retention(inputs=3)])
def test_each_gradient_is_accumulated_once(tuning, retention):
    """ZeRO reduces a gradient when it is accumulated; a second time would be an error, or count twice."""
    model = backbone(tuning=tuning, chunk=1, blocks=(0, 1, 2, 3), retention=retention)
    counts = dict.fromkeys((name for name, p in model.named_parameters() if p.requires_grad), 0)

    def count(name: str) -> None:
        counts[name] += 1

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: count(name))
    learn(model)
    assert set(counts.values()) == {1}


def test_one_tensor_an_adapted_block_is_alive_between_the_passes():
    model = backbone(blocks=(0, 1, 2, 3))
    features = model(frames())
    gc.collect()
    alive = {
        tensor.untyped_storage().data_ptr()
        for tensor in gc.get_objects()
        if type(tensor) is torch.Tensor and tensor.numel() * tensor.element_size() == STORED_BYTES
    }
    assert len(alive) == 4
    features.sum().backward()


@pytest.mark.slow
# Where tensors wait: so long that tokens take more than the pixels of a span.
@pytest.mark.parametrize(
    ("tuning", "waiting", "lengths"), [("side", 0, (1, 4)), ("tia", 2, (17, 20)), ("lora", 2, (17, 20))]
)
def test_without_gradients_few_tensors_grow_with_the_window(tuning, waiting, lengths):
    """`side` keeps none of its four blocks' outputs, the others the one that is read and the one that is written."""
    model = backbone(tuning=tuning, blocks=(0, 1, 2, 3), retention=Retention(graphs=None), kernel=5)
    short, long = (frames().repeat(1, count, 1, 1, 1) for count in lengths)

    def run(window: torch.Tensor) -> None:
        with torch.no_grad():
            model(window)

    growth = live_bytes(lambda: run(long)) - live_bytes(lambda: run(short))
    assert waiting <= growth / (3 * STORED_BYTES) < waiting + 0.8  # beside them, features of a quarter of their size


def test_budget_keeps_the_last_ones_on_the_device():
    storage = Storage(StoragePolicy(offload=True, device_bytes=2 * STORED_BYTES + 5))
    shape = (2, TUBELETS, POSITIONS, SPEC.width)
    made = storage.reserve(5, shape, like=torch.empty(0))
    assert [type(each) for each in made] == [HostTensor] * 3 + [DeviceTensor] * 2
    assert [type(each) for each in Storage(StoragePolicy()).reserve(2, shape, like=torch.empty(0))] == [
        DeviceTensor
    ] * 2


def test_host_memory_is_used_again():
    storage = Storage(StoragePolicy(offload=True))
    shape, like = (2, 8, 4, 3), torch.empty(0)
    addresses = []
    for _ in range(2):
        (stored,) = storage.reserve(1, shape, like=like)
        values = torch.randn(shape)
        for start, stop in pairwise((0, 3, 8)):
            stored.write(start, values[:, start:stop])
        read = torch.cat([piece.clone() for piece in stored.read([(0, 2), (2, 7), (7, 8)])], dim=1)
        torch.testing.assert_close(read, values)
        addresses.append(stored._values.data_ptr())
        del stored
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize("tuning", ["tia", "side", "lora"])
def test_no_span_waits_at_the_end_of_a_pass(tuning):
    """With streams for copies, the numbers are the same, and each pass lets all spans go that it has copied."""
    runtime, policy = Runtime(), StoragePolicy(offload=True, device_bytes=STORED_BYTES)
    storage = Storage(policy, streams=CopyStreams(torch.device("cpu"), runtime))
    out, back = runtime.copies
    model = backbone(tuning=tuning, blocks=(0, 1, 2, 3))
    model.storage = storage
    noise = SampleNoise(seeds=[7, 8], device=torch.device("cpu"))
    features = model.tubelet_features(frames(), noise)
    assert runtime.compute.knows(out) == out.done[out] == 3 * CLIPS
    reads = back.done[back]
    assert runtime.compute.knows(back) == reads >= 3 * CLIPS
    features.sin().sum().backward()
    assert runtime.compute.knows(back) == back.done[back] == reads + 3 * CLIPS
    expected_features, expected = learnt_without_retention(tuning)
    assert torch.equal(features, expected_features)
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("tuning", TUNINGS)
def test_passes_make_no_tensor_from_numbers(tuning):
    """Of the features; on a GPU the host would wait for each of them."""
    model, noise = backbone(tuning=tuning), SampleNoise(seeds=[7, 8], device=torch.device("cpu"))
    with TensorsOfNumbers() as numbers:
        model.tubelet_features(frames(), noise).sum().backward()
    assert numbers.made == 0


def test_sums_over_spans_and_positions_are_rounded_once():
    """In bf16, the second step as the first."""
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    shares = torch.tensor([1.0, 2**-9, 2**-9, 2**-9], dtype=torch.bfloat16)
    for _ in range(2):
        parameter.grad, parameters = None, OnceAccumulated([parameter])
        for place, share in enumerate(shares):
            tokens = share.view(1, 1, 1, 1)
            graph, _ = build_graph(lambda tokens, *_: tokens * parameter, (place, place + 1), tokens, (0, 0))
            parameters.differentiate(graph.root, torch.ones_like(tokens), graph.tokens, last=place == 3)
        assert parameter.grad is not None
        assert parameter.grad.item() == 1 + 2**-7
    assert pool(shares.view(1, 1, 4, 1), slice(0, 3)).item() == pytest.approx((1 + 2**-8) / 3, rel=1e-6)


def test_stopwatch_names_every_pass():
    stopwatch = Stopwatch(profile=True)
    learn(backbone(stopwatch=stopwatch))
    taken = stopwatch.take()
    assert taken.keys() == {f"block_{block}/{way}" for block in (1, 2) for way in ("forward", "backward")}
    assert min(taken.values()) > 0
    assert stopwatch.take() == {}


@pytest.mark.parametrize("targets", [("qkv",), ("proj", "fc2"), ("qkv", "proj", "fc1", "fc2")], ids=str)
@pytest.mark.parametrize("dora", [False, True])
def test_low_rank_updates_are_those_of_the_paper(targets, dora):
    """Numbers, merged weights and gradients against plain tensors' (LoRA, section 4.1; DoRA, 4.1 and 4.3)."""
    settings = LoRASettings(rank=3, alpha=6.0, targets=targets, dora=dora)
    model = backbone(tuning="lora", lora=settings)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert len(layers) == 2 * len(targets)
    merged = merged_weights(model)
    assert merged.keys() == {f"{name}.weight" for name in layers}
    for name, layer in layers.items():
        x = torch.randn(5, layer.weight.shape[1])
        weight = layer.weight + 2.0 * layer.lora_up @ layer.lora_down
        if dora:
            weight = weight / weight.norm(dim=1, keepdim=True).detach() * layer.weight.norm(dim=1, keepdim=True)
            weight = weight * (1 + layer.lora_size)[:, None]
        torch.testing.assert_close(merged[f"{name}.weight"], weight.detach())
        found, wanted = layer(x), x @ weight.T + layer.bias
        torch.testing.assert_close(found, wanted)
        trained = [layer.lora_down, layer.lora_up, *([layer.lora_size] if dora else [])]
        gradients = (torch.autograd.grad(out.square().sum(), trained) for out in (found, wanted))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_untrained_updates_change_nothing():
    plain, adapted = (
        backbone(tuning=tuning, lora=LoRASettings(rank=2, alpha=1.0, targets=("qkv", "fc1"), dora=True))
        for tuning in ("frozen", "lora")
    )
    adapted.vit.load_state_dict(plain.vit.state_dict(), strict=False)
    for name, parameter in adapted.named_parameters():
        if name.endswith(("lora_up", "lora_size")):
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        torch.testing.assert_close(adapted(frames()), plain(frames()))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_what_a_tuning_trains(tuning):
    model = backbone(tuning=tuning, blocks=(1, 3))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    inside = {name for name in trained if name.startswith("vit.")}
    assert {name.split(".")[2] for name in inside} <= {"1", "3"}
    ends = {".".join(name.split(".")[3:]) for name in inside}
    norms = {f"norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert (
        ends
        == {
            "tia": set(),
            "side": set(),
            "ladder": set(),
            "norm": norms,
            "bitfit": {"norm1.bias", "norm2.bias", *(f"{layer}.bias" for layer in layers)},
            "lora": (lora := {f"{layer}.lora_{part}" for layer in layers for part in ("down", "up")}),
            "tia+lora": lora,
        }[tuning]
    )
    with_adapters = ("tia", "side", "ladder", "tia+lora")
    assert any(name.startswith("adapters.") for name in trained) == (tuning in with_adapters)
    assert any(name.startswith("long_adapters.") for name in trained) == (tuning == "ladder")


def test_long_range_adapters_look_as_far_as_they_say():
    adapter = LongRange(width=8, ratio=0.5, dilations=(2, 9))
    assert adapter.reach == 11
    means = torch.randn(1, 40, 8)
    assert not adapter(means).any()  # at first
    torch.nn.init.normal_(adapter.up_proj.weight)
    changed = means.clone()
    changed[:, 20] += 1
    seen = (adapter(changed) - adapter(means)).abs().amax(dim=(0, 2)).nonzero().flatten()
    assert seen.tolist() == [9, 11, 13, 18, 20, 22, 27, 29, 31]
