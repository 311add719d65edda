"""An adapted video backbone under plain autograd, whole windows at once: the oracle of every way to run it."""

from __future__ import annotations

import torch
from torch import Tensor

from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.backbones.clips import drop_path_factors
from adatad_ds.models.execution.window_share import WholeWindow
from adatad_ds.models.sample_noise import SampleNoise


def plain_tubelet_features(model: AdaptedBackbone, frames: Tensor, noise: SampleNoise | None = None) -> Tensor:
    """As `AdaptedBackbone.tubelet_features`, block after block: (B, C, T')."""
    vit, windows, clips = model.vit, len(frames), frames.shape[1] // model.vit.clip_frames
    keep = None
    if noise is not None and model.drop_path:
        depth = len(vit.blocks)
        keep = drop_path_factors(
            noise, rate=model.drop_path, depth=depth, branches=(2,), window=WholeWindow(), clips=clips
        ).flatten(0, 1)
    tokens = vit.embed(frames.reshape(-1, vit.clip_frames, *frames.shape[2:]))  # (B * n, N, C)
    over_time = (windows, clips * vit.clip_tubelets, vit.positions, tokens.shape[-1])
    beside = far = torch.zeros(())
    for index in range(len(vit.blocks)):
        tokens = vit.run_block(index, tokens, None if keep is None else keep[:, index])
        if index in model.adapted_blocks:
            adapted = model.adapters[str(index)](tokens.view(over_time)).view_as(tokens)
            if model.long_adapters:
                far = far + model.long_adapters[str(index)](tokens.view(over_time).mean(dim=2))
            tokens, beside = (tokens, beside + adapted) if model.beside else (tokens + adapted, beside)
    features = (vit.finish(tokens) + beside).view(over_time).mean(dim=2) + far
    return features.transpose(1, 2)
