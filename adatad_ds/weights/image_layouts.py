"""Weights for AIM: of image transformers, and of trained AIM models, brought under our names and checked.

- `timm`: the state dict of one of its VisionTransformers, whose names are ours, or of its DINOv3; DINOv2's and
  DINOv3's own files are named nearly alike;
- `transformers`: CLIPVisionModel and SiglipVisionModel, alone or with the text model;
- `DINOv2 of transformers`: Dinov2Model, Dinov2WithRegistersModel; `DINOv3 of transformers`: DINOv3ViTModel;
- `CLIP`: OpenAI's and OpenCLIP's `visual.*`, alone or with the text model; Perception Encoder's own;
- `AIM`: checkpoints of the authors' models, trained from CLIP or from ImageNet weights.

A file cannot tell QuickGELU from GELU: OpenAI's weights, and those of `openai/clip-vit-*` on the Hugging Face hub,
want timm's `*_clip_quickgelu_*` models.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from adatad_ds.errors import CheckpointError
from adatad_ds.models.tuning.lora import is_update
from adatad_ds.weights.files import StoredTensor, Tensors, check_fit, find_source, open_tensors
from adatad_ds.weights.image_tensors import join_attention, positions_of_patches, without_key_bias
from adatad_ds.weights.layout import WeightLayout, Weights, find_layout, leave_out

if TYPE_CHECKING:
    from adatad_ds.models.backbones.image_vit import ImageTransformer

TIMM, TRANSFORMERS, CLIP, AIM = "timm", "transformers", "CLIP", "AIM"
DINOV2, DINOV3 = "DINOv2 of transformers", "DINOv3 of transformers"
_CLIP_RENAMES = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ls_([12])\.", r".ls\1."),  # Perception Encoder
)
_DINO_RENAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_LAYOUTS = (  # in the order in which they are tried; names become timm's
    WeightLayout(
        name=AIM,
        signature=r"(backbone\.)?temporal_embedding",
        renames=((r"^backbone\.", ""), *_CLIP_RENAMES),
    ),
    WeightLayout(
        name=CLIP,
        signature=r"(visual\.)?conv1\.weight",
        renames=((r"^visual\.", ""), *_CLIP_RENAMES),
    ),
    WeightLayout(
        name=TRANSFORMERS,
        signature=r"(vision_model\.)?embeddings\.patch_embedding\.weight",
        renames=(
            (r"^vision_model\.", ""),
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^embeddings\.class_embedding$", "cls_token"),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^pre_layrnorm\.", "norm_pre."),  # so spelt there
            (r"^post_layernorm\.", "norm."),
            (r"^encoder\.layers\.", "blocks."),
            (r"\.layer_norm([12])\.", r".norm\1."),
            (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
        ),
    ),
    WeightLayout(
        name=DINOV2,
        signature=r"(dinov2(_with_registers)?\.)?encoder\.layer\.0\.layer_scale1\.lambda1",
        renames=(
            (r"^dinov2(_with_registers)?\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^encoder\.layer\.", "blocks."),
            (r"^layernorm\.", "norm."),
            *_DINO_RENAMES,
            (r"\.attention\.attention\.query\.", ".attn.q."),
            (r"\.attention\.attention\.key\.", ".attn.k."),
            (r"\.attention\.attention\.value\.", ".attn.v."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        ),
    ),
    WeightLayout(
        name=DINOV3,
        signature=r"(model\.)?layer\.0\.layer_scale1\.lambda1",
        renames=(
            (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
            (r"^(model\.)?layer\.", "blocks."),
            *_DINO_RENAMES,
            (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
            (r"\.mlp\.up_proj\.", ".mlp.up."),
            (r"\.mlp\.down_proj\.", ".mlp.fc2."),
        ),
    ),
    WeightLayout(
        name=TIMM,
        signature=r"(visual\.trunk\.)?patch_embed\.proj\.weight",
        renames=(
            (r"^visual\.trunk\.", ""),
            (r"^(register|storage)_tokens$", "reg_token"),  # DINOv2 and DINOv3 themselves, to the gated MLPs
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
            (r"\.gamma_([12])$", r".ls\1.gamma"),  # timm's DINOv3
            (r"\.attn\.([qv])_bias$", r".attn.\1.bias"),
        ),
    ),
)
_LEFT_OUT = {  # by the file's names
    "text model": r"(text_model\.|token_embedding\.|ln_final\.|text\.)",
    "projection to the text's space": r"((text|visual)_projection(\.weight)?|(visual\.)?proj|logit_(scale|bias))$",
    "counter": r"(input_resolution|context_length|vocab_size|(.*\.)?embeddings\.position_ids)$",
    "classifier or pooling of images": r"(visual\.(trunk\.)?|vision_model\.)?(head|attn_pool|fc|classifier)\.",
    "mask of pretraining": r"((dinov2(_with_registers)?\.)?embeddings\.)?mask_token$|local_cls_norm\.|projectors\.",
    "rotation, which is computed": r"rope(_embed)?\.|.*\.attn\.qkv\.bias_mask$",
}
_TEXT_BESIDE_VISUAL = r"(transformer\.|positional_embedding$)"  # as OpenAI's CLIP names its text model
_ADAPTERS = {"T_Adapter_in": "temporal_in", "T_Adapter": "temporal", "S_Adapter": "spatial", "MLP_Adapter": "joint"}
_CLASSIFIER = r"cls_head\.fc_cls\.(weight|bias)"
_TEMPORAL = "temporal_embedding"


def open_aim_weights(source: str | Path) -> Weights:
    """Recognise a file of weights.

    Args:
        source: file, Hugging Face folder or hub name.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: unreadable, unsafe, or of no known layout.
    """
    path = find_source(source)
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in archive.namelist()):
                raise CheckpointError(
                    f"{path} is a TorchScript program, as OpenAI publishes CLIP; reading it would load its code. The "
                    "same weights are openai/clip-vit-base-patch16 and openai/clip-vit-large-patch14 on the Hugging "
                    "Face hub; or save its state_dict() where you trust it"
                )
    return recognise_aim(open_tensors(path, entries=("state_dict", "model", "module")), source=str(source))


def recognise_aim(stored: Tensors, *, source: str) -> Weights:
    """Recognise a layout by its keys, and bring it under our names.

    Args:
        stored: tensors by their names in the file.
        source: for messages.

    Raises:
        CheckpointError: it is none of the known ones.
    """
    tensors = {re.sub(r"^((module|_orig_mod)\.)+", "", key): tensor for key, tensor in stored.items()}
    layout = find_layout(
        tensors,
        _LAYOUTS,
        kind="an image",
        known=(TIMM, TRANSFORMERS, DINOV2, DINOV3, CLIP, AIM),
        source=source,
    )
    classifier, others = _split_classifier(tensors)
    unused = dict(_LEFT_OUT)
    if any(key.startswith("visual.") for key in tensors):
        unused["text model"] += f"|{_TEXT_BESIDE_VISUAL}"
    kept, left_out = leave_out(others, unused)
    image, adapters = _split_adapters({layout.rename(key): tensor for key, tensor in kept.items()})
    vit = _completed(image, layout=layout.name, keys=tensors)
    return Weights(
        source=source,
        layout=layout.name,
        size=_describe(vit),
        vit=vit,
        trained=adapters | classifier,
        left_out=left_out,
    )


def fit_image_weights(weights: Weights, vit: ImageTransformer) -> Weights:
    """The same weights, seen to fit a transformer.

    Positions of another resolution are resized bicubically, and where there are fewer averaged or not, as the
    transformer's authors do: `ImageTransformer.antialias_positions`.

    # differs: DINO and DINOv2 scale by (n + 0.1) / N rather than n / N, N and n the patches of a side before and after;
    # their copies in transformers and timm don't. Google's ViT and SigLIP interpolate linearly; their copies in timm,
    # which are what is loaded, bicubically.

    Args:
        weights: recognised.
        vit: the transformer that they are for.

    Raises:
        CheckpointError: weights of another transformer or patch, or keys missing, unexpected or misshaped.
    """
    found, wanted = weights.size, _describe_model(vit)
    if found != wanted:
        raise CheckpointError(
            f"the weights in {weights.source} are of another transformer: {found}; the model has {wanted}"
        )
    tensors = dict(weights.vit)
    if "pos_embed" in tensors and vit.pos_embed is not None:
        tensors["pos_embed"] = _fitting_positions(tensors["pos_embed"], vit, source=weights.source)
    shapes = {name: tuple(p.shape) for name, p in vit.named_parameters() if not is_update(name)}
    check_fit(tensors, shapes, source=weights.source)
    return replace(weights, vit=tensors)


def _fitting_positions(stored: StoredTensor, vit: ImageTransformer, *, source: str) -> StoredTensor:
    """Positions for the model's grid: (1, prefix + patches, C), from those of a square one."""
    assert vit.pos_embed is not None
    if stored.shape[-2] == vit.pos_embed.shape[1]:
        return stored
    prefix = vit.prefix_tokens if vit.prefix_has_position else 0
    patches = stored.shape[-2] - prefix
    side = round(max(patches, 0) ** 0.5)
    if side * side != patches or side == 0:
        raise CheckpointError(
            f"the positions in {source} cannot be resized: {stored.shape[-2]} are not {prefix} and a square of patches"
        )

    def read() -> Tensor:
        from timm.layers import resample_abs_pos_embed  # only now: timm takes seconds to import

        table = stored.read().float().reshape(1, -1, vit.width)
        return resample_abs_pos_embed(
            table,
            new_size=list(vit.grid),
            old_size=[side, side],
            num_prefix_tokens=prefix,
            interpolation="bicubic",
            antialias=vit.antialias_positions,
        )

    return StoredTensor(tuple(vit.pos_embed.shape), read)


def _describe(image: Mapping[str, StoredTensor]) -> str:
    """An image transformer's size, from its tensors' shapes."""
    embedding = image.get("patch_embed.proj.weight")
    mlp = image.get("blocks.0.mlp.fc1.weight") or image.get("blocks.0.mlp.fc1_g.weight")
    if embedding is None or mlp is None or len(embedding.shape) != 4:
        return "an incomplete image transformer"
    depth = len({key.split(".")[1] for key in image if key.startswith("blocks.")})
    pre_norm = "with" if "norm_pre.weight" in image else "without"
    token = "with" if "cls_token" in image else "without"
    registers = image["reg_token"].shape[-2] if "reg_token" in image else 0
    return (
        f"{depth} blocks of width {embedding.shape[0]} and MLP {mlp.shape[0]}, patches of {embedding.shape[-1]} px, "
        f"{pre_norm} a norm before them, {token} class token, {registers or 'no'} registers"
    )


def _describe_model(vit: ImageTransformer) -> str:
    return _describe({name: StoredTensor(tuple(p.shape), p.detach) for name, p in vit.named_parameters()})


def _split_classifier(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A recogniser's classifier under our names, and the other tensors."""
    classifier, others = {}, {}
    for key, tensor in tensors.items():
        in_head = re.fullmatch(_CLASSIFIER, key)
        if in_head:
            classifier[f"head.classifier.{in_head[1]}"] = tensor
        else:
            others[key] = tensor
    return classifier, others


def _split_adapters(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The image transformer's own tensors, and under our names what AIM adds to it."""
    image, added = {}, {}
    for name, tensor in tensors.items():
        adapter = re.fullmatch(rf"blocks\.(\d+)\.({'|'.join(_ADAPTERS)})\.D_fc([12])\.(weight|bias)", name)
        if adapter:
            block, kind, layer, part = adapter.groups()
            added[f"backbone.adapters.{block}.{_ADAPTERS[kind]}.fc{layer}.{part}"] = tensor
        elif name == _TEMPORAL:
            added[f"backbone.{name}"] = tensor
        else:
            image[name] = tensor
    return image, added


def _completed(tensors: Tensors, *, layout: str, keys: Iterable[str]) -> Tensors:
    """Join, split or add tensors that a layout stores otherwise than timm's VisionTransformer.

    Args:
        tensors: by timm's names.
        layout: of the file.
        keys: of the file.
    """
    joined = join_attention(dict(tensors))
    if layout == DINOV3:
        gated = "blocks.0.mlp.fc1_g.weight" in joined
        joined = {key.replace(".mlp.up.", ".mlp.fc1_x." if gated else ".mlp.fc1."): t for key, t in joined.items()}
    masked = [key.removesuffix("_mask") for key in keys if key.endswith(".attn.qkv.bias_mask")]
    for key in masked:  # DINOv3's own: the bias of keys is not used
        joined[key] = without_key_bias(joined[key])
    own_position = "pos_embed" in joined and any(key.endswith("register_tokens") for key in keys)
    if own_position:  # DINOv2's: the class token has a position, registers have none; timm's have none of both
        joined["cls_token"], joined["pos_embed"] = positions_of_patches(joined["cls_token"], joined["pos_embed"])
    return joined
