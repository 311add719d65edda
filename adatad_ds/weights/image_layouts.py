"""Weights for AIM: of image transformers, and of trained AIM models, brought under our names and checked.

- `timm`: the state dict of one of its VisionTransformers, whose names are ours, or of its DINOv3; DINOv2's and
  DINOv3's own files are named nearly alike;
- `transformers`: CLIPVisionModel, alone or within a CLIPModel;
- `DINOv2 of transformers`: Dinov2Model, Dinov2WithRegistersModel; `DINOv3 of transformers`: DINOv3ViTModel;
- `CLIP`: OpenAI's and OpenCLIP's `visual.*`, alone or with the text model;
- `AIM`: checkpoints of the authors' models, trained from CLIP or from ImageNet weights.

A file cannot tell QuickGELU from GELU: OpenAI's weights, and those of `openai/clip-vit-*` on the Hugging Face hub,
want timm's `*_clip_quickgelu_*` models.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from adatad_ds.errors import ConfigError, summarize_list
from adatad_ds.weights.files import StoredTensor, Tensors, check_fit, find_source, open_tensors
from adatad_ds.weights.image_tensors import join_attention, positions_of_patches, without_key_bias

if TYPE_CHECKING:
    from adatad_ds.models.backbones.image_vit import ImageTransformer

TIMM, TRANSFORMERS, CLIP, AIM = "timm", "transformers", "CLIP", "AIM"
DINOV2, DINOV3 = "DINOv2 of transformers", "DINOv3 of transformers"
_SIGNATURES = {  # a key that tells, its wrappers taken off; the first that is there counts
    AIM: r"(backbone\.)?temporal_embedding",
    CLIP: r"(visual\.)?conv1\.weight",
    TRANSFORMERS: r"(vision_model\.)?embeddings\.patch_embedding\.weight",
    DINOV2: r"(dinov2(_with_registers)?\.)?encoder\.layer\.0\.layer_scale1\.lambda1",
    DINOV3: r"(model\.)?layer\.0\.layer_scale1\.lambda1",
    TIMM: r"(visual\.trunk\.)?patch_embed\.proj\.weight",
}
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
)
_DINO_RENAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_RENAMES = {  # to timm's names
    TIMM: (
        (r"^visual\.trunk\.", ""),
        (r"^(register|storage)_tokens$", "reg_token"),  # DINOv2 and DINOv3 themselves, to the gated MLPs
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w1\.", ".mlp.fc1_g."),
        (r"\.mlp\.w2\.", ".mlp.fc1_x."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"\.gamma_([12])$", r".ls\1.gamma"),  # timm's DINOv3
        (r"\.attn\.([qv])_bias$", r".attn.\1.bias"),
    ),
    DINOV2: (
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
    DINOV3: (
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^(model\.)?layer\.", "blocks."),
        *_DINO_RENAMES,
        (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
        (r"\.mlp\.up_proj\.", ".mlp.up."),
        (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    ),
    CLIP: ((r"^visual\.", ""), *_CLIP_RENAMES),
    AIM: ((r"^backbone\.", ""), *_CLIP_RENAMES),
    TRANSFORMERS: (
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
}
_LEFT_OUT = {  # by the file's names
    "text model": r"(text_model\.|token_embedding\.|ln_final\.|text\.)",
    "projection to the text's space": r"((text|visual)_projection(\.weight)?|(visual\.)?proj|logit_(scale|bias))$",
    "counter": r"(input_resolution|context_length|vocab_size|(.*\.)?embeddings\.position_ids)$",
    "classifier or pooling of images": r"(visual\.trunk\.)?(head|attn_pool|fc|classifier)\.",
    "mask of pretraining": r"((dinov2(_with_registers)?\.)?embeddings\.)?mask_token$|local_cls_norm\.|projectors\.",
    "rotation, which is computed": r"rope(_embed)?\.|.*\.attn\.qkv\.bias_mask$",
}
_TEXT_BESIDE_VISUAL = r"(transformer\.|positional_embedding$)"  # as OpenAI's CLIP names its text model
_ADAPTERS = {"T_Adapter_in": "temporal_in", "T_Adapter": "temporal", "S_Adapter": "spatial", "MLP_Adapter": "joint"}
_CLASSIFIER = r"cls_head\.fc_cls\.(weight|bias)"
_TEMPORAL = "temporal_embedding"


@dataclass(frozen=True, kw_only=True)
class AIMWeights:
    """A file of weights, recognised but not read.

    Attributes:
        source: path or hub name.
        layout: one of those at the head of this module.
        vit: the image transformer's tensors, by timm's names.
        trained: adapters, temporal embedding and classifier of a trained model, by our names; empty for an image
            transformer.
        left_out: keys without use here, by what they are.
        loss_normalizer: None; only detectors have one.
    """

    source: str
    layout: str
    vit: Tensors
    trained: Tensors = field(default_factory=dict)
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loss_normalizer: float | None = None

    def report(self) -> str:
        """One line: what was found and what was left out."""
        left = "; ".join(
            f"{what} ({len(keys)}: {summarize_list(keys, limit=2, separator=', ')})"
            for what, keys in self.left_out.items()
        )
        return f"{self.source}: {self.layout}, {_describe(self.vit)}" + (f"; left out: {left}" if left else "")


def open_aim_weights(source: str | Path) -> AIMWeights:
    """Recognise a file of weights.

    Args:
        source: file, Hugging Face folder or hub name.

    Raises:
        FileNotFoundError: nothing is there.
        ConfigError: unreadable, unsafe, or of no known layout.
    """
    path = find_source(source)
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in archive.namelist()):
                raise ConfigError(
                    f"{path} is a TorchScript program, as OpenAI publishes CLIP; reading it would load its code. The "
                    "same weights are openai/clip-vit-base-patch16 and openai/clip-vit-large-patch14 on the Hugging "
                    "Face hub; or save its state_dict() where you trust it"
                )
    return recognise_aim(open_tensors(path, entries=("state_dict", "model", "module")), source=str(source))


def recognise_aim(stored: Tensors, *, source: str) -> AIMWeights:
    """Recognise a layout by its keys, and bring it under our names.

    Args:
        stored: tensors by their names in the file.
        source: for messages.

    Raises:
        ConfigError: it is none of the known ones.
    """
    tensors = {re.sub(r"^((module|_orig_mod)\.)+", "", key): tensor for key, tensor in stored.items()}
    layout = next((name for name, key in _SIGNATURES.items() if any(re.fullmatch(key, k) for k in tensors)), None)
    if layout is None:
        raise ConfigError(
            f"{source} is of no known layout: no patch embedding of an image transformer among its {len(tensors)} "
            f"tensors ({summarize_list(list(tensors), limit=5, separator=', ')}). Known: "
            f"{', '.join((TIMM, TRANSFORMERS, DINOV2, DINOV3, CLIP, AIM))}"
        )
    unused = dict(_LEFT_OUT)
    if any(key.startswith("visual.") for key in tensors):
        unused["text model"] += f"|{_TEXT_BESIDE_VISUAL}"
    left_out = {what: tuple(key for key in tensors if re.match(keys, key)) for what, keys in unused.items()}
    gone = {key for keys in left_out.values() for key in keys}
    image, trained = {}, {}
    for key, tensor in tensors.items():
        in_head = re.fullmatch(_CLASSIFIER, key)
        if in_head:
            trained[f"head.classifier.{in_head[1]}"] = tensor
        elif key not in gone:
            name = _rename(key, layout)
            ours = _adapter_name(name)
            (image if ours is None else trained)[ours or name] = tensor
    return AIMWeights(
        source=source,
        layout=layout,
        vit=_completed(image, layout=layout, keys=tensors),
        trained=trained,
        left_out={what: keys for what, keys in left_out.items() if keys},
    )


def fit_image_weights(weights: AIMWeights, vit: ImageTransformer) -> AIMWeights:
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
        ConfigError: weights of another transformer or patch, or keys missing, unexpected or misshaped.
    """
    found, wanted = _describe(weights.vit), _describe_model(vit)
    if found != wanted:
        raise ConfigError(
            f"the weights in {weights.source} are of another transformer: {found}; the model has {wanted}"
        )
    tensors = dict(weights.vit)
    if "pos_embed" in tensors and vit.pos_embed is not None:
        tensors["pos_embed"] = _fitting_positions(tensors["pos_embed"], vit, source=weights.source)
    check_fit(tensors, {name: tuple(p.shape) for name, p in vit.named_parameters()}, source=weights.source)
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
        raise ConfigError(
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


def _adapter_name(name: str) -> str | None:
    """Our name of what AIM adds to an image transformer; None for the transformer's own."""
    if name == _TEMPORAL:
        return f"backbone.{name}"
    adapter = re.fullmatch(rf"blocks\.(\d+)\.({'|'.join(_ADAPTERS)})\.D_fc([12])\.(weight|bias)", name)
    return f"backbone.adapters.{adapter[1]}.{_ADAPTERS[adapter[2]]}.fc{adapter[3]}.{adapter[4]}" if adapter else None


def _completed(tensors: Tensors, *, layout: str, keys: Iterable[str]) -> Tensors:
    """What a layout keeps apart or together otherwise than timm's VisionTransformer.

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


def _rename(key: str, layout: str) -> str:
    for pattern, replacement in _RENAMES[layout]:
        key = re.sub(pattern, replacement, key)
    return key
