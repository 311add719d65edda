"""Every layout of weights for AIM, the features that it gives, and what is wrong with those that do not fit."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from adatad_ds.errors import CheckpointError
from adatad_ds.models.backbones.adapted_image import ALL_ADAPTERS, AIMTransformer
from adatad_ds.models.backbones.image_vit import build_image_transformer
from adatad_ds.models.recogniser import Classifier, Recogniser
from adatad_ds.models.shapes import shapes_only
from adatad_ds.weights.image_layouts import (
    AIM,
    CLIP,
    TIMM,
    TRANSFORMERS,
    fit_image_weights,
    open_aim_weights,
    recognise_aim,
)
from adatad_ds.weights.layout import Weights
from adatad_ds.weights.loading import trained_tensors
from tests.support.image_models import build, image_features, timm_vit, video
from tests.support.transformers_models import State, stored, transformers_features

TO_CLIP = (  # our names -> OpenAI's, for the round trip
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.fc1\.", ".c_fc."),
    (r"\.fc2\.", ".c_proj."),
)
PUBLISHED_ADAPTERS = {"temporal": "T_Adapter", "spatial": "S_Adapter", "joint": "MLP_Adapter"}


def fill(weights: Weights, model: AIMTransformer) -> None:
    fitted = fit_image_weights(weights, model.vit)
    whole = Recogniser(backbone=model, head=Classifier(width=48, num_classes=5, dropout=0.0))
    tensors = {f"backbone.vit.{name}": tensor for name, tensor in fitted.vit.items()}
    if weights.trained:
        tensors |= trained_tensors(fitted, whole, reset_classifier=False)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = whole.get_parameter(name)
            parameter.copy_(tensor.read().reshape(parameter.shape))


def load(state: State, model: AIMTransformer, *, layout: str) -> None:
    weights = recognise_aim(stored(state), source="here")
    assert weights.layout == layout
    fill(weights, model)


def openai(vit: nn.Module, *, prefix: str = "visual.") -> State:
    """As OpenAI names an image transformer; the class token and positions have fewer axes."""
    state = {}
    for name, tensor in vit.state_dict().items():
        for pattern, replacement in TO_CLIP:
            name = re.sub(pattern, replacement, name)
        state[prefix + name] = tensor.squeeze() if name.endswith("embedding") else tensor
    return state


def published(model: AIMTransformer, *, from_clip: bool) -> State:
    """As the authors of AIM save a trained model with the classifier of 5 classes."""
    if from_clip:
        state, blocks = openai(model.vit, prefix="backbone."), "backbone.transformer.resblocks"
    else:
        state = {f"backbone.{re.sub('^norm', 'ln_post', name)}": t for name, t in model.vit.state_dict().items()}
        blocks = "backbone.blocks"
    for name, tensor in model.state_dict().items():
        adapter = re.fullmatch(r"adapters\.(\d+)\.(\w+)\.fc([12])\.(\w+)", name)
        if adapter:
            kind = PUBLISHED_ADAPTERS.get(adapter[2], "T_Adapter_in")
            state[f"{blocks}.{adapter[1]}.{kind}.D_fc{adapter[3]}.{adapter[4]}"] = tensor
    assert model.temporal_embedding is not None
    state["backbone.temporal_embedding"] = model.temporal_embedding.detach()
    return state | {"cls_head.fc_cls.weight": torch.ones(5, 48), "cls_head.fc_cls.bias": torch.zeros(5)}


def clip_vision(**changes) -> CLIPVisionConfig:
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3}
    return CLIPVisionConfig(**(sizes | {"image_size": 32, "patch_size": 16, "initializer_factor": 5.0} | changes))


@pytest.mark.parametrize("adapt", [(), ALL_ADAPTERS])
def test_transformers_own_model_gives_the_same_class_tokens(adapt, tmp_path):
    torch.manual_seed(3)
    theirs = CLIPVisionModel(clip_vision()).eval()
    for name, parameter in theirs.named_parameters():  # norms and biases at work
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    expected = transformers_features(theirs, video())
    ours = build(adapt=adapt, awake=False)
    load(theirs.state_dict(), ours, layout=TRANSFORMERS)
    torch.testing.assert_close(ours.frame_features(video()), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1

    theirs.save_pretrained(tmp_path)
    from_folder = build(adapt=adapt, awake=False)
    fill(open_aim_weights(tmp_path), from_folder)
    assert torch.equal(from_folder.frame_features(video()), ours.frame_features(video()))


@pytest.mark.slow
def test_a_whole_clip_model_of_transformers():
    whole = CLIPModel(CLIPConfig(vision_config=clip_vision().to_dict(), text_config={"num_hidden_layers": 1}))
    weights = recognise_aim(stored(whole.state_dict()), source="whole")
    assert {"text model", "projection to the text's space"} <= weights.left_out.keys()
    ours = build(adapt=(), awake=False)
    fill(weights, ours)
    torch.testing.assert_close(
        ours.frame_features(video()), transformers_features(whole.vision_model.eval(), video()), rtol=0, atol=1e-4
    )
    assert "left out: text model (" in weights.report()
    assert "3 blocks of width 48 and MLP 192, patches of 16 px" in weights.report()


@pytest.mark.parametrize("changes", [{}, {"pre_norm": False}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_timm_state_dicts(changes, tmp_path):
    theirs = timm_vit(num_classes=7, **changes)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    weights = open_aim_weights(tmp_path / "model.safetensors")
    assert (weights.layout, weights.trained) == (TIMM, {})
    assert weights.left_out == {"classifier or pooling of images": ("head.bias", "head.weight")}
    ours = build(timm_vit(**changes), adapt=("temporal", "spatial"), awake=False)
    fill(weights, ours)
    torch.testing.assert_close(ours.frame_features(video()), image_features(theirs, video()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual."])
def test_openai_names(prefix):
    theirs = timm_vit()
    state = openai(theirs, prefix=prefix) | {f"{prefix}proj": torch.zeros(48, 16)}
    if prefix:
        text = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.ln_1.weight", "logit_scale")
        outer = prefix.removesuffix("visual.")
        state |= {f"{outer}{name}": torch.zeros(4) for name in (*text, "ln_final.bias", "text_projection")}
    ours = build(timm_vit(depth=3), adapt=(), awake=False)
    nn.init.zeros_(ours.vit.cls_token)
    load({name: tensor.half() for name, tensor in state.items()}, ours, layout=CLIP)
    expected = image_features(theirs, video())
    assert (ours.frame_features(video()) - expected).abs().max() < 0.02  # they were rounded to half precision
    load(state, ours, layout=CLIP)
    torch.testing.assert_close(ours.frame_features(video()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("from_clip", [True, False])
@pytest.mark.parametrize("adapter_before_time", [True, False])
def test_trained_models_of_the_authors(from_clip, adapter_before_time, tmp_path):
    changes = {} if from_clip else {"pre_norm": False, "act_layer": None}
    theirs = build(timm_vit(**changes), adapter_before_time=adapter_before_time)
    torch.save({"state_dict": published(theirs, from_clip=from_clip), "meta": {}}, tmp_path / "trained.pth")
    weights = open_aim_weights(tmp_path / "trained.pth")
    assert weights.layout == AIM
    classifier = {name: tensor.shape for name, tensor in weights.trained.items() if not name.startswith("backbone.")}
    assert classifier == {"head.classifier.weight": (5, 48), "head.classifier.bias": (5,)}
    assert not weights.left_out
    ours = build(timm_vit(**changes), adapter_before_time=adapter_before_time, awake=False)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    fill(weights, ours)
    assert torch.equal(ours.frame_features(video()), theirs.frame_features(video()))


def test_a_trained_model_wants_the_same_adapters_and_clips():
    state = published(build(), from_clip=True)
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.adapters\.0\.joint\.fc1\.bias"):
        load(state, build(adapt=("temporal", "spatial")), layout=AIM)
    with pytest.raises(CheckpointError, match=r"missing: backbone\.adapters\.0\.temporal_in\.fc1\.bias"):
        load(state, build(adapter_before_time=True), layout=AIM)
    with pytest.raises(CheckpointError, match="trained on clips of 4 frames, the model has 8"):
        load(state, build(clip_frames=8), layout=AIM)


def test_positions_of_another_resolution():
    theirs, ours = timm_vit(img_size=64), build(timm_vit(img_size=96), adapt=(), awake=False)
    load(theirs.state_dict(), ours, layout=TIMM)
    before, after = theirs.pos_embed.detach(), ours.vit.pos_embed
    assert torch.equal(before[:, 0], after[:, 0])
    grid = before[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(after[:, 1:], resized.permute(0, 2, 3, 1).flatten(1, 2))
    assert ours.frame_features(video(side=96)).shape == (2, 8, 48)

    state = theirs.state_dict() | {"pos_embed": torch.zeros(1, 16, 48)}
    with pytest.raises(CheckpointError, match="16 are not 1 and a square of patches"):
        load(state, ours, layout=TIMM)


def test_another_transformer():
    for changes, words in (
        ({"patch_size": 8}, "patches of 8 px"),
        ({"depth": 2}, "2 blocks of width 48"),
        ({"embed_dim": 96}, "width 96"),
        ({"pre_norm": False}, "without a norm before them"),
        ({"class_token": False, "global_pool": "avg"}, "without class token"),
    ):
        with pytest.raises(CheckpointError, match=f"of another transformer: .*{words}.*; the model has 3 blocks"):
            load(timm_vit(**changes).state_dict(), build(), layout=TIMM)


def test_missing_odd_and_misshapen_keys():
    state = timm_vit().state_dict()
    short = {name: tensor for name, tensor in state.items() if name not in ("blocks.1.attn.qkv.bias", "pos_embed")}
    with pytest.raises(CheckpointError, match=r"2 missing: blocks\.1\.attn\.qkv\.bias, pos_embed"):
        load(short, build(), layout=TIMM)
    with pytest.raises(CheckpointError, match=r"1 unexpected: blocks\.0\.ls1\.gamma"):
        load(state | {"blocks.0.ls1.gamma": torch.ones(48)}, build(), layout=TIMM)
    with pytest.raises(CheckpointError, match=r"1 of another shape: norm\.weight is \(47,\), the model wants \(48,\)"):
        load(state | {"norm.weight": torch.ones(47)}, build(), layout=TIMM)
    unknown = {"features.0.weight": torch.zeros(3)}
    with pytest.raises(
        CheckpointError, match=r"here has no known layout.*features\.0\.weight.*timm, transformers, DINOv2 of"
    ):
        load(unknown, build(), layout=TIMM)
    before = build()
    values = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    with pytest.raises(CheckpointError):
        load({**published(build(), from_clip=True), "backbone.odd": torch.ones(1, 2)}, before, layout=AIM)
    assert all(torch.equal(values[name], tensor) for name, tensor in before.state_dict().items())


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript program, as OpenAI publishes CLIP.*clip-vit-base-patch16"):
        open_aim_weights(tmp_path / "ViT-B-16.pt")


def test_no_file():
    with pytest.raises(FileNotFoundError, match="no weights file"):
        open_aim_weights("/nowhere/clip.safetensors")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_base_patch16_clip_quickgelu_224", (768, 3072, 12, 12, 16)),
        ("vit_large_patch14_clip_quickgelu_224", (1024, 4096, 24, 16, 14)),
    ],
)
def test_the_published_sizes_fit(name, sizes):
    """openai/clip-vit-base-patch16 and clip-vit-large-patch14, names and shapes alone."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    with shapes_only():
        theirs = CLIPVisionModel(clip_vision(image_size=224, **dict(zip(keys, sizes, strict=True))))
        vit = build_image_transformer(name, resolution=224)
    weights = recognise_aim(stored(theirs.state_dict()), source=name)
    wanted = {key: tuple(parameter.shape) for key, parameter in vit.named_parameters()}
    found = {key: tuple(size for size in tensor.shape) for key, tensor in weights.vit.items()}
    assert found.keys() == wanted.keys()
    assert all(
        found[key] == tuple(size for size in wanted[key] if size != 1) or found[key] == wanted[key] for key in wanted
    )
