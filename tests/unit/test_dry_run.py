"""`--dry-run` says of the weights what loading them would say, by names and shapes alone."""

from __future__ import annotations

import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from adatad_ds.config.loading import override
from adatad_ds.errors import CheckpointError
from adatad_ds.models.factory import build_model
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.train import main
from adatad_ds.weights.loading import find_weights

RECIPE = find_recipe("quickstart").config


def dry_run(*assignments: str) -> int:
    return main(["--recipe", "quickstart", "--dry-run", *(word for each in assignments for word in ("--set", each))])


def test_those_that_fit(capsys):
    assert dry_run() == 0
    printed = capsys.readouterr().out
    assert "adapter, trainable" in printed
    assert f"weights: {RECIPE.backbone.weights}: VideoMAE, " in printed
    assert "weights: they fit the transformer" in printed
    assert dry_run("backbone.weights=null") == 0
    assert "weights: none" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_names_and_shapes_that_differ_are_in_the_loads_own_words(suffix, tmp_path, capsys):
    tensors = load_file(RECIPE.backbone.weights)
    tensors["blocks.0.norm1.weights"] = tensors.pop("blocks.0.norm1.weight")
    tensors["blocks.1.attn.proj.weight"] = tensors["blocks.1.attn.proj.weight"][:-1].clone()
    path = tmp_path / f"wrong{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    config = override(RECIPE, [f"backbone.weights={path}"])
    with torch.device("meta"):
        vit = build_model(config, num_classes=5).backbone.vit
    with pytest.raises(CheckpointError, match=r"1 missing: blocks.0.norm1.weight. 1 unexpected: .* 1 of") as raised:
        find_weights(config.backbone, vit)
    assert dry_run(f"backbone.weights={path}") == 2
    captured = capsys.readouterr()
    assert "adapter, trainable" in captured.out
    assert str(raised.value) in " ".join(captured.err.split())


def test_those_of_another_model_and_none_there(tmp_path, capsys):
    assert dry_run("backbone.name=videomae_s") == 2
    assert "are of another transformer" in capsys.readouterr().err
    assert dry_run(f"backbone.weights={tmp_path / 'none.safetensors'}") == 2
    assert "there is no weights file" in capsys.readouterr().err


def test_what_the_hub_has_is_not_downloaded(capsys, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert dry_run("backbone.weights=nobody/nothing-of-that-name") == 0
    assert "nobody/nothing-of-that-name is not in the hub's cache yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "tuning"),
    [("quickstart", "tia"), ("quickstart", "plain"), ("quickstart", "ladder"), ("quickstart_aim", "aim")],
)
def test_adapters_without_a_hidden_channel(recipe, tuning, capsys):
    changes = [f"backbone.tuning={tuning}", "backbone.weights=null", "backbone.adapter_ratio=0.001"]
    assert main(["--recipe", recipe, "--dry-run", *(word for each in changes for word in ("--set", each))]) == 2
    error = capsys.readouterr().err
    assert "backbone.adapter_ratio=0.001 leaves adapters of a backbone of width" in error
    assert "Traceback" not in error


def test_a_pyramid_without_convolutions_is_as_wide_as_its_features(capsys):
    for width, code in ((192, 0), (32, 2)):
        changes = ["head.arch=[0,1,3]", f"head.width={width}", "backbone.name=tiny", "backbone.weights=null"]
        assert dry_run(*changes) == code, width
    assert "head.arch = [0, 1, 3] has no convolution that takes the 192 channels" in capsys.readouterr().err


def test_settings_without_an_effect_are_named(capsys):
    assert dry_run("backbone.lora_rank=4", "head.num_bins=8", "train.lr_head=1e-3") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: --set backbone.lora_rank changes nothing here: it is for backbone.tuning=lora, tia+lora and plain+lora",
        "note: --set head.num_bins changes nothing here: it is for head.name=tridet",
    ]
