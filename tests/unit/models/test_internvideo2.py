"""InternVideo2: the published code's numbers, its checkpoints, plans and plain autograd's gradients.

internvideo2.json holds what the published code gives for random weights (`published`), and the names and shapes of its
models' tensors, those of the first block standing for all.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adatad_ds.config.loading import override
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, TrainConfig
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.internvideo2 import INTERNVIDEO2_SPECS, Block, InternVideo2
from adatad_ds.models.backbones.vit import VIT_SPECS
from adatad_ds.models.execution.segments import pool
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.transformers import VIDEO_SPECS
from adatad_ds.planning.memory import make_plan
from adatad_ds.weights.files import StoredTensor
from adatad_ds.weights.loading import fill_backbone
from adatad_ds.weights.video_layouts import (
    INTERNVIDEO2,
    backbone_name,
    fit_video_weights,
    open_weights,
    recognise,
    resized_positions,
)
from tests.support.memory import SMALL_HEAD, backbone_peaks
from tests.support.plain_backbone import compare_with_plain_autograd

PUBLISHED = json.loads(Path(__file__).with_name("internvideo2.json").read_text(encoding="utf-8"))
SPEC = replace(
    INTERNVIDEO2_SPECS["internvideo2_s"], width=32, depth=3, heads=4, mlp_hidden=64, pretrained_side=28
)  # two patches a side


def published(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight as it was in the published code when it made the numbers: by its name alone."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    around_one = "norm" in name or name.endswith("gamma")
    return torch.tensor(1 + 0.3 * values if around_one else 0.2 * values, dtype=torch.float32)


def saved(path: Path, *, prefix: str = "", beside: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint of `SPEC` for 4 frames as the authors save it."""
    with shapes_only():
        vit = InternVideo2(spec=SPEC, clip_frames=4, resolution=28)
    shapes = {name.removeprefix("prefix."): tuple(p.shape) for name, p in vit.named_parameters()}
    torch.save({"module": {f"{prefix}{name}": published(name, s) for name, s in shapes.items()} | (beside or {})}, path)
    return path


def filled(source: Path, *, frames: int = 4, resolution: int = 28, spec: ViTSpec = SPEC) -> InternVideo2:
    with shapes_only():
        vit = InternVideo2(spec=spec, clip_frames=frames, resolution=resolution)
    weights = fit_video_weights(open_weights(source), vit, backbone="small")
    fill_backbone(vit, weights.vit, dtype=torch.float32, read=True, host=lambda module: None)
    return vit


def test_numbers_are_those_of_the_published_code(tmp_path):
    vit = filled(saved(tmp_path / "theirs.bin"))
    frames = torch.tensor(np.random.RandomState(0).randint(0, 256, (1, 4, 28, 28, 3)), dtype=torch.uint8)
    with torch.no_grad():
        tokens = vit.embed(frames)
        for index in range(SPEC.depth):
            tokens = vit.run_block(index, tokens)
    torch.testing.assert_close(vit.finish(tokens)[0, :, ::4], torch.tensor(PUBLISHED["tokens"]), rtol=1e-5, atol=2e-5)


def test_positions_are_resized_as_published():
    """Of 8 frames of 4 x 4 patches, for 4 frames of 3 x 3."""
    table = published("table", (1, 1 + 8 * 16, 32))
    resized = resized_positions(table, patch_rows=4, clip_frames=4, grid_side=3)
    torch.testing.assert_close(resized[0, :, ::8], torch.tensor(PUBLISHED["positions"]), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(resized_positions(table, patch_rows=4, clip_frames=8, grid_side=4), table)


def test_positions_fit_the_clips_and_the_resolution(tmp_path):
    """Also where the number of positions happens to agree: 16 frames of one patch, 4 of four."""
    source = saved(tmp_path / "theirs.pth")
    table = published("pos_embed", (1, 17, 32))
    for frames, resolution in ((8, 28), (4, 42), (16, 14)):
        vit = filled(source, frames=frames, resolution=resolution)
        wanted = resized_positions(table, patch_rows=2, clip_frames=frames, grid_side=resolution // 14)
        torch.testing.assert_close(vit.prefix.pos_embed.data, wanted)
    odd = saved(tmp_path / "odd.pth")
    state = torch.load(odd)["module"]
    torch.save({"module": state | {"pos_embed": torch.zeros(1, 16, 32)}}, odd)
    with pytest.raises(CheckpointError, match=r"prefix.pos_embed is \(1, 16, 32\), the model wants \(1, 17, 32\)"):
        filled(odd)


@pytest.mark.parametrize("prefix", ["", "vision_encoder.", "backbone."])
def test_what_stands_beside_the_encoder_is_left_out(prefix, tmp_path):
    others = ["clip_projector.norm1_q.weight", "head.weight", "clip_decoder.0.head.bias", "mae_pos_embed"]
    others += ["text_encoder.embeddings.weight", "temp", "text_proj.weight"] if prefix == "vision_encoder." else []
    beside = {(prefix if "text" not in name and name != "temp" else "") + name: torch.ones(3) for name in others}
    weights = open_weights(saved(tmp_path / "theirs.pt", prefix=prefix, beside=beside))
    assert weights.layout == INTERNVIDEO2
    assert sorted(key for keys in weights.left_out.values() for key in keys) == sorted(others)
    assert "clip_projector.norm1_q.weight" in weights.left_out["attention pooling"]
    assert all("." in key for key in weights.vit)


@pytest.mark.parametrize("which", PUBLISHED["sizes"])
def test_published_sizes(which):
    """Names and shapes of the published models at full size, without memory."""
    found, (name, kind) = PUBLISHED["sizes"][which], which.split(" ")
    shapes = {
        key.replace("blocks.0.", f"blocks.{index}."): tuple(shape)
        for key, shape in found["tensors"].items()
        for index in range(found["depth"] if key.startswith("blocks.") else 1)
    }
    stored = {key: StoredTensor(shape, lambda: torch.empty(0)) for key, shape in shapes.items()}
    weights = recognise(stored, source="theirs", averaged=False)
    assert weights.layout == INTERNVIDEO2
    assert backbone_name(weights) == name
    assert "attention pooling" in weights.left_out
    assert ("classifier" in weights.left_out) == (kind == "fine-tuned")
    with shapes_only():
        ours = InternVideo2(spec=INTERNVIDEO2_SPECS[name], clip_frames=16, resolution=224)
    fit_video_weights(weights, ours, backbone=name)
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    published_millions = {"internvideo2_s": 23, "internvideo2_b": 88, "internvideo2_l": 307, "internvideo2_1b": 1018}
    assert millions == pytest.approx(published_millions[name], abs=3)


def test_weights_of_another_family_are_refused(tmp_path):
    """VideoMAE V2's giant has the 1B's widths and patches."""
    with shapes_only():
        ours = InternVideo2(spec=INTERNVIDEO2_SPECS["internvideo2_1b"], clip_frames=8, resolution=224)
    giant = VIT_SPECS["videomaev2_g"]
    stored = {
        "patch_embed.proj.weight": StoredTensor((giant.width, 3, 2, 14, 14), lambda: torch.empty(0)),
        "blocks.39.attn.q_bias": StoredTensor((giant.width,), lambda: torch.empty(0)),
        "blocks.0.mlp.fc1.weight": StoredTensor((giant.mlp_hidden, giant.width), lambda: torch.empty(0)),
    }
    with pytest.raises(
        CheckpointError, match=r"of another transformer: 40 blocks.* px, where .* has 40 blocks.*, class token"
    ):
        fit_video_weights(recognise(stored, source="theirs", averaged=False), ours, backbone="internvideo2_1b")
    with pytest.raises(CheckpointError, match=r"another transformer: 3 blocks.*has 12 blocks"):
        filled(saved(tmp_path / "small.pth"), spec=INTERNVIDEO2_SPECS["internvideo2_b"])


def tuned(tuning: str, *, frames: int, **settings) -> AdaptedBackbone:
    config = Config(
        data=DataConfig(window_size=24, resolution=28, short_side_before_crop=28),
        backbone=BackboneConfig(
            name="internvideo2_s",
            tuning=tuning,  # pyright: ignore
            clip_frames=frames,
            clips_per_chunk=2,
            adapter_blocks=(0, 2),
            **settings,
        ),
        train=TrainConfig(precision="fp32"),
    )
    torch.manual_seed(0)
    model = build_backbone(config, feature_steps=24, spec=SPEC)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name.endswith("gamma"):
            torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, AdaptedBackbone)
    return model


@pytest.mark.parametrize(
    ("tuning", "frames", "settings"),
    [
        ("tia", 4, {}),
        ("side", 8, {}),
        ("ladder", 4, {"ladder_dilations": (1, 5)}),
        ("lora", 4, {"lora_dora": True}),
        ("norm", 8, {}),
        ("bitfit", 4, {}),
        ("tia+lora", 4, {}),
        ("full", 8, {}),
        ("frozen", 4, {}),
    ],
)
def test_recomputed_the_same_as_plain_autograd(tuning, frames, settings):
    window = torch.randint(0, 256, (2, 24, 28, 28, 3), dtype=torch.uint8)
    gradients = compare_with_plain_autograd(partial(tuned, tuning, frames=frames, **settings), window)
    assert bool(gradients) == (tuning != "frozen")
    norms = {"vit.blocks.2.attn.q_norm.weight", "vit.blocks.2.attn.k_norm.weight", "vit.blocks.2.norm1.weight"}
    assert norms <= gradients.keys() if tuning in ("norm", "full") else not norms & gradients.keys()


def test_adapters_reach_the_class_token():
    """And through it what later blocks make of every frame of the clip; a feature is the mean of its patches alone."""
    model = tuned("tia", frames=4)
    tokens = torch.randn(2, 24, model.vit.positions, SPEC.width)
    clips = model.vit.by_clip(tokens)
    assert clips.shape == (2 * 6, 1 + 4 * 4, SPEC.width)
    torch.testing.assert_close(clips[7, 0], tokens[1, 4:8, 0].mean(dim=0))
    torch.testing.assert_close(clips[7, 1:], tokens[1, 4:8, 1:].flatten(0, 1))
    again = model.vit.by_tubelet(clips, windows=2)
    torch.testing.assert_close(again[:, :, 1:], tokens[:, :, 1:])
    torch.testing.assert_close(again[1, 4:8, 0], clips[7, :1].expand(4, -1))
    torch.testing.assert_close(pool(tokens, model.vit.pooled), tokens[:, :, 1:].mean(dim=2))


def test_dropped_branches_by_hand():
    """Each clip's own factors of attention and MLP."""
    vit = tuned("full", frames=4).vit
    block, tokens = vit.blocks[1], torch.randn(2, 17, SPEC.width)
    assert isinstance(block, Block)
    with torch.no_grad():
        found = vit.run_block(1, tokens, torch.tensor([[0.0, 0.0], [2.0, 3.0]]))
        attended = tokens[1:] + 2 * block.ls1(block.attn(block.norm1(tokens[1:])))
        wanted = attended + 3 * block.ls2(block.mlp(block.norm2(attended)))
    torch.testing.assert_close(found[0], tokens[0])
    torch.testing.assert_close(found[1:], wanted)


def test_a_token_covers_what_the_settings_say():
    """Ranks share windows, features are placed and memory is planned by the settings alone."""
    for name, spec in VIDEO_SPECS.items():
        assert BackboneConfig(name=name).frames_per_token == spec.tubelet_frames, name


def test_settings_that_do_not_fit():
    small = ["backbone.name=internvideo2_s", "data.resolution=224", "data.short_side_before_crop=256"]
    assert override(Config(), [*small, "backbone.clip_frames=8"]).clip_frames == 8
    override(Config(), [*small, "backbone.clip_frames=3"])
    with pytest.raises(ConfigError, match="not a multiple of 14 pixels"):
        override(Config(), [*small[:1]])
    with pytest.raises(ConfigError, match="not a multiple of 7"):
        override(Config(), [*small, "backbone.clip_frames=7"])


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "precision"), [("tia", "fp32"), ("lora", "fp32"), ("tia", "bf16")])
def test_memory_is_what_the_allocator_gives(tuning, precision, monkeypatch):
    monkeypatch.setitem(VIDEO_SPECS, "internvideo2_small", replace(SPEC, width=96, mlp_hidden=256, pretrained_side=70))
    config = Config(
        data=DataConfig(window_size=32, resolution=70, short_side_before_crop=70),
        backbone=BackboneConfig(name="internvideo2_small", tuning=tuning, clip_frames=8, clips_per_chunk=2),
        train=TrainConfig(precision=precision, global_batch=1),
    )
    planned, measured = backbone_peaks(config)
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_the_1b_has_a_plan():
    config = override(
        Config(), ["backbone.name=internvideo2_1b", "data.resolution=224", "data.short_side_before_crop=256"]
    )
    config = replace(override(config, ["backbone.clip_frames=8"]), head=SMALL_HEAD)
    plan = make_plan(config, ds_config={"zero_optimization": {"stage": 3}}, ranks=2, num_classes=20)
    frozen = next(line.device for line in plan.lines if line.name == "frozen weights")
    assert frozen == pytest.approx(2 * 1.018e9 / 2, rel=0.01)
    assert plan.activations.tensor_bytes == 768 * 257 * 1408 * 2
