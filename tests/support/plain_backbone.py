"""An adapted video backbone under plain autograd, whole windows at once: the oracle of every way to run it."""

from __future__ import annotations

from collections.abc import Callable

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
    beside = far = torch.zeros(())
    for index in range(len(vit.blocks)):
        tokens = vit.run_block(index, tokens, None if keep is None else keep[:, index])
        if index in model.adapted_blocks:
            over_time = vit.by_tubelet(tokens, windows=windows)
            adapted = vit.by_clip(model.adapters[str(index)](over_time))
            if model.long_adapters:
                far = far + model.long_adapters[str(index)](over_time[:, :, vit.pooled].mean(dim=2))
            tokens, beside = (tokens, beside + adapted) if model.beside else (tokens + adapted, beside)
    top = vit.by_tubelet(vit.finish(tokens) + beside, windows=windows)
    return (top[:, :, vit.pooled].mean(dim=2) + far).transpose(1, 2)


def compare_with_plain_autograd(build: Callable[[], AdaptedBackbone], frames: Tensor) -> dict[str, Tensor]:
    """Features and gradients of a model, as it runs, against plain autograd's: the latter's gradients.

    Args:
        build: makes the model, the same each time.
        frames: (B, F, H, W, 3).
    """
    found = []
    for run in (plain_tubelet_features, AdaptedBackbone.tubelet_features):
        model = build()
        features = run(model, frames)
        if features.requires_grad:
            features.sin().sum().backward()
        found.append((features.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (features, gradients), (others, other_gradients) = found
    torch.testing.assert_close(others, features)
    assert other_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(gradient.abs().max().item(), 1)
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)
    return gradients
