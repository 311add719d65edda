"""LoRA's updates as plain weights: merged and unmerged exports detect the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.errors import ConfigError
from adatad_ds.inference.trained_model import Trained, export, find_trained, load_model, merge_updates
from adatad_ds.models.factory import build_detector
from adatad_ds.weights.files import held_tensor
from adatad_ds.weights.loading import fingerprint

CLASSES = ("jump", "run", "throw")


def trained(folder: Path, *, tuning: str, dora: bool = False, from_file: bool = False) -> Trained:
    """A detector whose trainable tensors are far from where they start, as a run would leave it."""
    config = Config(
        data=DataConfig(window_size=64, resolution=32, short_side_before_crop=32),
        backbone=BackboneConfig(
            name="tiny",
            tuning=tuning,  # pyright: ignore
            lora_rank=3,
            lora_dora=dora,
            activation_memory_gb=1.0,  # a run's, which `frozen` does not take
        ),
        head=HeadConfig(width=32, arch=(1, 1, 1), regression_range=((0, 4), (4, 99))),
        train=TrainConfig(precision="fp32"),
    )
    torch.manual_seed(config.train.seed)
    model = build_detector(config, num_classes=len(CLASSES))
    if from_file:
        weights = folder / "transformer.safetensors"
        own = {name: p for name, p in model.backbone.vit.state_dict().items() if ".lora_" not in name}
        save_file(own, weights)
        config = replace(config, backbone=replace(config.backbone, weights=str(weights)))
    learnt = {
        name: held_tensor(p.detach() + 0.1 * torch.randn_like(p))
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return Trained(
        name="a run",
        source=folder,
        folder=folder,
        config=config,
        classes=CLASSES,
        trainable=learnt,
        frozen_fingerprint=fingerprint(model.backbone.vit),
        averaged=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "dora", "from_file"),
    [("lora", False, True), ("lora", True, False), ("tia+lora", False, False), ("plain+lora", False, False)],
)
def test_merged_detects_the_same(tuning, dora, from_file, tmp_path):
    run = trained(tmp_path, tuning=tuning, dora=dora, from_file=from_file)
    export(run, tmp_path / "apart.safetensors", extra={})
    export(merge_updates(run), tmp_path / "merged.safetensors", extra={})
    names = set(load_file(tmp_path / "merged.safetensors"))
    assert not any(".lora_" in name for name in names)
    assert sum(name.startswith("backbone.vit.") for name in names) == 6 * 4
    apart, merged = (find_trained(tmp_path / f"{name}.safetensors") for name in ("apart", "merged"))
    assert merged.config.backbone.tuning == {"lora": "frozen", "tia+lora": "tia", "plain+lora": "plain"}[tuning]
    frames = torch.randint(0, 256, (1, 64, 32, 32, 3), dtype=torch.uint8)
    found = []
    for each in (apart, merged):
        model = load_model(each, num_classes=len(CLASSES))
        with torch.no_grad():
            found.append(model(frames, torch.ones(1, 64, dtype=torch.bool)))
    torch.testing.assert_close(found[0].class_logits, found[1].class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0].distances, found[1].distances, rtol=1e-4, atol=1e-4)
    trainable = apart.trainable or {}
    started = {name: held_tensor(torch.zeros(stored.shape)) for name, stored in trainable.items() if ".lora_" in name}
    untrained = replace(apart, trainable=trainable | started)
    with torch.no_grad():
        other = load_model(untrained, num_classes=len(CLASSES))(frames, torch.ones(1, 64, dtype=torch.bool))
    assert (other.class_logits - found[0].class_logits).abs().max() > 1e-2  # the updates do matter


def test_without_updates_nothing_can_be_merged(tmp_path):
    with pytest.raises(ConfigError, match="a run has nothing to merge"):
        merge_updates(trained(tmp_path, tuning="tia"))
