"""Parameter groups, learning-rate schedule and EMA decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from adatad_ds.config.schema import TrainConfig
from adatad_ds.models.tuning.lora import is_update

ADAPTERS = ("backbone.adapters.", "backbone.long_adapters.", "backbone.temporal_embedding")
CLASSIFIER = "head.classifier."  # of a recogniser
INITIAL_SHARE = 0.05  # of initial weights in the running average, above which a run counts as short


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Optimizer groups of all trainable parameters: {backbone, adapter, head} x {decayed, not}.

    Weight decay applies, as by the authors of AdaTAD and AIM, to every tensor of backbone, adapters and a recogniser's
    classifier, including biases, norms and scales; in a detector's pyramid and heads, as by ActionFormer's and
    TriDet's, to the weights of linear layers and convolutions. Each group has `name`, `base_lr` (reached after the
    warm-up), `lr` (0, where the schedule starts) and `weight_decay`.
    """
    lr_backbone = train.lr_adapter if train.lr_backbone is None else train.lr_backbone  # an image model's final norm
    rates = {"backbone": lr_backbone, "adapter": train.lr_adapter, "head": train.lr_head}
    weights = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = parameter_kind(name)
            in_detector = kind == "head" and not name.startswith(CLASSIFIER)
            decayed = not in_detector or name in weights
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
    if name.startswith(ADAPTERS) or is_update(name):
        return "adapter"
    return "backbone" if name.startswith("backbone.") else "head"


def parameter_table(model: nn.Module) -> str:
    """Numbers of trainable and frozen parameters by kind, one line each; the model may be on the meta device."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        kind = f"{parameter_kind(name)}, {'trainable' if parameter.requires_grad else 'frozen'}"
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return "\n".join(f"{kind:20} {count / 1e6:9.2f} M parameters" for kind, count in counts.items())


def average_warms_up(train: TrainConfig, *, steps: int, trained: bool = False) -> bool:
    """Whether the running average warms up: as set, else if initial weights would keep more than `INITIAL_SHARE` of it.

    An average that is already `trained`, as of a published detector, must not be forgotten.
    """
    if train.ema_warmup is not None:
        return train.ema_warmup
    return not trained and train.ema_decay**steps > INITIAL_SHARE


def schedule(
    step: int,
    *,
    warmup_steps: float,
    total_steps: int,
    warmup_start: float = 0.0,
    cosine_end: float = 0.0,
    epoch_steps: int | None = None,
) -> float:
    """Learning-rate factor of optimizer step `step` (from 0): a linear warm-up and a cosine that ends at `total_steps`.

    With `warmup_start` 0, step 0 has rate 0, as by AdaTAD's authors (OpenTAD, LinearWarmupCosineAnnealingLR).
    # differs: theirs reaches 1 at step `warmup_steps` - 1, and ends no lower than at a rate of 1e-8.

    Args:
        step: optimizer step.
        warmup_steps: length of the warm-up.
        total_steps: step at which the cosine ends.
        warmup_start: factor at which the warm-up starts.
        cosine_end: factor at which the cosine ends.
        epoch_steps: None: the cosine starts after the warm-up and decays with each step (AdaTAD). Otherwise steps per
            epoch: it starts at the first step and decays with each epoch, multiplied by the warm-up (mmcv, AIM).
    """
    warmed = 1.0 if step >= warmup_steps else warmup_start + (1 - warmup_start) * step / warmup_steps
    if epoch_steps is None:
        progress = max(0.0, step - warmup_steps) / max(1, total_steps - warmup_steps)
    else:
        progress = step // epoch_steps * epoch_steps / total_steps
    return warmed * (cosine_end + (1 - cosine_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
