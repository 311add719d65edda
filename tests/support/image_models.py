"""Shared by tests: image models."""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from adatad_ds.models.backbones.adapted_image import ALL_ADAPTERS, AIMTransformer
from adatad_ds.models.backbones.image_vit import ImageTransformer
from adatad_ds.models.sample_noise import SampleNoise

MEAN, STD = (122.77, 116.75, 104.09), (68.5, 66.63, 70.32)


def timm_vit(**changes) -> VisionTransformer:
    """CLIP-style, small."""
    settings = {
        "img_size": 32,
        "patch_size": 16,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "num_classes": 0,
        "pre_norm": True,
        "norm_layer": partial(LayerNorm, eps=1e-5),
        "act_layer": "quick_gelu",
    }
    torch.manual_seed(0)
    vit = VisionTransformer(**(settings | changes))
    for name, parameter in vit.named_parameters():  # norms and biases at work
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return vit.eval()


def build(vit: VisionTransformer | None = None, *, awake: bool = True, **changes) -> AIMTransformer:
    """A small model; with `awake`, its adapters' outputs and temporal embedding are not zero."""
    adapt = changes.get("adapt", ALL_ADAPTERS)
    settings = {
        "clip_frames": 4,
        "feature_steps": 4,
        "adapt": adapt,
        "tuning": "aim" if adapt else "frozen",
    }
    image = ImageTransformer(vit=vit or timm_vit(), pixel_mean=MEAN, pixel_std=STD)
    model = AIMTransformer(vit=image, **(settings | changes))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if awake and not name.startswith("vit."):
            nn.init.normal_(parameter, std=0.1)
    return model


def video(videos: int = 2, frames: int = 8, *, side: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (videos, frames, side, side, 3), dtype=torch.uint8, generator=generator)


def image_features(vit: VisionTransformer, frames: torch.Tensor) -> torch.Tensor:
    """timm's own pooled features, frame by frame."""
    pixels = (frames.flatten(0, 1).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        features = vit.forward_head(vit.forward_features(pixels.permute(0, 3, 1, 2)), pre_logits=True)
    return features.unflatten(0, frames.shape[:2])


def noise(*seeds: int) -> SampleNoise:
    return SampleNoise(seeds=seeds, device=torch.device("cpu"))


def gradients(model: AIMTransformer, frames: torch.Tensor, *seeds: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.frame_features(frames, noise(*seeds) if seeds else None).square().sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
    return found
