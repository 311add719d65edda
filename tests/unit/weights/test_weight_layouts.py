"""Every layout that published weights come in, at full size, and the model that they give."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.initialization import no_init_weights

from adatad_ds.config.schema import BackboneConfig
from adatad_ds.errors import CheckpointError
from adatad_ds.models.backbones.contract import ViTSpec
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from adatad_ds.models.backbones.vit import VIT_SPECS, VisionTransformer, sinusoid
from adatad_ds.models.factory import build_detector
from adatad_ds.models.shapes import shapes_only
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.weights.files import StoredTensor, Tensors
from adatad_ds.weights.loading import (
    check_fingerprint,
    check_fit,
    fill_backbone,
    find_weights,
    fingerprint,
    tensor_hash,
    trained_tensors,
)
from adatad_ds.weights.video_layouts import backbone_name, describe_spec, open_weights, recognise
from tests.support.published import published

FAMILY = [name for name in VIT_SPECS if name != "tiny"]
Shapes = dict[str, tuple[int, ...]]


def never() -> torch.Tensor:
    raise AssertionError("recognising reads nothing")


def stored(shapes: Shapes) -> Tensors:
    return {name: StoredTensor(shape, never) for name, shape in shapes.items()}


def authors(spec: ViTSpec, *, block: str = "blocks.{}.", mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")) -> Shapes:
    """Blocks as the authors of VideoMAE and VideoMAE V2 define them: modeling_finetune.py, Block, Attention, Mlp."""
    width, hidden = spec.width, spec.mlp_hidden
    parts: Shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        f"{mlp[0]}.weight": (hidden, width),
        f"{mlp[0]}.bias": (hidden,),
        f"{mlp[1]}.weight": (width, hidden),
        f"{mlp[1]}.bias": (width,),
    }
    return {block.format(i) + name: shape for i in range(spec.depth) for name, shape in parts.items()}


def embedding(spec: ViTSpec, name: str) -> Shapes:
    return {f"{name}.weight": (spec.width, 3, 2, spec.patch, spec.patch), f"{name}.bias": (spec.width,)}


def norm(spec: ViTSpec, name: str) -> Shapes:
    return {f"{name}.weight": (spec.width,), f"{name}.bias": (spec.width,)}


def fine_tuned(spec: ViTSpec) -> Shapes:
    head: Shapes = {"head.weight": (400, spec.width), "head.bias": (400,)}
    return embedding(spec, "patch_embed.proj") | authors(spec) | norm(spec, "fc_norm") | head


def with_decoder(spec: ViTSpec) -> Shapes:
    decoder = replace(spec, width=spec.width // 2, mlp_hidden=2 * spec.width, depth=4)
    encoder = embedding(spec, "patch_embed.proj") | authors(spec) | norm(spec, "norm")
    rest: Shapes = {"mask_token": (1, 1, decoder.width), "encoder_to_decoder.weight": (decoder.width, spec.width)}
    return (
        {f"encoder.{name}": shape for name, shape in encoder.items()}
        | {f"decoder.{name}": shape for name, shape in (authors(decoder) | norm(decoder, "norm")).items()}
        | rest
    )


def videomae_v2_on_the_hub(spec: ViTSpec) -> Shapes:
    return {f"model.{name}": shape for name, shape in fine_tuned(spec).items() if not name.startswith("head.")}


def saved_by_deepspeed(spec: ViTSpec) -> Shapes:
    return {f"module.{name}": shape for name, shape in fine_tuned(spec).items()}


def mmaction(spec: ViTSpec) -> Shapes:
    vit = embedding(spec, "patch_embed.projection") | authors(spec, mlp=("mlp.layers.0.0", "mlp.layers.1"))
    inside = {f"backbone.{name}": shape for name, shape in (vit | norm(spec, "fc_norm")).items()}
    head: Shapes = {"cls_head.fc_cls.weight": (400, spec.width), "cls_head.fc_cls.bias": (400,)}
    return inside | head | {"data_preprocessor.mean": (3, 1, 1, 1), "data_preprocessor.std": (3, 1, 1, 1)}


def hugging_face(
    spec: ViTSpec, cls: type = transformers.VideoMAEForVideoClassification, *, frames: int = 16
) -> transformers.PreTrainedModel:
    config = transformers.VideoMAEConfig(
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        intermediate_size=spec.mlp_hidden,
        patch_size=spec.patch,
        image_size=spec.pretrained_side,
        num_frames=frames,
        layer_norm_eps=1e-6,
        use_mean_pooling=cls is transformers.VideoMAEForVideoClassification,
    )
    return cls(config)


@cache
def by_transformers(spec: ViTSpec, cls: type = transformers.VideoMAEForVideoClassification) -> Shapes:
    """The shapes at any number of frames; the table of positions, made number by number, grows with them."""
    with torch.device("meta"), no_init_weights():
        return {name: tuple(tensor.shape) for name, tensor in hugging_face(spec, cls, frames=2).state_dict().items()}


def by_transformers_with_decoder(spec: ViTSpec) -> Shapes:
    return by_transformers(spec, transformers.VideoMAEForPreTraining)


def by_older_transformers(spec: ViTSpec) -> Shapes:
    """As the files on the hub are: biases beside the projections, not in them."""
    return {
        re.sub(r"\.(query|value)\.bias$", lambda m: f".{m[1][0]}_bias", name): shape
        for name, shape in by_transformers(spec).items()
    }


LAYOUTS = {
    "fine-tuned": (fine_tuned, {"final norm", "classifier"}),
    "with decoder": (with_decoder, {"final norm", "decoder"}),
    "VideoMAE V2 on the hub": (videomae_v2_on_the_hub, {"final norm"}),
    "saved by DeepSpeed": (saved_by_deepspeed, {"final norm", "classifier"}),
    "mmaction2": (mmaction, {"final norm", "classifier", "preprocessing, which is built in"}),
    "transformers": (by_transformers, {"final norm", "classifier"}),
    "transformers with decoder": (by_transformers_with_decoder, {"final norm", "decoder"}),
    "transformers before 5": (by_older_transformers, {"final norm", "classifier"}),
}


@cache
def shapes_of_ours(name: str) -> Shapes:
    with shapes_only():
        vit = VisionTransformer(spec=VIT_SPECS[name], resolution=VIT_SPECS[name].pretrained_side)
    return {key: tuple(parameter.shape) for key, parameter in vit.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_key_maps_at_full_size(layout, name):
    spec = VIT_SPECS[name]
    shapes, left_out = LAYOUTS[layout]
    weights = recognise(stored(shapes(spec)), source=layout, averaged=False)
    check_fit(weights.vit, shapes_of_ours(name), source=layout)
    assert backbone_name(weights) == name
    assert set(weights.left_out) == left_out
    assert all(f"{what} (" in weights.report() for what in left_out)


@pytest.mark.parametrize(
    ("spec", "resolution"),
    [
        (ViTSpec(width=48, depth=3, heads=4, mlp_hidden=192, pretrained_side=64), 64),
        (ViTSpec(width=64, depth=2, heads=2, mlp_hidden=280, patch=14, pretrained_side=56), 56),
        (ViTSpec(width=384, depth=12, heads=6, mlp_hidden=1536, pretrained_side=48), 48),
    ],
    ids=["patches of 16", "patches of 14, mlp 48/11", "videomae_s"],
)
def test_same_numbers_as_transformers(spec, resolution, tmp_path):
    torch.manual_seed(0)
    reference = hugging_face(spec, transformers.VideoMAEModel).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    reference.layernorm = torch.nn.Identity()
    reference.save_pretrained(tmp_path)
    weights = open_weights(tmp_path)
    with shapes_only():
        vit = VisionTransformer(spec=spec, resolution=resolution)
    fill_backbone(vit, weights.vit, dtype=torch.float32, read=True, host=lambda module: None)
    frames = torch.randint(256, (2, 16, resolution, resolution, 3), dtype=torch.uint8)
    pixels = (frames.float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    with torch.no_grad():
        expected = reference(pixels.permute(0, 1, 4, 2, 3)).last_hidden_state
        tokens = vit.embed(frames)
        for block in vit.blocks:
            tokens = block(tokens)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def tiny_file(tmp_path, **changes: torch.Tensor):
    torch.manual_seed(0)
    vit = VisionTransformer(spec=VIT_SPECS["tiny"], resolution=64)
    state = {name: parameter.detach() for name, parameter in vit.named_parameters()} | changes
    save_file(state, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def meta_vit(name: str) -> VisionTransformer:
    with shapes_only():
        return VisionTransformer(spec=VIT_SPECS[name], resolution=64).requires_grad_(False)


def test_a_table_of_positions_is_left_out_if_it_is_the_computed_one():
    """mmaction2 saves it; VideoMAE's code does, where positions are learnt."""
    spec = VIT_SPECS["videomae_s"]
    table = sinusoid(length=1568, width=spec.width)[None].half()
    for layout, name in ((mmaction, "backbone.pos_embed"), (fine_tuned, "pos_embed")):
        tensors = stored(layout(spec))
        weights = recognise(tensors | {name: of(table)}, source="a file", averaged=False)
        assert "position table, which is computed" in weights.left_out
        with pytest.raises(CheckpointError, match=r"a file holds a table of learnt positions \(pos_embed\)"):
            recognise(tensors | {name: of(0.02 * torch.randn(1, 1568, spec.width))}, source="a file", averaged=False)


def of(tensor: torch.Tensor) -> StoredTensor:
    return StoredTensor(tuple(tensor.shape), lambda: tensor)


def test_what_does_not_fit_is_said(tmp_path):
    backbone = BackboneConfig(name="videomae_s", weights=str(tiny_file(tmp_path)))
    with pytest.raises(CheckpointError, match=r"6 blocks of width 192 .*=videomae_s has 12 blocks of width 384"):
        find_weights(backbone, meta_vit("videomae_s"))
    extra = tiny_file(tmp_path, cls_token=torch.zeros(1, 1, 192), **{"blocks.0.attn.scale": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"2 unexpected: blocks\.0\.attn\.scale, cls_token"):
        find_weights(replace(backbone, name="tiny", weights=str(extra)), meta_vit("tiny"))
    misshaped = tiny_file(tmp_path, **{"blocks.1.norm1.bias": torch.zeros(7)})
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm1\.bias is \(7,\), the model wants \(192,\)"):
        find_weights(replace(backbone, name="tiny", weights=str(misshaped)), meta_vit("tiny"))
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"has no known layout.*conv1\.weight"):
        open_weights(tmp_path / "resnet.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("videomae_b", ["MCG-NJU/VideoMAE", "not for commercial use", "adatad-ds convert"]),
        ("videomaev2_g", ["OpenGVLab/VideoMAEv2", "on request", "non-commercial"]),
    ],
)
def test_a_missing_file_says_where_to_get_it_and_on_what_terms(name, said):
    config = find_recipe(f"thumos14_{name}").config
    config = replace(config, backbone=replace(config.backbone, weights="/nowhere/w.safetensors"))
    with pytest.raises(CheckpointError) as raised:
        find_weights(config.backbone, meta_vit(name))
    for words in ("/nowhere/w.safetensors", *said):
        assert words in str(raised.value)


def test_filling_and_fingerprint(tmp_path):
    path = tiny_file(tmp_path)
    vit, seen = meta_vit("tiny"), []
    tensors = open_weights(path).vit
    hashes = fill_backbone(vit, tensors, dtype=torch.bfloat16, read=True, host=lambda module: seen.append(module))
    assert seen == [vit.patch_embed, *vit.blocks]
    for name, parameter in vit.named_parameters():
        assert torch.equal(parameter, tensors[name].read().bfloat16())
        assert not parameter.requires_grad
    in_fp32 = meta_vit("tiny")
    fill_backbone(in_fp32, tensors, dtype=torch.float32, read=True, host=lambda module: None)
    assert fingerprint(in_fp32) == fingerprint(vit) == hashes == {n: tensor_hash(t.read()) for n, t in tensors.items()}
    other = hashes | {"blocks.2.mlp.fc1.weight": "0"}
    with pytest.raises(CheckpointError, match=r"1 of 74 tensors differ \(blocks\.2\.mlp\.fc1\.weight\)"):
        check_fingerprint(other, hashes, trained="a run", weights=path)


def test_a_new_family_needs_no_words_of_its_own():
    """As CONTRIBUTING says how to add one; of the same size, it is not taken for another family."""
    spec = replace(VIT_SPECS["tiny"], family="Another")  # pyright: ignore[reportArgumentType]
    assert describe_spec(spec) == f"{describe_spec(VIT_SPECS['tiny'])}, Another"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["thumos14_videomae_s", "thumos14_videomae_s_side", "thumos14_videomaev2_g_1536"])
def test_published_detectors_at_full_size(name):
    config = find_recipe(name).config
    with shapes_only():
        detector = build_detector(config, num_classes=20)
    tensors = published(detector, beside=config.backbone.tuning == "side")
    weights = recognise(stored({k: tuple(t.shape) for k, t in tensors.items()}), source=name, averaged=False)
    trainable = trained_tensors(weights, detector, reset_classifier=False)
    assert trainable.keys() == {n for n, p in detector.named_parameters() if p.requires_grad}
    assert backbone_name(weights) == config.backbone.name

    with shapes_only():
        other = build_detector(config, num_classes=7)
    with pytest.raises(CheckpointError, match=r"trained for 20 classes, the data have 7.*reset_classifier"):
        trained_tensors(weights, other, reset_classifier=False)
    for model in (other, detector):  # the same number of classes need not be the same classes
        kept = trained_tensors(weights, model, reset_classifier=True)
        assert trainable.keys() - kept.keys() == {"head.cls_head.weight", "head.cls_head.bias"}
