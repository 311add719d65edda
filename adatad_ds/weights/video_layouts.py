"""The layouts of published weights: recognised by their keys, brought under this package's names.

- A video transformer as the authors of VideoMAE, VideoMAE V2 and InternVideo save it, fine-tuned or with its decoder,
  and as converted by adatad-ds convert;
- the same as transformers (Hugging Face) and as mmaction2 name it;
- a whole trained detector as AdaTAD's authors publish it, with adapters, head and running average.

What a detector has no use for (decoder, classifier, final norm, position table) is named and left out. Nothing is read
here but names and shapes. See docs/guides/weights.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adatad_ds.errors import ConfigError, summarize_list
from adatad_ds.models.backbones.vit import VIT_SPECS, ViTSpec
from adatad_ds.weights.files import StoredTensor, Tensors, open_tensors

VIDEOMAE, TRANSFORMERS, MMACTION, ADATAD = "VideoMAE", "transformers", "mmaction2", "AdaTAD detector"
_SIGNATURES = {  # a key that tells, its wrappers taken off
    ADATAD: r"backbone\.model\.backbone\.patch_embed\.projection\.weight",
    TRANSFORMERS: r"(videomae\.)?embeddings\.patch_embeddings\.projection\.weight",
    MMACTION: r"(backbone\.)?patch_embed\.projection\.weight",
    VIDEOMAE: r"((backbone|encoder)\.)?patch_embed\.proj\.weight",
}
_RENAMES = {  # to the names of the VideoMAE authors, which are ours
    ADATAD: (
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
    ),
    TRANSFORMERS: (
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
    VIDEOMAE: ((r"^(backbone|encoder)\.", ""),),
}
_RENAMES[MMACTION] = ((r"^backbone\.", ""), *_RENAMES[ADATAD])
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
_LEFT_OUT = {  # of a transformer, under our names: unused by a detector, or computed
    "decoder": r"(decoder\.|encoder_to_decoder\.|mask_token$)",
    "classifier": r"(head|classifier|cls_head)\.",
    "final norm": r"(norm|fc_norm|layernorm)\.",
    "position table, which is computed": r"(pos_embed|embeddings\.position_embeddings)$",
    "preprocessing, which is built in": r"data_preprocessor\.",
}
_NORMALIZER = "rpn_head.loss_normalizer"
BESIDE = "backbone.adapters.position_"  # adapters beside the backbone are numbered, not named by their block
AVERAGED_PREFIX = "average/"  # in a converted detector: those of the running average that differ
MOST_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file of pretrained weights, recognised but not read.

    Attributes:
        source: path or hub name.
        layout: one of those at the head of this module.
        vit: the video transformer's tensors, by our names.
        trained: adapters, pyramid and heads of a trained detector; empty for a transformer alone.
        left_out: keys without use here, by what they are.
        loss_normalizer: the running mean of positives of a trained detector.
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
        return f"{self.source}: {self.layout}, {describe(self.vit)}" + (f"; left out: {left}" if left else "")


def open_weights(source: str | Path, *, averaged: bool = False) -> Weights:
    """Recognise a file of weights.

    Args:
        source: file, Hugging Face folder or hub name.
        averaged: of a trained detector, take the running average rather than the last weights.

    Raises:
        FileNotFoundError: nothing is there.
        ConfigError: unreadable, unsafe, or of no known layout.
    """
    entries = ("state_dict_ema", "state_dict") if averaged else ("state_dict", "model", "module")
    return recognise(open_tensors(source, entries=entries), source=str(source), averaged=averaged)


def recognise(stored: Tensors, *, source: str, averaged: bool) -> Weights:
    """Recognise a layout by its keys, and bring it under our names.

    Args:
        stored: tensors by their names in the file.
        source: for messages.
        averaged: as for `open_weights`.

    Raises:
        ConfigError: it is none of the known ones.
    """
    average = {key.removeprefix(AVERAGED_PREFIX): t for key, t in stored.items() if key.startswith(AVERAGED_PREFIX)}
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(AVERAGED_PREFIX)}
    tensors = {_strip(key): tensor for key, tensor in (stored | average if averaged else stored).items()}
    layout = next((name for name, key in _SIGNATURES.items() if any(re.fullmatch(key, k) for k in tensors)), None)
    if layout is None:
        raise ConfigError(
            f"{source} is of no known layout: no patch embedding of a video transformer among its {len(tensors)} "
            f"tensors ({summarize_list(list(tensors), limit=5, separator=', ')}). Known: {', '.join(_SIGNATURES)}"
        )
    normalizer = tensors.pop(_NORMALIZER, None)
    vit, trained = _split_detector(tensors) if layout == ADATAD else (tensors, {})
    vit, left_out = _leave_out({_rename(key, _RENAMES[layout]): tensor for key, tensor in vit.items()})
    return Weights(
        source=source,
        layout=layout,
        vit=_join_attention(vit),
        trained=trained,
        left_out=left_out,
        loss_normalizer=None if normalizer is None else float(normalizer.read()),
    )


def describe(vit: Mapping[str, StoredTensor]) -> str:
    """A transformer's size, from its tensors' shapes."""
    embedding, mlp = vit.get("patch_embed.proj.weight"), vit.get("blocks.0.mlp.fc1.weight")
    if embedding is None or mlp is None or len(embedding.shape) != 5:
        return "an incomplete transformer"
    depth = 1 + max(int(key.split(".")[1]) for key in vit if key.startswith("blocks."))
    width, patch, hidden = embedding.shape[0], embedding.shape[-1], mlp.shape[0]
    return _describe(width, depth, hidden, patch)


def backbone_name(vit: Mapping[str, StoredTensor]) -> str | None:
    """Which member of the family a transformer is; None for a size of its own."""
    return next((name for name, spec in VIT_SPECS.items() if describe_spec(spec) == describe(vit)), None)


def describe_spec(spec: ViTSpec) -> str:
    """The same, of a member of the family."""
    return _describe(spec.width, spec.depth, spec.mlp_hidden, spec.patch)


def _describe(width: int, depth: int, hidden: int, patch: int) -> str:
    return f"{depth} blocks of width {width} and MLP {hidden}, patches of {patch} px"


def _split_detector(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A published detector's tensors: the transformer's, still as published, and the rest under our names."""
    vit, trained = {}, {}
    for key, tensor in tensors.items():
        inner = key.removeprefix("backbone.model.backbone.")
        in_block = re.match(r"blocks\.(\d+)\.adapter\.(.+)", inner)
        beside = re.match(r"ladders\.adapters\.(\d+)\.(.+)", inner)
        if in_block:
            trained[f"backbone.adapters.{in_block[1]}.{in_block[2]}"] = tensor
        elif beside:
            trained[f"{BESIDE}{beside[1]}.{beside[2]}"] = tensor
        elif inner != key:
            vit[inner] = tensor
        elif not key.startswith("backbone.model.data_preprocessor."):
            trained[_rename(key, _HEAD_RENAMES)] = tensor
    return vit, trained


def _leave_out(tensors: Tensors) -> tuple[Tensors, dict[str, tuple[str, ...]]]:
    """Part what a detector uses from what it does not."""
    left = {what: tuple(key for key in tensors if re.match(keys, key)) for what, keys in _LEFT_OUT.items()}
    gone = {key for keys in left.values() for key in keys}
    kept = {key: tensor for key, tensor in tensors.items() if key not in gone}
    return kept, {what: keys for what, keys in left.items() if keys}


def _join_attention(tensors: Tensors) -> Tensors:
    """Query, key and value as one matrix and one bias, with zeros for the key's, which no model here has."""
    joined = dict(tensors)
    for key in tensors:
        stem = key.removesuffix("query.weight")
        if stem != key and {f"{stem}key.weight", f"{stem}value.weight"} <= tensors.keys():
            joined[f"{stem}qkv.weight"] = _joined(
                [joined.pop(f"{stem}{part}.weight") for part in ("query", "key", "value")]
            )
        stem = key.removesuffix("q_bias")
        if stem != key and f"{stem}v_bias" in tensors:
            query, value = joined.pop(f"{stem}q_bias"), joined.pop(f"{stem}v_bias")
            none = StoredTensor(query.shape, lambda query=query: torch.zeros_like(query.read()))
            joined[f"{stem}qkv.bias"] = _joined([query, none, value])
    return joined


def _joined(parts: list[StoredTensor]) -> StoredTensor:
    rows = sum(part.shape[0] for part in parts)
    return StoredTensor((rows, *parts[0].shape[1:]), lambda: torch.cat([part.read() for part in parts]))


def _rename(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _strip(key: str) -> str:
    """Take wrappers' prefixes off a key, but not the detector's own `backbone.model.`."""
    return re.sub(
        r"^((module|_orig_mod|model(?=\.(patch_embed|blocks|fc_norm|norm|head|pos_embed|videomae)))\.)+", "", key
    )
