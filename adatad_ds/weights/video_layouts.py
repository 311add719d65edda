"""The layouts of published weights: recognised by their keys, brought under this package's names.

- A video transformer as the authors of VideoMAE, VideoMAE V2 and InternVideo save it, fine-tuned or with its decoder,
  and as converted by adatad-ds convert;
- the same as transformers (Hugging Face) and as mmaction2 name it;
- V-JEPA 2 as its authors and as transformers name it;
- InternVideo2 as its authors name it, pretrained, distilled, fine-tuned, or beside a text encoder;
- a trained detector as AdaTAD's authors publish it, with adapters, head and running average.

What a detector has no use for (decoder, classifier, final norm, position table) is named and left out. Nothing is read
here but names, shapes, and a position table that is left out. See docs/guides/weights.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad_ds.errors import CheckpointError
from adatad_ds.models.backbones.contract import Family, VideoTransformer, ViTSpec
from adatad_ds.models.backbones.internvideo2 import InternVideo2
from adatad_ds.models.backbones.vit import sinusoid
from adatad_ds.models.transformers import VIDEO_SPECS
from adatad_ds.models.tuning.lora import is_update
from adatad_ds.weights.files import StoredTensor, Tensors, check_fit, open_tensors
from adatad_ds.weights.layout import WeightLayout, Weights, find_layout, leave_out, rename, stacked

VIDEOMAE, TRANSFORMERS, MMACTION, ADATAD = "VideoMAE", "transformers", "mmaction2", "AdaTAD detector"
VJEPA2, VJEPA2_TRANSFORMERS, INTERNVIDEO2 = "V-JEPA 2", "V-JEPA 2 of transformers", "InternVideo2"
_MMACTION_RENAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
)
_LAYOUTS = (  # in the order in which they are tried; names become those of the VideoMAE authors, which are ours
    WeightLayout(
        name=ADATAD,
        signature=r"backbone\.model\.backbone\.patch_embed\.projection\.weight",
        renames=_MMACTION_RENAMES,
    ),
    WeightLayout(
        name=TRANSFORMERS,
        signature=r"(videomae\.)?embeddings\.patch_embeddings\.projection\.weight",
        renames=(
            (r"^videomae\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.attention\.([qv])_bias$", r".attn.\1_bias"),
            (r"\.attention\.attention\.([qv])(uery|alue)\.bias$", r".attn.\1_bias"),
            (r"\.attention\.attention\.(query|key|value)\.weight$", r".attn.\1.weight"),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        ),
    ),
    WeightLayout(
        name=MMACTION,
        signature=r"(backbone\.)?patch_embed\.projection\.weight",
        renames=((r"^backbone\.", ""), *_MMACTION_RENAMES),
    ),
    WeightLayout(
        name=VJEPA2_TRANSFORMERS,
        signature=r"(vjepa2\.)?encoder\.embeddings\.patch_embeddings\.proj\.weight",
        renames=(
            (r"^vjepa2\.", ""),
            (r"^encoder\.embeddings\.patch_embeddings\.proj\.", "patch_embed.proj."),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.attention\.(query|key|value|proj)\.", r".attn.\1."),
            (r"^encoder\.layernorm\.", "norm."),
        ),
    ),
    WeightLayout(
        name=INTERNVIDEO2,
        signature=r"((backbone|encoder|vision_encoder)\.)?blocks\.0\.attn\.q_norm\.weight",
        renames=(
            (r"^(backbone|encoder|vision_encoder)\.", ""),
            (r"^(cls_token|pos_embed)$", r"prefix.\1"),
        ),
    ),
    WeightLayout(
        name=VJEPA2,
        signature=r"((backbone|encoder)\.)?patch_embed\.proj\.weight",
        also=(r"((backbone|encoder)\.)?blocks\.0\.attn\.qkv\.bias", r"((backbone|encoder)\.)?norm\.weight"),
        renames=((r"^(backbone|encoder)\.", ""),),
    ),
    WeightLayout(
        name=VIDEOMAE,
        signature=r"((backbone|encoder)\.)?patch_embed\.proj\.weight",
        renames=((r"^(backbone|encoder)\.", ""),),
    ),
)
_HEAD_RENAMES = (  # a published detector's names -> ours
    (r"^neck\.fpn_norms\.", "pyramid.norms."),
    (r"^projection\.", "pyramid."),
    (r"^rpn_head\.scale\.(\d+)\.scale$", r"head.scales.\1.weight"),
    (r"^rpn_head\.", "head."),
    (r"\.(query|key|value)_conv\.conv\.", r".\1_conv."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.3\.", ".fc2."),
    (r"\.drop_path_(attn|mlp)\.", r".\1_branch."),
)
_COMPUTED = "position table, which is computed"
_LEFT_OUT = {  # of a transformer, under our names: unused by a detector, or computed
    "decoder": r"(decoder\.|encoder_to_decoder\.|mask_token$)",
    "classifier": r"(head|classifier|cls_head)\.",
    "final norm": r"(norm|fc_norm|layernorm)\.",
    _COMPUTED: r"(pos_embed|embeddings\.position_embeddings)$",
    "preprocessing, which is built in": r"data_preprocessor\.",
}
_LEFT_OUT_OF_VJEPA2 = {  # its final norm is used
    **{what: keys for what, keys in _LEFT_OUT.items() if what not in ("final norm", _COMPUTED)},
    "predictor": r"predictor\.",
    "classifier": r"(pooler|classifier)\.",
}
_LEFT_OUT_OF_INTERNVIDEO2 = {
    "attention pooling": r"(clip_projector|fc_norm)\.",
    "classifier": r"head\.",
    "decoders": r"((final_)?clip_decoder|mae_decoder)\.|(clip|mae)_pos_embed$",
    "text encoder": r"(text_encoder|text_proj|vision_proj|itm_head)\.|temp$",
}
_LEFT_OUT_OF = {
    VJEPA2: _LEFT_OUT_OF_VJEPA2,
    VJEPA2_TRANSFORMERS: _LEFT_OUT_OF_VJEPA2,
    INTERNVIDEO2: _LEFT_OUT_OF_INTERNVIDEO2,
}
_FAMILIES: dict[str, Family] = {
    VJEPA2: "V-JEPA 2",
    VJEPA2_TRANSFORMERS: "V-JEPA 2",
    INTERNVIDEO2: "InternVideo2",
}
_TRAITS: dict[Family, str] = {  # that tell apart transformers of the same size; of others, the family's name does
    "VideoMAE": "",
    "V-JEPA 2": ", rotary positions",
    "InternVideo2": ", class token and learnt positions",
}
_NORMALIZER = "rpn_head.loss_normalizer"
POSITIONS = "prefix.pos_embed"  # of InternVideo2, learnt
SIDE = "backbone.adapters.position_"  # side adapters are numbered, not named by their block
AVERAGED_PREFIX = "average/"  # in a converted detector: those of the running average that differ


def open_weights(source: str | Path, *, averaged: bool = False) -> Weights:
    """Recognise a file of weights.

    Args:
        source: file, Hugging Face folder or hub name.
        averaged: of a trained detector, take the running average rather than the last weights.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: unreadable, unsafe, or of no known layout.
    """
    entries = ("state_dict_ema", "state_dict") if averaged else ("state_dict", "model", "module", "target_encoder")
    return recognise(open_tensors(source, entries=entries), source=str(source), averaged=averaged)


def recognise(stored: Tensors, *, source: str, averaged: bool) -> Weights:
    """Recognise a layout by its keys, and bring it under our names.

    Args:
        stored: tensors by their names in the file.
        source: for messages.
        averaged: as for `open_weights`.

    Raises:
        CheckpointError: it is none of the known ones, or of a transformer with other positions.
    """
    average = {key.removeprefix(AVERAGED_PREFIX): t for key, t in stored.items() if key.startswith(AVERAGED_PREFIX)}
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(AVERAGED_PREFIX)}
    tensors = {_strip(key): tensor for key, tensor in (stored | average if averaged else stored).items()}
    layout = find_layout(tensors, _LAYOUTS, kind="a video", known=[layout.name for layout in _LAYOUTS], source=source)
    normalizer = tensors.pop(_NORMALIZER, None)
    vit, trained = _split_detector(tensors) if layout.name == ADATAD else (tensors, {})
    unused = _LEFT_OUT_OF.get(layout.name, _LEFT_OUT)
    vit = {layout.rename(key): tensor for key, tensor in vit.items()}
    _check_positions(vit, layout=layout.name, source=source)
    vit, left_out = leave_out(vit, unused)
    vit = _join_attention(vit)
    return Weights(
        source=source,
        layout=layout.name,
        size=describe(vit, family=_FAMILIES.get(layout.name, "VideoMAE")),
        vit=vit,
        trained=trained,
        left_out=left_out,
        loss_normalizer=None if normalizer is None else float(normalizer.read()),
    )


def _check_positions(vit: Tensors, *, layout: str, source: str) -> None:
    """Refuse tables of positions that are not those computed here.

    The authors of V-JEPA 2 have one model code for both: with rotary positions, as published, it has no table.
    """
    table = vit.get("pos_embed", vit.get("embeddings.position_embeddings"))
    if table is None:
        return
    if layout == VJEPA2:
        raise CheckpointError(
            f"{source} holds a table of absolute positions (pos_embed): it is from V-JEPA, not V-JEPA 2, whose "
            "positions are rotary and in no file; facebook/vjepa2-vitl-fpc64-256 on the Hugging Face hub is of V-JEPA 2"
        )
    positions = table.read().float().flatten(end_dim=-2)
    computed = sinusoid(length=len(positions), width=positions.shape[-1])
    if not torch.allclose(positions, computed, rtol=0, atol=0.02):  # stored in 16 bits, perhaps
        raise CheckpointError(
            f"{source} holds a table of learnt positions (pos_embed): transformers of the VideoMAE family have "
            "sine-cosine positions here, which are computed"
        )


def fit_video_weights(weights: Weights, vit: VideoTransformer, *, backbone: str) -> Weights:
    """The same weights, seen to fit a transformer; learnt positions are resized to its clips and resolution.

    Args:
        weights: recognised.
        vit: the transformer that they are for.
        backbone: its name, for the message.

    Raises:
        CheckpointError: weights of another member of the family, or keys missing, unexpected or misshaped.
    """
    wanted = describe_spec(vit.spec)
    if weights.size != wanted:
        raise CheckpointError(
            f"the weights in {weights.source} are of another transformer: {weights.size}, where backbone.name="
            f"{backbone} has {wanted}"
        )
    shapes = {key: tuple(p.shape) for key, p in vit.named_parameters() if not is_update(key)}
    tensors = dict(weights.vit)
    if isinstance(vit, InternVideo2) and POSITIONS in tensors:
        tensors[POSITIONS] = _fitting_positions(tensors[POSITIONS], vit)
    check_fit(tensors, shapes, source=weights.source)
    return replace(weights, vit=tensors)


def _fitting_positions(stored: StoredTensor, vit: InternVideo2) -> StoredTensor:
    """Learnt positions, from the resolution of the pretraining and any number of frames."""
    rows = vit.spec.pretrained_side // vit.spec.patch
    if len(stored.shape) != 3 or (stored.shape[1] - 1) % rows**2:
        return stored  # refused with its shape

    def read() -> Tensor:
        return resized_positions(stored.read(), patch_rows=rows, clip_frames=vit.clip_frames, grid_side=vit.grid_side)

    return StoredTensor((1, vit.get_parameter(POSITIONS).shape[1], stored.shape[2]), read)


def resized_positions(table: Tensor, *, patch_rows: int, clip_frames: int, grid_side: int) -> Tensor:
    """Learnt positions for clips of another length or resolution, as the authors resize them.

    Linearly over time, then bicubically over each frame; the class token's stay.

    Args:
        table: (1, 1 + F' * patch_rows^2, C).
        patch_rows: patches of a side in the table.
        clip_frames: F.
        grid_side: patches of a side wanted.

    Returns:
        (1, 1 + F * grid_side^2, C).
    """
    width = table.shape[-1]
    prefix, patches = table.float().tensor_split([1], dim=1)
    over_time = patches.view(-1, patch_rows**2 * width)  # (F', positions and channels)
    if len(over_time) != clip_frames:
        over_time = F.interpolate(over_time.t()[None], size=clip_frames, mode="linear")[0].t()
    maps = over_time.reshape(clip_frames, patch_rows, patch_rows, width).permute(0, 3, 1, 2)
    if patch_rows != grid_side:
        maps = F.interpolate(maps, size=(grid_side, grid_side), mode="bicubic", align_corners=False)
    return torch.cat([prefix, maps.permute(0, 2, 3, 1).reshape(1, -1, width)], dim=1).to(table.dtype)


def describe(vit: Mapping[str, StoredTensor], *, family: Family) -> str:
    """A transformer's size, from its tensors' shapes."""
    embedding, mlp = vit.get("patch_embed.proj.weight"), vit.get("blocks.0.mlp.fc1.weight")
    if embedding is None or mlp is None or len(embedding.shape) != 5:
        return "an incomplete transformer"
    depth = 1 + max(int(key.split(".")[1]) for key in vit if key.startswith("blocks."))
    width, patch, hidden = embedding.shape[0], embedding.shape[-1], mlp.shape[0]
    return _describe(width, depth, hidden, patch, family)


def backbone_name(weights: Weights) -> str | None:
    """Name of the backbone that weights are of; None if there is none."""
    return next((name for name, spec in VIDEO_SPECS.items() if describe_spec(spec) == weights.size), None)


def describe_spec(spec: ViTSpec) -> str:
    """The same, of a member of the family."""
    return _describe(spec.width, spec.depth, spec.mlp_hidden, spec.patch, spec.family)


def _describe(width: int, depth: int, hidden: int, patch: int, family: Family) -> str:
    traits = _TRAITS.get(family, f", {family}")
    return f"{depth} blocks of width {width} and MLP {hidden}, patches of {patch} px{traits}"


def _split_detector(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A published detector's tensors: the transformer's, still as published, and the rest under our names."""
    vit, trained = {}, {}
    for key, tensor in tensors.items():
        inner = key.removeprefix("backbone.model.backbone.")
        in_block = re.match(r"blocks\.(\d+)\.adapter\.(.+)", inner)
        side = re.match(r"ladders\.adapters\.(\d+)\.(.+)", inner)
        if in_block:
            trained[f"backbone.adapters.{in_block[1]}.{in_block[2]}"] = tensor
        elif side:
            trained[f"{SIDE}{side[1]}.{side[2]}"] = tensor
        elif inner != key:
            vit[inner] = tensor
        elif not key.startswith("backbone.model.data_preprocessor."):
            trained[rename(key, _HEAD_RENAMES)] = tensor
    return vit, trained


def _join_attention(tensors: Tensors) -> Tensors:
    """Query, key and value as one matrix and one bias, with zeros for the key's where a model has none."""
    joined = dict(tensors)
    for key in tensors:
        for kind in ("weight", "bias"):
            stem = key.removesuffix(f"query.{kind}")
            if stem != key and {f"{stem}key.{kind}", f"{stem}value.{kind}"} <= tensors.keys():
                parts = [joined.pop(f"{stem}{part}.{kind}") for part in ("query", "key", "value")]
                joined[f"{stem}qkv.{kind}"] = stacked(parts)
        stem = key.removesuffix("q_bias")
        if stem != key and f"{stem}v_bias" in tensors:
            query, value = joined.pop(f"{stem}q_bias"), joined.pop(f"{stem}v_bias")
            none = StoredTensor(query.shape, lambda query=query: torch.zeros_like(query.read()))
            joined[f"{stem}qkv.bias"] = stacked([query, none, value])
    return joined


def _strip(key: str) -> str:
    """Take wrappers' prefixes off a key, but not the detector's own `backbone.model.`."""
    return re.sub(
        r"^((module|_orig_mod|model(?=\.(patch_embed|blocks|fc_norm|norm|head|pos_embed|videomae)))\.)+", "", key
    )
