"""Pretrained weights into a model: checked against it, read block by block, recognised again by their fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adatad_ds.config.schema import BackboneConfig, Config
from adatad_ds.data.annotations import load_annotations
from adatad_ds.errors import CheckpointError, ConfigError, summarize_list
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.contract import VideoTransformer
from adatad_ds.models.backbones.features import FeatureBackbone
from adatad_ds.models.factory import Model
from adatad_ds.models.recogniser import Recogniser
from adatad_ds.models.tuning.lora import is_update
from adatad_ds.recipes.class_order import ClassOrder
from adatad_ds.weights.files import StoredTensor, Tensors, check_fit
from adatad_ds.weights.head_layouts import open_head_weights
from adatad_ds.weights.image_layouts import fit_image_weights, open_aim_weights
from adatad_ds.weights.layout import Weights
from adatad_ds.weights.trainable_state import AVERAGE, MASTER
from adatad_ds.weights.video_layouts import SIDE, fit_video_weights, open_weights

_VIDEOMAE_PAGE = "https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md (CC BY-NC 4.0: not for commercial use)"
_INTERNVIDEO2 = "https://github.com/OpenGVLab/InternVideo/blob/main/InternVideo2/single_modality/MODEL_ZOO.md"
_INTERNVIDEO2_DISTILLED = "OpenGVLab/InternVideo2_distillation_models on the Hugging Face hub (terms on its page)"
VIT = "backbone.vit."  # where a detector has its transformer
# of a detector, with TriDet's heads, of a recogniser
_CLASSIFIERS = ("head.cls_head.", "head.start_head.", "head.end_head.", "head.classifier.")
WHERE_FROM = {
    "videomae_s": _VIDEOMAE_PAGE,
    "videomae_b": f"{_VIDEOMAE_PAGE}, or MCG-NJU/videomae-base-finetuned-kinetics on the Hugging Face hub",
    "videomae_l": f"{_VIDEOMAE_PAGE}, or MCG-NJU/videomae-large-finetuned-kinetics on the Hugging Face hub",
    "videomae_h": f"{_VIDEOMAE_PAGE}, or MCG-NJU/videomae-huge-finetuned-kinetics on the Hugging Face hub",
    "videomaev2_g": "https://github.com/OpenGVLab/VideoMAEv2/blob/master/docs/MODEL_ZOO.md (given on request, for "
    "non-commercial use, not to be passed on; the detectors trained from it use vit_g_hybrid_pt_1200e_k710_ft.pth)",
    "vjepa2_l": "facebook/vjepa2-vitl-fpc64-256 on the Hugging Face hub (Meta; terms on its page)",
    "vjepa2_h": "facebook/vjepa2-vith-fpc64-256 on the Hugging Face hub (Meta; terms on its page)",
    "vjepa2_g": "facebook/vjepa2-vitg-fpc64-256, or -384 for 384 px, on the Hugging Face hub (Meta; terms on its page)",
    "internvideo2_s": f"{_INTERNVIDEO2}: stage1/S14/S14_ft_k710_f8/pytorch_model.bin of {_INTERNVIDEO2_DISTILLED}",
    "internvideo2_b": f"{_INTERNVIDEO2}: stage1/B14/B14_ft_k710_f8/pytorch_model.bin of {_INTERNVIDEO2_DISTILLED}",
    "internvideo2_l": f"{_INTERNVIDEO2}: stage1/L14/L14_ft_k710_f8/pytorch_model.bin of {_INTERNVIDEO2_DISTILLED}",
    "internvideo2_1b": f"{_INTERNVIDEO2}: 1B_ft_k710_f8.pth of OpenGVLab/InternVideo2-Stage1-1B-224p-f8-k710 on the "
    "Hugging Face hub (terms on its page)",
    "vit_base_patch16_clip_quickgelu_224": "openai/clip-vit-base-patch16 on the Hugging Face hub (OpenAI, MIT)",
    "vit_large_patch14_clip_quickgelu_224": "openai/clip-vit-large-patch14 on the Hugging Face hub (OpenAI, MIT)",
}


def open_backbone_weights(backbone: BackboneConfig, *, averaged: bool = False) -> Weights:
    """Recognise the file that a config names; see `open_weights` and `open_aim_weights`."""
    assert backbone.weights is not None
    if backbone.is_features:
        return open_head_weights(backbone.weights, averaged=averaged)
    if backbone.is_image:
        return open_aim_weights(backbone.weights)
    return open_weights(backbone.weights, averaged=averaged)


def find_weights(backbone: BackboneConfig, vit: VideoTransformer, *, averaged: bool = False) -> Weights | None:
    """Recognise the weights that a config names, and check that they fit the transformer; None where it names none.

    Args:
        backbone: the config's section.
        vit: the transformer that they are for.
        averaged: of a trained detector, take the running average rather than the last weights.

    Raises:
        CheckpointError: absent (the message says where to get them, and on what terms), unreadable, unsafe, of no known
            layout, of another member of the family, or with keys that are missing, unexpected or of another shape.
    """
    if backbone.weights is None:
        return None
    try:
        weights = open_backbone_weights(backbone, averaged=averaged)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error}. {_where_from(backbone.name, backbone.weights)}") from error
    if backbone.is_features:
        return weights
    if backbone.is_image:
        return fit_image_weights(weights, vit)  # pyright: ignore[reportArgumentType]
    return fit_video_weights(weights, vit, backbone=backbone.name)


def weights_reports(weights: Weights | None, backbone: BackboneConfig) -> list[str]:
    """What is said of pretrained weights: what they are, and where they come from."""
    if weights is None:
        return []
    terms = WHERE_FROM.get(backbone.name)
    source = [f"weights: those of {backbone.name} come from {terms}"] if terms else []
    return [f"weights: {weights.report()}", *source]


def fill_backbone(
    vit: VideoTransformer,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    read: bool,
    host: Callable[[nn.Module], None],
) -> dict[str, str]:
    """Load the weights of a transformer that was built on the meta device, block by block.

    No more than one block is in memory before `host` takes it away.

    Args:
        vit: the transformer.
        tensors: its weights, by our names, known to fit.
        dtype: compute type.
        read: False leaves the memory unset: another rank reads, and `host` or the engine sends.
        host: called with each part once it is filled; ZeRO-3 partitions it there.

    Returns:
        Fingerprint of the frozen weights: a hash by name; empty where nothing is read.
    """
    parts = dict(vit.named_children())
    blocks = parts.pop("blocks", nn.ModuleList())
    parts |= {f"blocks.{index}": block for index, block in blocks.named_children()}
    hashes = {}
    for prefix, part in (*parts.items(), ("", vit)):  # last, what no part has: class token, positions
        names = [name for name, parameter in part.named_parameters() if parameter.is_meta]
        _allocate(part, names, dtype)
        filled = dict(part.named_parameters())
        for name in names if read else ():
            key, parameter = f"{prefix}.{name}".removeprefix("."), filled[name]
            value = tensors[key].read().reshape(parameter.shape)
            parameter.data.copy_(value)
            if not parameter.requires_grad:
                hashes[key] = tensor_hash(value)
            del value
        for name, parameter in filled.items():
            if is_update(name) and parameter.dtype != dtype:  # partitioned as it is
                parameter.data = parameter.data.to(dtype)
        if names:
            host(part)
    return hashes


def _allocate(module: nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """Give a module's meta parameters memory, all in one piece.

    The C library gives a large piece back to the system when it is freed; many small ones would leave holes behind.
    """
    if not names:
        return
    parameters = [(name, module.get_parameter(name)) for name in names]
    sizes = [parameter.numel() for _, parameter in parameters]
    memory = torch.empty(sum(sizes), dtype=dtype)
    for (name, parameter), part in zip(parameters, memory.split(sizes), strict=True):
        owner, _, leaf = name.rpartition(".")
        own = nn.Parameter(part.view(parameter.shape), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), leaf, own)


def fingerprint(vit: VideoTransformer) -> dict[str, str]:
    """Fingerprint of frozen weights that came from no file, as `fill_backbone` returns it."""
    return {name: tensor_hash(p.detach()) for name, p in vit.named_parameters() if not p.requires_grad}


def check_fingerprint(
    found: Mapping[str, str], wanted: Mapping[str, str], *, trained: str | Path, weights: object
) -> None:
    """Check that frozen weights are those that adapters were trained with.

    Raises:
        CheckpointError: they are not; a right adapter over a wrong backbone detects nothing.
    """
    if found != wanted and any(key.startswith("features") for key in found.keys() | wanted.keys()):
        if wanted.keys() - found.keys():
            raise CheckpointError(
                f"{trained} was trained on extracted features, and of those in data.features it is not known what they "
                "are of: there is no features.json with them. If they are the same, in another format or place, put "
                "the features.json of the training's features into their folder"
            )
        raise CheckpointError(
            f"{trained} was trained on features of another backbone than those of data.features; give those that the "
            "training began with"
        )
    if found != wanted:
        different = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise CheckpointError(
            f"{trained} was trained with other frozen weights than those of backbone.weights={weights}: "
            f"{len(different)} of {len(wanted)} tensors differ ({summarize_list(different, limit=3, separator=', ')}). "
            "Give the weights that the "
            "training began with"
        )


def trained_tensors(weights: Weights, model: Model, *, reset_classifier: bool) -> Tensors:
    """Trainable tensors of a trained model, by our names, checked against a model.

    Args:
        weights: of a trained detector or recogniser.
        model: the model that they are for. A detector over an image transformer takes a recogniser's backbone alone.
        reset_classifier: leave out the class logits' layer, which is for other classes.

    Raises:
        CheckpointError: keys that are missing, unexpected or of another shape.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    tensors = dict(weights.trained)
    if isinstance(model.backbone, AdaptedBackbone):
        tensors = _side_adapters_by_block(tensors, model.backbone.adapted_blocks)
    elif not isinstance(model.backbone, FeatureBackbone):
        if not isinstance(model, Recogniser):
            shapes = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
            tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
        _check_clip(tensors, model, source=weights.source)
    tensors |= {f"{VIT}{key}": tensor for key, tensor in weights.vit.items() if f"{VIT}{key}" in shapes}
    classifier = [key for key in tensors if key.startswith(_CLASSIFIERS)]
    other_classes = [key for key in classifier if key in shapes and tensors[key].shape[0] != shapes[key][0]]
    if other_classes and not reset_classifier:
        theirs, ours = tensors[other_classes[0]].shape[0], shapes[other_classes[0]][0]
        section = "recognition" if isinstance(model, Recogniser) else "head"
        raise CheckpointError(
            f"{weights.source} was trained for {theirs} classes, the data have {ours}; "
            f"--set {section}.reset_classifier=true newly initialises the layer of class logits"
        )
    if reset_classifier:
        tensors = {key: tensor for key, tensor in tensors.items() if key not in classifier}
        shapes = {key: shape for key, shape in shapes.items() if key not in classifier}
    check_fit(tensors, shapes, source=weights.source)
    return {name: _shaped(tensors[name], shape) for name, shape in shapes.items()}


def published_state(weights: Weights, model: Model, *, config: Config, reset_classifier: bool) -> dict[str, Tensors]:
    """Adapters and head of a trained model: "master" its last weights, "average" their running average if there is one.

    Args:
        weights: the last weights; empty is returned for those of a transformer alone.
        model: the model that they are for.
        config: of the run.
        reset_classifier: leave out the class logits' layer, which is for other classes.

    Raises:
        CheckpointError: keys that are missing, unexpected or of another shape.
    """
    if not weights.trained:
        return {}
    state = {MASTER: trained_tensors(weights, model, reset_classifier=reset_classifier)}
    if config.train.ema_decay > 0:
        average = find_weights(config.backbone, model.backbone.vit, averaged=True)
        assert average is not None
        state[AVERAGE] = trained_tensors(average, model, reset_classifier=reset_classifier)
    return state


def in_published_order(config: Config, *, order: ClassOrder | None) -> Config:
    """The config with classes named in the order of the logits, where `backbone.weights` is a published detector.

    Nothing changes where it is not, where the classes are named already, newly initialised, or only one.

    Args:
        config: of the run.
        order: of the recipe's published checkpoint; None: unknown.

    Raises:
        ConfigError: the order is not known, or the annotations have other classes.
        DataError: the annotations cannot be used.
        CheckpointError: the weights are unreadable, or of no known layout.
    """
    data, backbone = config.data, config.backbone
    if config.recognition or backbone.is_image or backbone.weights is None:
        return config
    if data.classes or data.class_agnostic or config.head.reset_classifier:
        return config
    try:
        weights = open_backbone_weights(backbone)
    except FileNotFoundError:
        return config  # said where they are read
    if not weights.trained:
        return config
    if order is None:
        raise ConfigError(
            f"{weights.source} is a detector that does not name its classes, and their order is not known for this "
            "recipe: name them in the order of its class logits (OpenTAD's category_idx.txt) with --classes FILE, a "
            "text file of one name a line; or, to train on other classes, --set head.reset_classifier=true"
        )
    annotations, _ = load_annotations(data.annotations, subset=data.test_subset, exclude=data.exclude)
    return replace(config, data=replace(data, classes=order.names(annotations.classes, source=weights.source)))


def _side_adapters_by_block(tensors: Tensors, adapted_blocks: Sequence[int]) -> Tensors:
    """The tensors, with side adapters, which their file numbers, named by the blocks that they read."""
    blocks = dict(enumerate(adapted_blocks))

    def named(key: str) -> str:
        position = re.match(re.escape(SIDE) + r"(\d+)", key)
        block = blocks.get(int(position[1])) if position else None
        return key if position is None or block is None else key.replace(position[0], f"backbone.adapters.{block}", 1)

    return {named(key): tensor for key, tensor in tensors.items()}


def _check_clip(tensors: Tensors, model: Model, *, source: str) -> None:
    embedding, backbone = tensors.get("backbone.temporal_embedding"), model.backbone
    assert not isinstance(backbone, AdaptedBackbone | FeatureBackbone)
    if embedding is not None and embedding.shape[-2] != backbone.clip_frames:
        raise CheckpointError(
            f"{source} was trained on clips of {embedding.shape[-2]} frames, the model has {backbone.clip_frames}"
        )


def _where_from(backbone: str, source: str) -> str:
    if backbone not in WHERE_FROM:
        return "Give the path of a weights file with --set backbone.weights=FILE"
    come = f"The weights of {backbone} come from {WHERE_FROM[backbone]}. Give the file with --set backbone.weights=FILE"
    if backbone.startswith(("vit_", "vjepa2_")):
        return f"{come}, a folder, or the name on the hub"
    return f"{come}, or convert it once: adatad-ds convert FILE --out {source}"


def tensor_hash(tensor: Tensor) -> str:
    """Hash of the values rounded to bf16: the same for a file and its copies in other types."""
    rounded = tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16)
    return hashlib.blake2b(rounded.cpu().numpy().data, digest_size=8).hexdigest()


def _shaped(stored: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The same values in a shape that differs by axes of length 1."""
    return StoredTensor(shape, lambda: stored.read().reshape(shape))
