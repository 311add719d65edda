"""Pretrained weights into a model: checked against it, read block by block, recognised again by their fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adatad_ds.config import BackboneConfig, Config, ConfigError
from adatad_ds.models.detector import Detector
from adatad_ds.models.vit import VisionTransformer
from adatad_ds.weight_files import StoredTensor, Tensors
from adatad_ds.weight_layouts import BESIDE, Weights, describe, describe_spec, open_weights, some

_VIDEOMAE_PAGE = "https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md (CC BY-NC 4.0: not for commercial use)"
VIT = "backbone.vit."  # where a detector has its transformer
_CLASSIFIER = "head.cls_head."
WHERE_FROM = {
    "videomae_s": _VIDEOMAE_PAGE,
    "videomae_b": f"{_VIDEOMAE_PAGE}, or MCG-NJU/videomae-base-finetuned-kinetics on the Hugging Face hub",
    "videomae_l": f"{_VIDEOMAE_PAGE}, or MCG-NJU/videomae-large-finetuned-kinetics on the Hugging Face hub",
    "videomae_h": f"{_VIDEOMAE_PAGE}, or MCG-NJU/videomae-huge-finetuned-kinetics on the Hugging Face hub",
    "videomaev2_g": "https://github.com/OpenGVLab/VideoMAEv2/blob/master/docs/MODEL_ZOO.md (given on request, for "
    "non-commercial use, not to be passed on; the detectors trained from it use vit_g_hybrid_pt_1200e_k710_ft.pth)",
}


def find_weights(backbone: BackboneConfig, vit: VisionTransformer, *, averaged: bool = False) -> Weights | None:
    """Recognise the weights that a config names, and see that they fit the transformer; None where it names none.

    Args:
        backbone: the config's section.
        vit: the transformer that they are for.
        averaged: of a trained detector, take the running average rather than the last weights.

    Raises:
        ConfigError: absent (the message says where to get them, and on what terms), unreadable, unsafe, of no known
            layout, of another member of the family, or with keys that are missing, unexpected or of another shape.
    """
    if backbone.weights is None:
        return None
    try:
        weights = open_weights(backbone.weights, averaged=averaged)
    except FileNotFoundError as error:
        raise ConfigError(f"{error}. {_where_from(backbone.name, backbone.weights)}") from error
    found, wanted = describe(weights.vit), describe_spec(vit.spec)
    if found != wanted:
        raise ConfigError(
            f"the weights in {weights.source} are of another transformer: {found}, where backbone.name="
            f"{backbone.name} has {wanted}"
        )
    shapes = {key: tuple(parameter.shape) for key, parameter in vit.named_parameters()}
    check_fit(weights.vit, shapes, source=weights.source)
    return weights


def fill_backbone(
    vit: VisionTransformer,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    read: bool,
    host: Callable[[nn.Module], None],
) -> dict[str, str]:
    """Give a transformer that was built on the meta device its weights, block by block.

    No more than one block is in memory before `host` takes it away.

    Args:
        vit: the transformer.
        tensors: its weights, by our names, known to fit.
        dtype: compute type.
        read: False leaves the memory unset: another rank reads, and `host` or the engine sends.
        host: called with the patch embedding and each block once filled; ZeRO-3 partitions it there.

    Returns:
        Fingerprint of the frozen weights: a hash by name; empty where nothing is read.
    """
    hashes = {}
    for prefix, unit in (("patch_embed", vit.patch_embed), *((f"blocks.{i}", b) for i, b in enumerate(vit.blocks))):
        _allocate(unit, dtype)
        for name, parameter in unit.named_parameters() if read else ():
            value = tensors[f"{prefix}.{name}"].read().reshape(parameter.shape)
            parameter.data.copy_(value)
            if not parameter.requires_grad:
                hashes[f"{prefix}.{name}"] = tensor_hash(value)
            del value
        host(unit)
    return hashes


def _allocate(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module's meta parameters memory, all in one piece.

    The C library gives a large piece back to the system when it is freed; many small ones would leave holes behind.
    """
    parameters = list(module.named_parameters())
    sizes = [parameter.numel() for _, parameter in parameters]
    memory = torch.empty(sum(sizes), dtype=dtype)
    for (name, parameter), part in zip(parameters, memory.split(sizes), strict=True):
        owner, _, leaf = name.rpartition(".")
        own = nn.Parameter(part.view(parameter.shape), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), leaf, own)


def fingerprint(vit: VisionTransformer) -> dict[str, str]:
    """Fingerprint of frozen weights that came from no file, as `fill_backbone` returns it."""
    return {name: tensor_hash(p.detach()) for name, p in vit.named_parameters() if not p.requires_grad}


def check_fingerprint(
    found: Mapping[str, str], wanted: Mapping[str, str], *, trained: str | Path, weights: object
) -> None:
    """See that frozen weights are those under which adapters were trained.

    Raises:
        ConfigError: they are not; a right adapter over a wrong backbone detects nothing.
    """
    if found != wanted:
        different = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise ConfigError(
            f"{trained} was trained over other frozen weights than those of backbone.weights={weights}: "
            f"{len(different)} of {len(wanted)} tensors differ ({some(different, most=3)}). Give the weights that the "
            "training began with"
        )


def trained_tensors(weights: Weights, detector: Detector, *, reset_classifier: bool) -> Tensors:
    """What a trained detector has learnt, by our names, checked against a model.

    Args:
        weights: of a trained detector.
        detector: the model that they are for.
        reset_classifier: leave out the class logits' layer where it is for another number of classes.

    Raises:
        ConfigError: keys that are missing, unexpected or of another shape.
    """
    blocks = dict(enumerate(detector.backbone.adapted_blocks))

    def named(key: str) -> str:
        position = re.match(re.escape(BESIDE) + r"(\d+)", key)
        block = blocks.get(int(position[1])) if position else None
        return key if position is None or block is None else key.replace(position[0], f"backbone.adapters.{block}", 1)

    tensors = {named(key): tensor for key, tensor in weights.trained.items()}
    if detector.backbone.tuning == "full":
        tensors |= {f"{VIT}{key}": tensor for key, tensor in weights.vit.items()}
    shapes = {name: tuple(p.shape) for name, p in detector.named_parameters() if p.requires_grad}
    classifier = [key for key in tensors if key.startswith(_CLASSIFIER)]
    other_classes = [key for key in classifier if key in shapes and tensors[key].shape[0] != shapes[key][0]]
    if other_classes:
        theirs, ours = tensors[other_classes[0]].shape[0], shapes[other_classes[0]][0]
        if not reset_classifier:
            raise ConfigError(
                f"{weights.source} was trained for {theirs} classes, the data have {ours}; "
                "--set head.reset_classifier=true starts the layer of class logits anew"
            )
        tensors = {key: tensor for key, tensor in tensors.items() if key not in classifier}
        shapes = {key: shape for key, shape in shapes.items() if key not in classifier}
    check_fit(tensors, shapes, source=weights.source)
    return {name: _shaped(tensors[name], shape) for name, shape in shapes.items()}


def published_state(weights: Weights, detector: Detector, *, config: Config) -> dict[str, Tensors]:
    """What a trained detector has learnt: "master" its last weights, "average" its running average.

    Args:
        weights: the last weights; empty is returned for those of a transformer alone.
        detector: the model that they are for.
        config: of the run.

    Raises:
        ConfigError: keys that are missing, unexpected or of another shape.
    """
    if not weights.trained:
        return {}
    average = open_weights(weights.source, averaged=True)
    return {
        kind: trained_tensors(each, detector, reset_classifier=config.head.reset_classifier)
        for kind, each in (("master", weights), ("average", average))
    }


def check_fit(tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """See that names and shapes agree; axes of length 1 do not count (a 1x1 convolution is linear).

    Raises:
        ConfigError: listing every difference.
    """
    misshaped = [
        f"{key} is {tensors[key].shape}, the model wants {shapes[key]}"
        for key in sorted(shapes.keys() & tensors.keys())
        if _without_ones(tensors[key].shape) != _without_ones(shapes[key])
    ]
    problems = [
        f"{len(keys)} {title}: {', '.join(keys)}"
        for title, keys in (
            ("missing", sorted(shapes.keys() - tensors.keys())),
            ("unexpected", sorted(tensors.keys() - shapes.keys())),
            ("of another shape", misshaped),
        )
        if keys
    ]
    if problems:
        raise ConfigError(f"the weights in {source} do not fit this model. " + ". ".join(problems))


def _where_from(backbone: str, source: str) -> str:
    if backbone not in WHERE_FROM:
        return "Give the path of a weights file with --set backbone.weights=FILE"
    return (
        f"The weights of {backbone} come from {WHERE_FROM[backbone]}. Give the file with --set backbone.weights=FILE, "
        f"or convert it once: python tools/convert_weights.py FILE --out {source}"
    )


def tensor_hash(tensor: Tensor) -> str:
    """Hash of the values rounded to bf16: the same for a file and its copies in other types."""
    rounded = tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16)
    return hashlib.blake2b(rounded.cpu().numpy().data, digest_size=8).hexdigest()


def _shaped(stored: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The same values in a shape that differs by axes of length 1."""
    return StoredTensor(shape, lambda: stored.read().reshape(shape))


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
