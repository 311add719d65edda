"""No backbone: features that were extracted before."""

from __future__ import annotations

from torch import Tensor, nn

from adatad_ds.models.sample_noise import SampleNoise


class FeatureBackbone(nn.Module):
    """Passes a window's features on; it has no weights.

    Args:
        channels: C.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.vit = nn.ModuleDict()  # where others have their transformer
        self.width = channels

    def forward(self, features: Tensor, noise: SampleNoise | None = None) -> Tensor:
        """(B, T, C) to (B, C, T)."""
        return features.transpose(1, 2)
