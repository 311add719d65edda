"""DINOv2 and DINOv3: their layouts, positions of other sizes, registers; features as of transformers' models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from timm.layers import GluMlp
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from adatad_ds.config.schema import BackboneConfig, Config, DataConfig
from adatad_ds.errors import CheckpointError
from adatad_ds.models.backbones.adapted_image import ALL_ADAPTERS, AIMTransformer
from adatad_ds.models.backbones.image_vit import ImageTransformer, build_image_transformer
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.memory import step_flop
from adatad_ds.weights.files import Tensors, open_tensors
from adatad_ds.weights.image_layouts import DINOV2, DINOV3, TIMM, fit_image_weights, open_aim_weights, recognise_aim
from adatad_ds.weights.loading import fill_backbone
from tests.support.image_models import MEAN, STD, gradients, video
from tests.support.transformers_models import stored, transformers_features

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}


def random_state(model: nn.Module) -> nn.Module:
    """All tensors at work, norms around one."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        scale = name.endswith(("lambda1", "gamma")) or ("norm" in name and name.endswith("weight"))
        nn.init.normal_(parameter, mean=float(scale), std=0.2)
    return model.eval()


def dinov2(*, registers: bool = False, **changes) -> nn.Module:
    settings = SIZES | {"image_size": 70, "patch_size": 14} | changes
    if registers:
        return random_state(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**settings, num_register_tokens=4)))
    return random_state(Dinov2Model(Dinov2Config(**settings)))


def timm_dinov2(*, side: int, registers: bool = False, **changes) -> VisionTransformer:
    settings = {"img_size": side, "patch_size": 14, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    settings |= {"init_values": 1e-5, "reg_tokens": 4 if registers else 0, "no_embed_class": registers}
    return VisionTransformer(**(settings | changes))


def dinov3(**changes) -> nn.Module:
    settings = {"intermediate_size": 192, "image_size": 32, "patch_size": 16, "num_register_tokens": 4}
    return random_state(DINOv3ViTModel(DINOv3ViTConfig(**(SIZES | settings | changes))))


def timm_dinov3(*, side: int, **changes) -> Eva:
    settings = {"img_size": side, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    settings |= {"init_values": 1e-5, "num_reg_tokens": 4, "rope_type": "dinov3", "rope_temperature": 100.0}
    settings |= {"rope_rotate_half": True, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "use_fc_norm": False}
    return Eva(**(settings | {"global_pool": "token", "norm_layer": layer_norm} | changes))


def layer_norm(width: int, **options) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-5, **options)


def filled(image: ImageTransformer, state: dict[str, Tensor], *, layout: str) -> AIMTransformer:
    """A frozen model with weights."""
    weights = recognise_aim(stored(state), source="here")
    assert weights.layout == layout
    fitted = fit_image_weights(weights, image)
    with torch.no_grad():
        for name, tensor in fitted.vit.items():
            parameter = image.get_parameter(name)
            parameter.copy_(tensor.read().reshape(parameter.shape))
    return AIMTransformer(vit=image, clip_frames=4, feature_steps=4, adapt=(), tuning="frozen")


def image_of(vit: VisionTransformer | Eva, *, antialias_positions: bool = True) -> ImageTransformer:
    return ImageTransformer(vit=vit, pixel_mean=MEAN, pixel_std=STD, antialias_positions=antialias_positions)


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("side", [70, 42, 112])
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved"])
def test_dinov2_of_transformers(registers, side, saved, tmp_path):
    """The same class tokens at the size of the table, below and above: without averaging, with registers with it."""
    theirs = dinov2(registers=registers)
    expected = transformers_features(theirs, video(side=side))
    assert expected.std() > 0.1
    if saved:  # under the names of the hub's files
        theirs.save_pretrained(tmp_path)
        state = {key: tensor.read() for key, tensor in open_state(tmp_path).items()}
    else:
        state = theirs.state_dict()
    image = image_of(timm_dinov2(side=side, registers=registers), antialias_positions=registers)
    ours = filled(image, state, layout=DINOV2)
    torch.testing.assert_close(ours.frame_features(video(side=side)), expected, rtol=1e-4, atol=1e-4)
    if side == 42:
        other = image_of(timm_dinov2(side=side, registers=registers), antialias_positions=not registers)
        off = filled(other, state, layout=DINOV2).frame_features(video(side=side)) - expected
        assert off.abs().max() > 1e-2


def open_state(folder: Path) -> Tensors:
    return open_tensors(folder / "model.safetensors", entries=())


def test_dinov2_giant_of_transformers(tmp_path):
    theirs = dinov2(use_swiglu_ffn=True)
    theirs.save_pretrained(tmp_path)
    gated = {"mlp_layer": lambda *args, **options: GluMlp(*args, **options, gate_last=False)}
    vit = timm_dinov2(side=70, mlp_ratio=256 / 48, act_layer=nn.SiLU, **gated)
    weights = open_aim_weights(tmp_path)
    assert weights.left_out == {"mask of pretraining": ("embeddings.mask_token",)}
    image = image_of(vit, antialias_positions=False)
    ours = filled(image, {key: tensor.read() for key, tensor in open_state(tmp_path).items()}, layout=DINOV2)
    expected = transformers_features(theirs, video(side=70))
    torch.testing.assert_close(ours.frame_features(video(side=70)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_under_its_own_names(registers):
    """dinov2_vit*_pretrain.pth: timm's names but for registers, mask and the class token's position."""
    theirs = dinov2(registers=registers)
    weights = recognise_aim(stored(theirs.state_dict()), source="transformers")
    own = {key: tensor.read() for key, tensor in weights.vit.items()}
    if registers:
        state = theirs.state_dict()
        own["register_tokens"] = own.pop("reg_token")
        own["cls_token"] = state["embeddings.cls_token"]
        own["pos_embed"] = state["embeddings.position_embeddings"]
    own["mask_token"] = torch.zeros(1, 48)
    image = image_of(timm_dinov2(side=42, registers=registers), antialias_positions=registers)
    ours = filled(image, own, layout=TIMM)
    expected = transformers_features(theirs, video(side=42))
    torch.testing.assert_close(ours.frame_features(video(side=42)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("side", [32, 80])
def test_dinov3_of_transformers(gated, side, tmp_path):
    theirs = dinov3(use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    expected = transformers_features(theirs, video(side=side))
    assert expected.std() > 0.1
    theirs.save_pretrained(tmp_path)
    changes = {"swiglu_mlp": gated, "swiglu_align_to": 8} if gated else {}
    for state in (theirs.state_dict(), {key: tensor.read() for key, tensor in open_state(tmp_path).items()}):
        ours = filled(image_of(timm_dinov3(side=side, **changes)), state, layout=DINOV3)
        torch.testing.assert_close(ours.frame_features(video(side=side)), expected, rtol=1e-4, atol=1e-4)


def test_dinov3_of_timm():
    theirs = random_state(timm_dinov3(side=48))
    pixels = (video(side=48).flatten(0, 1).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(pixels.permute(0, 3, 1, 2)), pre_logits=True)
    ours = filled(image_of(timm_dinov3(side=48)), theirs.state_dict(), layout=TIMM)
    torch.testing.assert_close(ours.frame_features(video(side=48)), expected.unflatten(0, (2, 8)), rtol=1e-4, atol=1e-4)


def test_dinov3_under_its_own_names():
    """dinov3_vit*_pretrain: one bias of query, key and value, of which a mask takes the key's."""
    theirs = dinov3()
    own = {
        re.sub("^reg_token$", "storage_tokens", key): tensor.read()
        for key, tensor in recognise_aim(stored(theirs.state_dict()), source="transformers").vit.items()
    }
    for block in range(3):
        own[f"blocks.{block}.attn.qkv.bias"][48:96] = torch.nan
        own[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(144)
    own |= {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}
    ours = filled(image_of(timm_dinov3(side=32)), own, layout=TIMM)
    expected = transformers_features(theirs, video())
    torch.testing.assert_close(ours.frame_features(video()), expected, rtol=1e-4, atol=1e-4)


def test_registers_that_are_not_there():
    with_registers, without = dinov2(registers=True).state_dict(), dinov2().state_dict()
    with pytest.raises(CheckpointError, match=r"class token, no registers; the model has .* class token, 4 registers"):
        filled(image_of(timm_dinov2(side=70, registers=True)), without, layout=DINOV2)
    with pytest.raises(CheckpointError, match=r"class token, 4 registers; the model has .* class token, no registers"):
        filled(image_of(timm_dinov2(side=70)), with_registers, layout=DINOV2)


@pytest.mark.parametrize(
    ("name", "averages"),
    [
        ("vit_small_patch14_dinov2", False),
        ("vit_small_patch14_reg4_dinov2", True),
        ("vit_base_patch16_224.mae", False),
        ("vit_small_patch16_224.dino", False),
        ("vit_base_patch16_clip_quickgelu_224", True),
        ("vit_base_patch16_siglip_224", True),
        ("vit_base_patch16_224.augreg_in21k", True),
    ],
)
def test_positions_are_resized_as_their_authors_do(name, averages):
    with shapes_only():
        assert build_image_transformer(name, resolution=112).antialias_positions == averages


@pytest.mark.parametrize(
    ("name", "registers", "parameters"),
    [
        ("vit_small_patch14_dinov2", 0, 22e6),
        ("vit_small_patch14_reg4_dinov2", 4, 22e6),
        ("vit_small_patch16_dinov3", 4, 22e6),
        ("vit_small_plus_patch16_dinov3_qkvb", 4, 29e6),
    ],
)
def test_models_by_name(name, registers, parameters):
    """As docs/reference/aim.md names them: built without memory, filled, counted."""
    config = Config(
        data=DataConfig(resolution=112),
        backbone=BackboneConfig(name=name, tuning="aim", weights="somewhere", clip_frames=4),
    )
    backbone = build_backbone(config, feature_steps=4)
    assert isinstance(backbone, AIMTransformer)
    assert backbone.vit.prefix_tokens == 1 + registers
    assert backbone.vit.pools_class_token
    assert sum(p.numel() for p in backbone.vit.parameters()) == pytest.approx(parameters, rel=0.03)
    assert step_flop(config) > 0


def test_a_rotary_model_adapts_and_learns():
    """Adapters over DINOv3: the same gradients recomputed; built without memory, all is filled."""
    models = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        image = image_of(random_state(timm_dinov3(side=32)))
        for parameter in image.blocks.parameters():
            nn.init.normal_(parameter, std=0.1)
        models.append(
            AIMTransformer(
                vit=image,
                clip_frames=4,
                feature_steps=4,
                adapt=ALL_ADAPTERS,
                tuning="aim",
                drop_path=0.3,
                activation_checkpointing=checkpointing,
                clips_per_chunk=1,
            )
        )
        torch.manual_seed(3)
        for parameter in models[-1].adapters.parameters():
            nn.init.normal_(parameter, std=0.1)
    plain, recomputed = (gradients(model, video(), 1, 2) for model in models)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-5)
    with shapes_only():
        empty = image_of(timm_dinov3(side=32))
    weights = fit_image_weights(recognise_aim(stored(dinov3().state_dict()), source="here"), empty)
    fill_backbone(empty, weights.vit, dtype=torch.float32, read=True, host=lambda _: None)
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
