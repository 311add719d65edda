"""The transformer of a backbone and its shape, by name.

timm is imported where one of its models is asked for, as that takes seconds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from torch import nn

from adatad_ds.config.schema import BackboneConfig
from adatad_ds.errors import ConfigError
from adatad_ds.models.backbones.contract import VideoTransformer, ViTSpec
from adatad_ds.models.backbones.internvideo2 import INTERNVIDEO2_SPECS, InternVideo2
from adatad_ds.models.backbones.vit import VIT_SPECS, VisionTransformer
from adatad_ds.models.backbones.vjepa2 import VJEPA2, VJEPA2_SPECS
from adatad_ds.models.shapes import shapes_only
from adatad_ds.models.tuning.lora import PARTS

if TYPE_CHECKING:
    from adatad_ds.models.backbones.image_vit import ImageTransformer

VIDEO_SPECS = VIT_SPECS | VJEPA2_SPECS | INTERNVIDEO2_SPECS


def backbone_spec(name: str) -> ViTSpec:
    """Shape of a transformer by name; of timm's at the resolution of its pretraining.

    Raises:
        ConfigError: unknown name.
    """
    if name.startswith("vit_"):
        return _image_spec(name)
    if name not in VIDEO_SPECS:
        raise ConfigError(
            f"backbone.name={name!r} is unknown; known: {', '.join(VIDEO_SPECS)}, and timm's image models vit_..."
        )
    return VIDEO_SPECS[name]


def build_video_transformer(spec: ViTSpec, *, clip_frames: int, resolution: int) -> VideoTransformer:
    """A video transformer of its spec's family, with random weights.

    Args:
        spec: its shape.
        clip_frames: frames per clip; VideoMAE's have 16.
        resolution: side in pixels of the input frames.
    """
    match spec.family:
        case "timm":
            raise ValueError("timm's transformers are built by their names")
        case "VideoMAE":
            return VisionTransformer(spec=spec, resolution=resolution)
        case "V-JEPA 2":
            return VJEPA2(spec=spec, clip_frames=clip_frames, resolution=resolution)
        case "InternVideo2":
            return InternVideo2(spec=spec, clip_frames=clip_frames, resolution=resolution)


def build_configured_image(backbone: BackboneConfig, *, resolution: int, depth: int | None = None) -> ImageTransformer:
    """timm's image transformer of a config, with random weights.

    Args:
        backbone: the config's section.
        resolution: side in pixels of the input frames.
        depth: number of blocks; None: the model's.

    Raises:
        ConfigError: timm has no such model, or the backbone's way to adapt does not fit it.
    """
    from adatad_ds.models.backbones.image_vit import build_image_transformer

    vit = build_image_transformer(
        backbone.name,
        resolution=resolution,
        pixel_mean=backbone.pixel_mean,
        pixel_std=backbone.pixel_std,
        depth=depth,
    )
    if not backbone.is_aim:
        _check_adapts(vit, backbone)
    return vit


@cache
def _image_spec(name: str) -> ViTSpec:
    from adatad_ds.models.backbones.image_vit import build_image_transformer

    with shapes_only():
        return build_image_transformer(name, resolution=None).spec


def _check_adapts(vit: ImageTransformer, backbone: BackboneConfig) -> None:
    """Refuse an image transformer that lacks what a way to adapt other than AIM's needs."""
    if not isinstance(vit.fc_norm, nn.Identity):
        raise ConfigError(
            f"{backbone.name} norms the mean of its patches, where backbone.tuning={backbone.tuning} takes the mean of "
            "normed patches. Use aim, frozen or full, or a model that is pooled by its class token"
        )
    if backbone.tuned_inside == "lora":
        linear = {name for name, part in vit.blocks[0].named_modules() if isinstance(part, nn.Linear)}
        lacking = [target for target in backbone.lora_targets if PARTS[target] not in linear]
        if lacking:
            raise ConfigError(
                f"backbone.lora_targets: the blocks of {backbone.name} have no {', '.join(lacking)} (their MLP is "
                "gated); name others"
            )
