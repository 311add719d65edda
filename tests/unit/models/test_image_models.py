"""Image transformers by their name in timm: features of timm's own model, weights, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva, _convert_pe
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from adatad_ds.config.loading import override
from adatad_ds.config.schema import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.adapted_image import AIMTransformer
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone, frozen_blocks
from adatad_ds.models.backbones.image_blocks import ImageBlock
from adatad_ds.models.backbones.image_vit import ImageTransformer, build_image_transformer
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.transformers import build_configured_image
from adatad_ds.weights.image_layouts import CLIP, TIMM, TRANSFORMERS, fit_image_weights, recognise_aim
from tests.support.image_models import video
from tests.support.memory import backbone_peaks
from tests.support.plain_backbone import compare_with_plain_autograd
from tests.support.transformers_models import stored

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
NAMES = [  # patches of 14 or 16 px, whose sides 56 and 64 are other than their pretraining's
    ("vit_base_patch16_siglip_224.v2_webli", 64, "avg"),
    ("vit_so400m_patch14_siglip_gap_378.v2_webli", 56, "avg"),
    ("vit_giantopt_patch16_siglip_256.v2_webli", 64, "avg"),
    ("vit_pe_core_base_patch16_224", 64, "token"),
    ("vit_pe_core_gigantic_patch14_448", 56, "avg"),
    ("vit_pe_spatial_base_patch16_512", 64, "avg"),
    ("vit_pe_lang_large_patch14_448", 56, "avg"),
    ("vit_base_patch14_dinov2", 56, "token"),
    ("vit_base_patch16_dinov3", 64, "token"),
    ("vit_base_patch16_rope_224", 64, "token"),
]


@pytest.fixture
def small_models(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: create(name, **(settings | SMALL)))


def timm_model(name: str, *, side: int) -> VisionTransformer | Eva:
    """Random, every tensor at work."""
    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=side, dynamic_img_size=False)
    assert isinstance(model, VisionTransformer | Eva)
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        around_one = "gamma" in key or ("norm" in key and key.endswith("weight"))
        nn.init.normal_(parameter, mean=float(around_one), std=0.2)
    return model.eval()


def features(image: ImageTransformer, state: dict[str, Tensor], frames: Tensor, *, layout: str = TIMM) -> Tensor:
    """Of a frozen model with these weights: (frames, C)."""
    weights = recognise_aim(stored(state), source="here")
    assert weights.layout == layout
    with torch.no_grad():
        for key, tensor in fit_image_weights(weights, image).vit.items():
            image.get_parameter(key).copy_(tensor.read().reshape(image.get_parameter(key).shape))
    model = AIMTransformer(vit=image, clip_frames=4, feature_steps=4, adapt=(), tuning="frozen")
    return model.frame_features(frames).flatten(0, 1)


@pytest.mark.parametrize(("name", "side", "pooling"), NAMES)
@pytest.mark.usefixtures("small_models")
def test_features_are_timms(name, side, pooling):
    theirs, frames = timm_model(name, side=side), video(1, 4, side=side)
    ours = build_image_transformer(name, resolution=side, pixel_mean=(127.5,) * 3, pixel_std=(127.5,) * 3)
    assert ours.pools_class_token == (pooling == "token")
    state = theirs.state_dict()
    theirs.reset_classifier(0, pooling)
    with torch.no_grad():
        expected = theirs((frames.flatten(0, 1).float() / 127.5 - 1).permute(0, 3, 1, 2))
    found = features(ours, state, frames)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_pe_core_base_patch16_224", "vit_pe_lang_large_patch14_448"])
@pytest.mark.usefixtures("small_models")
def test_perception_encoders_own_files(name):
    """PE-*.pt of Meta: the names that timm converts, beside a text model."""
    side = 56 if "patch14" in name else 64
    own = {}
    for key, tensor in timm_model(name, side=side).state_dict().items():
        if not key.startswith("attn_pool"):
            own[f"visual.{_their_name(key)}"] = tensor.squeeze(0) if key in ("cls_token", "pos_embed") else tensor
    own["visual.class_embedding"] = own["visual.class_embedding"].squeeze(0)
    beside = {"visual.attn_pool.probe": torch.ones(1, 1, 48), "visual.proj": torch.ones(48, 8)}
    beside |= {"positional_embedding": torch.ones(3, 8), "transformer.resblocks.0.ln_1.weight": torch.ones(8)}
    image = build_image_transformer(name, resolution=side)
    found = features(image, own | beside, video(1, 4, side=side), layout=CLIP)
    converted = _convert_pe({key: tensor.clone() for key, tensor in own.items()}, nn.Module())
    again = features(build_image_transformer(name, resolution=side), converted, video(1, 4, side=side))
    torch.testing.assert_close(found, again)


def _their_name(key: str) -> str:
    for ours, theirs in (
        ("patch_embed.proj", "conv1"),
        ("pos_embed", "positional_embedding"),
        ("cls_token", "class_embedding"),
        ("blocks.", "transformer.resblocks."),
        ("norm_pre", "ln_pre"),
        (".norm", ".ln_"),
        ("gamma_1", "ls_1.gamma"),
        ("gamma_2", "ls_2.gamma"),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ):
        key = key.replace(ours, theirs)
    return "ln_post" + key.removeprefix("norm") if key.startswith("norm.") else key


@pytest.mark.usefixtures("small_models")
def test_siglip_of_transformers():
    """google/siglip2-*: with its pooling head, which is left out; GELU as timm computes it."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=64,
        patch_size=16,
        hidden_act="gelu",
    )
    theirs = SiglipVisionModel(config).eval()
    frames = video(1, 4, side=64)
    with torch.no_grad():
        tokens = theirs((frames.flatten(0, 1).float() / 127.5 - 1).permute(0, 3, 1, 2)).last_hidden_state
    image = build_image_transformer("vit_base_patch16_siglip_224.v2_webli", resolution=64)
    state = {
        f"vision_model.{key}".replace("vision_model.vision_model.", "vision_model."): tensor
        for key, tensor in theirs.state_dict().items()
    }
    found = features(image, state | {"logit_bias": torch.ones(1)}, frames, layout=TRANSFORMERS)
    torch.testing.assert_close(found, tokens.mean(dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "resolution", "why"),
    [
        ("vit_base_patch16_rope_mixed_224", 64, "the same in all blocks; this one's are RotaryEmbeddingMixed"),
        ("vit_base_patch16_sapiens2", 64, "norms, gates, or other projections"),
        ("vit_base_r50_s16_224", 64, "no plain vision transformer named"),
        ("vit_base_patch16_siglip_224", 60, "not a multiple of the 16 px"),
        ("vit_pe_core_base_patch16", 64, "no plain vision transformer named"),
    ],
)
def test_what_is_refused_says_why(name, resolution, why):
    with shapes_only(), pytest.raises(ConfigError, match=why):
        build_image_transformer(name, resolution=resolution)


def adapted(name: str, tuning: str, **settings) -> AdaptedBackbone:
    config = Config(
        data=DataConfig(window_size=12, resolution=64, short_side_before_crop=64),
        backbone=BackboneConfig(name=name, tuning=tuning, clips_per_chunk=4, **settings),  # pyright: ignore
        head=HeadConfig(arch=(2, 2, 2), regression_range=((0, 4), (4, 8), (8, 99))),
        train=TrainConfig(precision="fp32"),
    )
    torch.manual_seed(0)
    model = build_backbone(config, feature_steps=12)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, AdaptedBackbone)
    return model


@pytest.mark.parametrize(
    ("name", "tuning", "settings"),
    [
        ("vit_base_patch16_dinov3", "tia", {}),
        ("vit_pe_core_base_patch16_224", "side", {}),
        ("vit_base_patch16_siglip_224.v2_webli", "tia+lora", {}),
        ("vit_base_patch16_clip_quickgelu_224", "bitfit", {}),
        ("vit_base_patch16_dinov3", "norm", {"adapter_blocks": (1,)}),
    ],
)
@pytest.mark.usefixtures("small_models")
def test_ways_to_adapt_of_video_transformers(name, tuning, settings):
    """A clip is a frame; adapters see the frames of the window. As plain autograd."""
    window = video(2, 12, side=64)
    gradients = compare_with_plain_autograd(partial(adapted, name, tuning, **settings), window)
    assert gradients
    model = adapted(name, tuning, **settings)
    assert frozen_blocks(model) == [b for b in model.vit.blocks if not any(p.requires_grad for p in b.parameters())]
    if tuning == "side":
        nn.init.zeros_(model.adapters["0"].up_proj.weight)  # pyright: ignore
    frozen = build_image_transformer(name, resolution=64)
    frozen.load_state_dict({key: t for key, t in model.vit.state_dict().items() if "lora" not in key})
    alone = AIMTransformer(vit=frozen, clip_frames=4, feature_steps=12, adapt=(), tuning="frozen")
    for adapter in model.adapters.values():
        for parameter in adapter.up_proj.parameters():  # pyright: ignore
            nn.init.zeros_(parameter)
    for key, parameter in model.named_parameters():
        if "lora_up" in key:
            nn.init.zeros_(parameter)
    torch.testing.assert_close(model(window), alone(window), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_models")
def test_dropped_branches_by_hand():
    """Each frame's own factors of attention and MLP."""
    vit = build_image_transformer("vit_pe_core_base_patch16_224", resolution=64)
    block, tokens = vit.blocks[1], torch.randn(2, vit.tokens, vit.width)
    assert isinstance(block, ImageBlock)
    with torch.no_grad():
        found = vit.run_block(1, tokens, torch.tensor([[0.0, 0.0], [2.0, 3.0]]))
        attended = tokens[1:] + 2 * block.attend(block.norm1(tokens[1:]), rotary=vit.rotary)
        wanted = attended + 3 * block.ls2(block.mlp(block.norm2(attended)))
    torch.testing.assert_close(found[0], tokens[0])
    torch.testing.assert_close(found[1:], wanted)


def test_ways_to_adapt_that_do_not_fit():
    small = ["backbone.name=vit_base_patch16_dinov3", "backbone.tuning=tia"]
    assert override(Config(), small).clip_frames == 1
    for key, value in (("clip_frames", "16"), ("aim_adapters", "[spatial]")):
        with pytest.raises(ConfigError, match="attends to itself alone"):
            override(Config(), [*small, f"backbone.{key}={value}"])
    normed = BackboneConfig(name="vit_base_patch16_rope_reg1_gap_256", tuning="lora")
    gated = BackboneConfig(name="vit_small_plus_patch16_dinov3", tuning="lora")
    for backbone, why in ((normed, "norms the mean of its patches"), (gated, "have no fc1 .* gated")):
        with shapes_only(), pytest.raises(ConfigError, match=why):
            build_configured_image(backbone, resolution=64)


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_memory_is_what_the_allocator_gives():
    config = Config(
        data=DataConfig(window_size=64, resolution=64, short_side_before_crop=64),
        backbone=BackboneConfig(name="vit_base_patch16_dinov3", tuning="tia", clips_per_chunk=16),
        train=TrainConfig(precision="fp32", global_batch=1),
    )
    planned, measured = backbone_peaks(config)
    assert planned == pytest.approx(measured, rel=0.1)


def test_eva_models_without_rotary_positions():
    vit = Eva(img_size=32, patch_size=16, embed_dim=48, depth=1, num_heads=3, num_classes=0)
    with pytest.raises(ConfigError, match="this one's are none"):
        ImageTransformer(vit=vit, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
