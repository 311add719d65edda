"""The backbones that a detector or a recogniser may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from adatad_ds.models.backbones.adapted_image import AIMTransformer
    from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
    from adatad_ds.models.backbones.features import FeatureBackbone

Backbone: TypeAlias = "AdaptedBackbone | AIMTransformer"  # frames (B, F, H, W, 3) to features (B, C, T)
AnyBackbone: TypeAlias = "AdaptedBackbone | AIMTransformer | FeatureBackbone"
