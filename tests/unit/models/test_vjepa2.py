"""V-JEPA 2: transformers' numbers, its checkpoints, plans and plain autograd's gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import VJEPA2Config, VJEPA2Model

from adatad_ds.config.loading import override
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, TrainConfig
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from adatad_ds.models.backbones.vit import VIT_SPECS, VisionTransformer
from adatad_ds.models.backbones.vjepa2 import VJEPA2, VJEPA2_SPECS, rotary_table
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.transformers import VIDEO_SPECS
from adatad_ds.planning.memory import make_plan, step_flop
from adatad_ds.weights.files import StoredTensor
from adatad_ds.weights.loading import fill_backbone
from adatad_ds.weights.video_layouts import VJEPA2 as AUTHORS
from adatad_ds.weights.video_layouts import (
    VJEPA2_TRANSFORMERS,
    backbone_name,
    fit_video_weights,
    open_weights,
    recognise,
)
from tests.support.memory import SMALL_HEAD, backbone_peaks
from tests.support.plain_backbone import compare_with_plain_autograd

SPEC = ViTSpec(width=96, depth=3, heads=2, mlp_hidden=160, pretrained_side=64, family="V-JEPA 2")  # 48 channels a head


def theirs(spec: ViTSpec, *, resolution: int, frames: int) -> VJEPA2Config:
    return VJEPA2Config(
        crop_size=resolution,
        frames_per_clip=frames,
        hidden_size=spec.width,
        num_attention_heads=spec.heads,
        num_hidden_layers=spec.depth,
        mlp_ratio=spec.mlp_hidden / spec.width,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )


def as_the_authors_save(vit: VJEPA2) -> dict[str, dict[str, torch.Tensor]]:
    """The dicts of their .pt: encoders as wrapped for training, and a predictor."""
    encoder = {f"module.backbone.{name}": p.detach().clone() for name, p in vit.named_parameters()}
    predictor = {"module.backbone.predictor_blocks.0.norm1.weight": torch.ones(3)}
    wrong = {name: torch.zeros_like(tensor) for name, tensor in encoder.items()}
    return {"encoder": wrong, "predictor": predictor, "target_encoder": encoder}


def small(*, frames: int = 16, resolution: int = 64, spec: ViTSpec = SPEC) -> VJEPA2:
    torch.manual_seed(1)
    vit = VJEPA2(spec=spec, clip_frames=frames, resolution=resolution)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vit


def filled(source: Path, *, frames: int, resolution: int) -> VJEPA2:
    with shapes_only():
        vit = VJEPA2(spec=SPEC, clip_frames=frames, resolution=resolution)
    weights = fit_video_weights(open_weights(source), vit, backbone="small")
    fill_backbone(vit, weights.vit, dtype=torch.float32, read=True, host=lambda module: None)
    return vit


@pytest.mark.parametrize(("frames", "resolution"), [(16, 64), (16, 96), (24, 48), (64, 32)])
def test_numbers_are_those_of_transformers(frames, resolution, tmp_path):
    torch.manual_seed(0)
    reference = VJEPA2Model(theirs(SPEC, resolution=resolution, frames=frames)).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    reference.save_pretrained(tmp_path)
    vit = filled(tmp_path, frames=frames, resolution=resolution)
    clips = torch.randint(0, 256, (2, frames, resolution, resolution, 3), dtype=torch.uint8)
    pixels = (clips - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    with torch.no_grad():
        tokens = vit.embed(clips)
        for index in range(SPEC.depth):
            tokens = vit.run_block(index, tokens)
        expected = reference(pixels.permute(0, 1, 4, 2, 3), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(vit.finish(tokens), expected, rtol=1e-5, atol=1e-5)


def test_both_layouts_are_recognised(tmp_path):
    vit = small()
    torch.save(as_the_authors_save(vit), tmp_path / "theirs.pt")
    weights = open_weights(tmp_path / "theirs.pt")
    assert weights.layout == AUTHORS
    assert not weights.left_out
    for name, parameter in filled(tmp_path / "theirs.pt", frames=16, resolution=64).named_parameters():
        torch.testing.assert_close(parameter, vit.get_parameter(name))
    save_file({name: p.detach().clone() for name, p in vit.named_parameters()}, tmp_path / "ours.safetensors")
    assert open_weights(tmp_path / "ours.safetensors").layout == AUTHORS


def test_v_jepa_with_its_table_of_positions_is_refused(tmp_path):
    """The first V-JEPA has the same names and sizes, and absolute positions."""
    saved = as_the_authors_save(small())
    saved["target_encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 8 * 14 * 14, SPEC.width)
    torch.save(saved, tmp_path / "vitl16.pth.tar")
    with pytest.raises(CheckpointError, match=r"absolute positions \(pos_embed\): it is from V-JEPA, not V-JEPA 2"):
        open_weights(tmp_path / "vitl16.pth.tar")


def test_weights_of_the_other_family_are_refused(tmp_path):
    """L has VideoMAE-L's widths; only norm and biases tell them apart."""
    rotary = small()
    plain = VisionTransformer(spec=replace(SPEC, family="VideoMAE"), resolution=64)
    for vit, other in ((rotary, plain), (plain, rotary)):
        path = tmp_path / "weights.safetensors"
        save_file({name: p.detach().clone() for name, p in vit.named_parameters()}, path)
        with pytest.raises(CheckpointError, match="of another transformer"):
            fit_video_weights(open_weights(path), other, backbone="small")


@pytest.mark.parametrize("name", VJEPA2_SPECS)
def test_published_sizes(name, tmp_path):
    """Names and shapes of transformers' models with the hub's settings, without memory."""
    ratio, spec = {"vjepa2_g": 48 / 11}.get(name, 4.0), VJEPA2_SPECS[name]
    with shapes_only():
        ours = VJEPA2(spec=spec, clip_frames=64, resolution=256)
    with shapes_only():
        reference = VJEPA2Model(replace_ratio(theirs(spec, resolution=256, frames=64), ratio))
    shapes = {key: p.shape for key, p in reference.named_parameters() if not key.startswith("predictor.")}
    stored = {key: StoredTensor(tuple(shape), lambda: torch.empty(0)) for key, shape in shapes.items()}
    weights = recognise(stored, source="hub", averaged=False)
    assert weights.layout == VJEPA2_TRANSFORMERS
    assert backbone_name(weights) == name
    fit_video_weights(weights, ours, backbone=name)
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    assert millions == pytest.approx({"vjepa2_l": 304, "vjepa2_h": 631, "vjepa2_g": 1011}[name], abs=2)


def replace_ratio(config: VJEPA2Config, ratio: float) -> VJEPA2Config:
    config.mlp_ratio = ratio
    return config


def tuned(tuning: str, *, frames: int) -> AdaptedBackbone:
    config = Config(
        data=DataConfig(window_size=96, resolution=32, short_side_before_crop=32),
        backbone=BackboneConfig(
            name="vjepa2_l",
            tuning=tuning,  # pyright: ignore
            clip_frames=frames,
            clips_per_chunk=2,
            adapter_blocks=(0, 2),
        ),
        train=TrainConfig(precision="fp32"),
    )
    torch.manual_seed(0)
    model = build_backbone(config, feature_steps=48, spec=SPEC)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith("vit.blocks.0.norm"):
            torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, AdaptedBackbone)
    return model


@pytest.mark.parametrize(("tuning", "frames"), [("tia", 16), ("side", 32), ("lora", 48), ("frozen", 16)])
def test_recomputed_the_same_as_plain_autograd(tuning, frames):
    window = torch.randint(0, 256, (1, 96, 32, 32, 3), dtype=torch.uint8)
    gradients = compare_with_plain_autograd(lambda: tuned(tuning, frames=frames), window)
    assert bool(gradients) == (tuning != "frozen")


def test_clips_of_any_even_length():
    config = override(Config(), ["backbone.name=vjepa2_l", "backbone.clip_frames=64"])
    assert config.clip_frames == 64
    assert override(config, ["backbone.clip_frames=None"]).clip_frames == 16
    for length, said in ((64, "not a multiple of 64"), (3, "is odd")):
        with pytest.raises(ConfigError, match=said):
            override(config, [f"backbone.clip_frames={length}", f"data.window_size={800 if length == 64 else 768}"])
    with pytest.raises(ConfigError, match="clip_frames"):
        override(Config(), ["backbone.clip_frames=32"])


def test_rotation_is_by_tubelet_row_and_column():
    """By hand: the angle of each channel of each position, for 2 x 3 x 3 places and 20 channels (3 x 6, 2 left)."""
    cosines, sines = rotary_table(steps=2, side=3, channels=20)
    for index, place in enumerate(product(range(2), range(3), range(3))):
        for axis, channel in product(range(3), range(6)):
            angle = torch.tensor(place[axis] * 10000.0 ** (-(channel % 3) / 3))
            torch.testing.assert_close(cosines[index, 6 * axis + channel], angle.cos())
            torch.testing.assert_close(sines[index, 6 * axis + channel], angle.sin())
    assert (cosines[:, 18:] == 1).all()
    assert (sines[:, 18:] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["tia", "lora"])
def test_memory_is_what_the_allocator_gives(tuning, monkeypatch):
    monkeypatch.setitem(VIDEO_SPECS, "vjepa2_small", SPEC)
    backbone = BackboneConfig(name="vjepa2_small", tuning=tuning, clip_frames=32, clips_per_chunk=1)
    config = Config(
        data=DataConfig(window_size=128, resolution=64, short_side_before_crop=64),
        backbone=backbone,
        train=TrainConfig(precision="fp32", global_batch=1),
    )
    planned, measured = backbone_peaks(config)
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_the_giant_has_a_plan():
    config = override(Config(), ["backbone.name=vjepa2_g", "data.resolution=256", "data.short_side_before_crop=288"])
    stage3 = {"zero_optimization": {"stage": 3}}
    long = override(config, ["backbone.clip_frames=64", "backbone.clips_per_chunk=2"])
    plan = make_plan(replace(config, head=SMALL_HEAD), ds_config=stage3, ranks=2, num_classes=20)
    frozen = next(line.device for line in plan.lines if line.name == "frozen weights")
    assert frozen == pytest.approx(2 * 1.011e9 / 2, rel=0.01)
    assert step_flop(long) > 1.2 * step_flop(config)  # attention over 4 times the tokens
    assert "vjepa2_g" not in VIT_SPECS
