"""Recognition: clips in, class logits out.

B videos, V views of each, T frames per view, C channels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from adatad_ds.models.backbones.kinds import Backbone
from adatad_ds.models.sample_noise import SampleNoise


class Classifier(nn.Module):
    """Mean over time, dropout, a linear layer (AIM, section 4).

    Args:
        width: channels C.
        num_classes: K.
        dropout: dropout rate of the mean's channels.
    """

    def __init__(self, *, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor, noise: SampleNoise | None) -> Tensor:
        """(B, C, T) to (B, K) float32."""
        mean = features.mean(dim=2)
        if noise is not None and self.dropout > 0:
            mean = mean * noise.keep(mean.shape[1], rate=self.dropout)
        return self.classifier(mean.to(self.classifier.weight.dtype)).float()


class Recogniser(nn.Module):
    """Adapted backbone and classifier."""

    def __init__(self, *, backbone: Backbone, head: Classifier) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, frames: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Classify each view.

        Args:
            frames: (B, V, T, H, W, 3) uint8.
            seeds: (B,) int64, per-sample seeds of drop path and dropout in training, where V is 1; None: nothing is
                dropped.

        Returns:
            Class logits of each view, (B, V, K) float32.
        """
        noise = None if seeds is None else SampleNoise(seeds=seeds.tolist(), device=frames.device)
        return self.head(self.backbone(frames.flatten(0, 1), noise), noise).unflatten(0, frames.shape[:2])
