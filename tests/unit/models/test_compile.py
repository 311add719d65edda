from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adatad_ds.config.backbone import Tuning
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.detector import Detector
from adatad_ds.models.execution.compiling import compile_regions
from adatad_ds.models.execution.retention import Retention
from adatad_ds.models.factory import Runtime, build_detector

CPU = torch.device("cpu")
SPEC = ViTSpec(width=48, depth=2, heads=2, mlp_hidden=96, pretrained_side=32)
CONFIG = Config(
    data=DataConfig(window_size=32, resolution=32, short_side_before_crop=32),
    backbone=BackboneConfig(drop_path=0.3, clips_per_chunk=1, adapter_ratio=0.25),
    head=HeadConfig(width=16, arch=(1, 0, 1), regression_range=((0, 4), (4, 99)), drop_path=0.1),
    train=TrainConfig(precision="fp32"),
)


def detector(tuning: Tuning = "tia") -> Detector:
    """Adapters that are not zero; of two spans' graphs one is kept."""
    torch.manual_seed(0)
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, tuning=tuning))
    model = build_detector(config, spec=SPEC, num_classes=3, runtime=Runtime(retention=Retention(graphs=1)))
    for name, parameter in model.named_parameters():
        if name.endswith("up_proj.weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: Detector, seed: int) -> dict[str, Tensor]:
    """Of a training step on a window of the seed's."""
    frames = torch.randint(256, (1, 32, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    predictions = model(frames, torch.ones(1, 32, dtype=torch.bool), torch.tensor([seed]))
    (predictions.class_logits.sin().sum() + predictions.distances.sum()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def evaluate(model: Detector) -> Tensor:
    with torch.no_grad():
        return model(torch.zeros(1, 32, 32, 32, 3, dtype=torch.uint8), torch.ones(1, 32, dtype=torch.bool)).class_logits


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_once_and_equal():
    """Gradients with recomputation, a kept graph and drop path; after the first shapes nothing is compiled again."""
    from torch._dynamo.utils import counters

    plain, compiled = detector(), detector()
    assert compile_regions(compiled, device=CPU) == 2 + 2 + 1  # blocks, adapters, the pyramid's attention
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for seed in (1, 2):
        expected, found = gradients(plain, seed), gradients(compiled, seed)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = max(1e-3, float(gradient.abs().max()))  # a key's bias has no gradient
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(evaluate(compiled), evaluate(plain))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert not counters["graph_break"]
    for seed in (3, 4):
        gradients(compiled, seed)
        evaluate(compiled)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_a_ladders_long_range_adapters_too():
    """Without generated code: that there is one graph of each, forwards and backwards."""
    plain, compiled = detector("ladder"), detector("ladder")
    assert compile_regions(compiled, device=CPU, backend="aot_eager") == 2 + 2 + 2 + 1
    found = []
    for model in (plain, compiled):
        adapter = model.get_submodule("backbone.long_adapters.1")
        torch.manual_seed(1)
        adapter(torch.randn(1, 16, 48)).sin().sum().backward()
        found.append({name: p.grad for name, p in adapter.named_parameters()})
        assert ("forward" in vars(adapter)) == (model is compiled)
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.slow
def test_as_many_variants_where_autograd_recomputes_in_a_thread_of_its_own():
    """As on GPUs: five uneven spans, and shapes of an evaluation of two windows before, are more than PyTorch's 8."""
    torch._dynamo.reset()
    data = replace(CONFIG.data, window_size=80)
    backbone = replace(CONFIG.backbone, clips_per_chunk=2, activation_checkpointing=True)
    config = replace(CONFIG, data=data, backbone=backbone)
    model = build_detector(config, spec=SPEC, num_classes=3, runtime=Runtime())
    compile_regions(model, device=CPU, backend="eager")
    frames, mask = torch.zeros(2, data.window_frames, 32, 32, 3, dtype=torch.uint8), torch.ones(2, 80, dtype=torch.bool)
    with torch.no_grad():
        model(frames, mask)
    loss = model(frames[:1], mask[:1], torch.tensor([1])).class_logits.sum()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(loss.backward).result()
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ConfigError, match="no video transformer's block"):
        compile_regions(torch.nn.Linear(2, 2), device=CPU)
    from torch._inductor import config as inductor

    with inductor.patch({"cpp.cxx": ("/nowhere/g++",)}):
        model = detector()
        with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler .* or train without"):
            compile_regions(model, device=CPU)
    assert "forward" not in vars(model.backbone.vit.blocks[0])
