"""Shared by tests: transformers models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adatad_ds.weights.files import StoredTensor
from tests.support.image_models import MEAN, STD

State = dict[str, Tensor]


def stored(state: State) -> dict[str, StoredTensor]:
    return {name: StoredTensor(tuple(t.shape), lambda t=t: t) for name, t in state.items()}


def transformers_features(model: nn.Module, frames: Tensor) -> Tensor:
    pixels = (frames.flatten(0, 1).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        return model(pixel_values=pixels.permute(0, 3, 1, 2)).pooler_output.unflatten(0, frames.shape[:2])
