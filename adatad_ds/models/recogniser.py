"""Recognition: clips in, class logits out.

B videos, V views of each, T frames per view, C channels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from adatad_ds.config.parsing import TUBELET_FRAMES
from adatad_ds.config.schema import Config
from adatad_ds.models.detector import Detector, build_detector
from adatad_ds.models.execution.activation_store import Storage
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.factory import Backbone, build_backbone
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


Model = Detector | Recogniser


def build_model(
    config: Config, *, num_classes: int, storage: Storage | None = None, stopwatch: Stopwatch | None = None
) -> Model:
    """Build a config's detector or recogniser for whole windows on one rank, without loading pretrained weights.

    Args:
        config: config of the run.
        num_classes: K.
        storage: stores activations until the backward pass; None: on the device.
        stopwatch: times recomputed segments; None: no timing.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """
    if config.recognition is None:
        return build_detector(config, num_classes=num_classes, storage=storage, stopwatch=stopwatch)
    return build_recogniser(config, num_classes=num_classes, storage=storage, stopwatch=stopwatch)


def build_recogniser(
    config: Config, *, num_classes: int, storage: Storage | None = None, stopwatch: Stopwatch | None = None
) -> Recogniser:
    """`build_model` for a config with a section `recognition`."""
    settings = config.recognition
    assert settings is not None
    steps = settings.frames if config.backbone.is_image else settings.frames // TUBELET_FRAMES
    backbone = build_backbone(config, feature_steps=steps, storage=storage, stopwatch=stopwatch)
    head = Classifier(width=backbone.width, num_classes=num_classes, dropout=settings.dropout)
    return Recogniser(backbone=backbone, head=head)
