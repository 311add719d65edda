"""What learns, at which rate: parameter groups, schedule."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from adatad_ds.config import Config


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Optimizer groups of everything that requires a gradient: {backbone, adapter, head} x {decayed, not}.

    Weights decay as the authors have it. AdaTAD: every tensor of adapters and of a video transformer, biases, norms and
    gamma included; of the head all but biases, norms and scales, that is tensors of more than one axis longer than 1.
    AIM: every tensor of adapters and of the classifier; of the image transformer as of AdaTAD's head. Each group
    carries `name`, `base_lr` (reached after the warm-up), `lr` (0, where the schedule starts) and `weight_decay`.
    """
    train = config.train
    lr_backbone = train.lr_adapter if train.lr_backbone is None else train.lr_backbone  # an image model's final norm
    rates = {"backbone": lr_backbone, "adapter": train.lr_adapter, "head": train.lr_head}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = parameter_kind(name)
            of_video = kind == "backbone" and not config.backbone.is_image
            whole = kind == "adapter" or of_video or name.startswith("head.classifier.")
            decayed = whole or sum(size > 1 for size in parameter.shape) > 1
            groups.setdefault((kind, decayed), []).append(parameter)
    decays = {"backbone": train.weight_decay_backbone, "adapter": train.weight_decay, "head": train.weight_decay}
    return [
        {
            "params": parameters,
            "name": kind if decayed else f"{kind}_no_decay",
            "base_lr": rates[kind],
            "lr": 0.0,
            "weight_decay": decays[kind] if decayed else 0.0,
        }
        for (kind, decayed), parameters in groups.items()
    ]


def parameter_kind(name: str) -> str:
    """`backbone` (the transformer itself), `adapter` or `head` (pyramid and heads), from a parameter's name."""
    if name.startswith(("backbone.adapters.", "backbone.temporal_embedding")):
        return "adapter"
    return "backbone" if name.startswith("backbone.") else "head"


def parameter_table(model: nn.Module) -> str:
    """Parameters by kind and by whether they learn, one line each; a model on the meta device will do."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        kind = f"{parameter_kind(name)}, {'learns' if parameter.requires_grad else 'frozen'}"
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return "\n".join(f"{kind:18} {count / 1e6:9.2f} M parameters" for kind, count in counts.items())


def schedule(step: int, *, warmup_steps: float, total_steps: int) -> float:
    """Learning-rate factor of optimizer step `step` (from 0): linear from 0, then a cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
