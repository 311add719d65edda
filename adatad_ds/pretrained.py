"""Where weights come from: files of several layouts, mapped to this package's names.

Known layouts:
- a video transformer alone, with the names of the original VideoMAE code (ours too) or of mmaction2;
- a whole trained detector, laid out as published AdaTAD checkpoints are (`state_dict`, `state_dict_ema`).

Pickles are read with `weights_only=True`. Every missing, unexpected or mis-shaped key is listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adatad_ds.config import ConfigError
from adatad_ds.models.backbone import AdaptedBackbone
from adatad_ds.models.detector import Detector
from adatad_ds.models.vit import VisionTransformer

State = dict[str, Tensor]

_VIT_RENAMES = (  # mmaction2's names -> the original VideoMAE names, which are ours
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
)
_HEAD_RENAMES = (  # a published AdaTAD checkpoint's names -> ours
    (r"^neck\.fpn_norms\.", "pyramid.norms."),
    (r"^projection\.", "pyramid."),
    (r"^rpn_head\.scale\.(\d+)\.scale$", r"head.scales.\1.weight"),
    (r"^rpn_head\.", "head."),
    (r"\.(query|key|value)_conv\.conv\.", r".\1_conv."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.3\.", ".fc2."),
    (r"\.drop_path_(attn|mlp)\.", r".\1_branch."),
)
_LEFTOVERS = ("fc_norm.", "norm.", "head.", "pos_embed")  # of a transformer: unused by a detector, or computed
_MOST_LISTED = 8


def load_backbone_weights(vit: VisionTransformer, path: str | Path) -> None:
    """Fill a video transformer from a file of any known layout.

    Raises:
        ConfigError: the file is absent or unreadable, or does not fit the model.
    """
    state = read_state(path)
    state = {_strip(key, ("module.", "model.", "backbone.", "encoder.")): tensor for key, tensor in state.items()}
    _load(vit, _vit_state(state), source=path)


def load_published_detector(detector: Detector, path: str | Path, *, ema: bool = True) -> float | None:
    """Fill a detector from a published AdaTAD checkpoint; return its running loss normaliser, if it holds one.

    Args:
        detector: built with the checkpoint's settings and class count.
        path: the `.pth` file.
        ema: take the averaged weights, which the published results used.

    Raises:
        ConfigError: the file is absent or unreadable, or does not fit the detector.
    """
    state = read_state(path, entry="state_dict_ema" if ema else "state_dict")
    state = {_strip(key, ("module.",)): tensor for key, tensor in state.items()}
    normalizer = state.pop("rpn_head.loss_normalizer", None)
    _load(detector, _detector_state(state, detector.backbone), source=path)
    return None if normalizer is None else float(normalizer)


def read_state(path: str | Path, *, entry: str | None = None) -> State:
    """Read a file's tensors: safetensors, or a pickle with `weights_only=True`.

    Args:
        path: `.safetensors`, `.pth`, `.pt`...
        entry: which dict of the pickle to take; None: the usual one, or the pickle itself.

    Raises:
        ConfigError: the file is absent, unreadable, or holds no such entry.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"cannot read the weights file {path}: {_first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError, and what a malformed pickle may raise
        raise ConfigError(f"{path} is no weights file that can be read safely: {_first_line(error)}") from error
    for name in (entry,) if entry else ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    else:
        if entry:
            raise ConfigError(f"{path} holds no {entry!r}; it is no AdaTAD checkpoint")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(f"{path} holds no tensors")
    return tensors


def _detector_state(state: Mapping[str, Tensor], backbone: AdaptedBackbone) -> State:
    """A published detector's tensors under our names, those of the transformer merged as ours are."""
    vit, rest = {}, {}
    for key, tensor in state.items():
        inner = key.removeprefix("backbone.model.backbone.")
        in_block = re.match(r"blocks\.(\d+)\.adapter\.(.+)", inner)
        beside = re.match(r"ladders\.adapters\.(\d+)\.(.+)", inner)
        if in_block:
            rest[f"backbone.adapters.{in_block[1]}.{in_block[2]}"] = tensor
        elif beside:
            position = int(beside[1])
            blocks = backbone.adapted_blocks
            block = blocks[position] if position < len(blocks) else f"extra{position}"
            rest[f"backbone.adapters.{block}.{beside[2]}"] = tensor
        elif inner != key:
            vit[inner] = tensor
        else:
            rest[_rename(key, _HEAD_RENAMES)] = tensor
    return {f"backbone.vit.{key}": tensor for key, tensor in _vit_state(vit).items()} | rest


def _vit_state(state: Mapping[str, Tensor]) -> State:
    """A transformer's tensors under our names: q and v biases joined, what a detector does not use left out."""
    renamed = {_rename(key, _VIT_RENAMES): tensor for key, tensor in state.items() if not key.startswith(_LEFTOVERS)}
    for key in [key for key in renamed if key.endswith(".q_bias")]:
        query = renamed.pop(key)
        value = renamed.pop(key.replace(".q_bias", ".v_bias"), torch.zeros_like(query))
        renamed[key.replace(".q_bias", ".qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return renamed


def _load(module: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Copy `state` into `module`, strictly; shapes may differ by axes of length 1 (a 1x1 convolution is linear)."""
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    common = sorted(own.keys() & state.keys())
    misshaped = [
        f"{key} is {tuple(state[key].shape)}, the model wants {tuple(own[key].shape)}"
        for key in common
        if _without_ones(state[key]) != _without_ones(own[key])
    ]
    problems = []
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)):
        if keys:
            more = f", and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else ""
            problems.append(f"{len(keys)} {title}: {', '.join(keys[:_MOST_LISTED])}{more}")
    if problems:
        raise ConfigError(f"the weights in {source} do not fit this model. " + ". ".join(problems))
    module.load_state_dict({key: state[key].reshape(own[key].shape) for key in common})


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    return key


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
