"""Cost of an image transformer adapted to time: FLOPs in closed form, bytes of its activations.

Clips run through the whole transformer a few at a time (models/backbones/adapted_image.py).

t frames per clip, N tokens per frame, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from adatad_ds.config.schema import Config
from adatad_ds.models.backbones.adapted_image import AIMTransformer
from adatad_ds.models.backbones.clips import CLIPS_PER_CHUNK
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.activations import Activations
from adatad_ds.planning.fake_run import meta_tensors, shapes_of


class ImageCost:
    """A `memory.BackboneCost`.

    Args:
        config: config of the run.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._model = _built(shapes_of(config))

    def flop(self, *, recomputed: float) -> float:
        """FLOPs of a sample's forward and backward pass, of which so many forward passes with gradients run again."""
        config, model = self._config, self._model
        vit, width = model.vit, model.width
        mlp = sum(p.numel() for p in vit.blocks[0].get_submodule("mlp").parameters() if p.dim() == 2)
        frames = config.sample_frames
        patches = vit.grid[0] * vit.grid[1]
        tokens_a_frame = patches + vit.prefix_tokens
        tokens = frames * tokens_a_frame
        in_time = "temporal" in model.adapt
        linear = 2.0 * tokens * (4 * width**2 * (1 + in_time) + mlp)
        attention = 4.0 * tokens * width * (tokens_a_frame + in_time * model.clip_frames)
        adapters = 2.0 * sum(p.numel() for p in model.adapters[0].parameters() if p.dim() == 2) * tokens
        embedding = 2.0 * frames * patches * width * 3 * vit.patch**2
        depth = len(vit.blocks)
        forward = embedding + depth * (linear + attention + adapters)
        if model.tuning == "frozen":
            return forward
        backward = depth * (linear + 2 * attention + 2 * adapters)
        if model.tuning == "full":
            backward += depth * linear + embedding
        return forward + backward + recomputed * forward

    def chunk(self, *, cuda: bool) -> int:
        """Clips that run through the transformer at once; 0: all."""
        chosen = self._config.backbone.clips_per_chunk
        return CLIPS_PER_CHUNK if chosen is None else chosen

    def activations(
        self, *, windows: int, clips: int, policy: StoragePolicy, budget: int | None, beside: int, cuda: bool
    ) -> Activations:
        """A rank's forward and backward pass, given the gradients of weights; arguments: see `VideoCost`."""
        config, backbone, size = self._config, self._config.backbone, self._config.train.dtype.itemsize
        total = windows * clips
        chunk = self.chunk(cuda=cuda)
        at_once = min(chunk or total, total)
        recomputes = backbone.activation_checkpointing or backbone.tuning == "frozen"
        key = shapes_of(config)
        key = replace(key, backbone=replace(key.backbone, activation_checkpointing=False))
        together = _clips_bytes(key, at_once) if recomputes else total * _clips_bytes(key, 1)
        features = total * config.clip_frames * self._model.width * (size + 4)
        # Autograd sums the gradients of all chunks before it accumulates a weight's gradient.
        chunked = recomputes and at_once < total
        trainable = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        return Activations(
            clips_per_chunk=chunk,  # chunks are recomputed from their frames: nothing is stored
            peak_bytes=together + features + (size * trainable if chunked else 0),
            recomputed=float(backbone.activation_checkpointing and backbone.tuning != "frozen"),
        )


@cache
def _clips_bytes(config: Config, clips: int) -> int:
    model, side = _build(config), config.data.resolution
    with meta_tensors(model, config.train.dtype):
        frames = torch.empty(clips, model.clip_frames, side, side, 3, dtype=torch.uint8)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        return live_bytes(lambda: model.frame_features(frames).float().sum().backward())


def _build(config: Config) -> AIMTransformer:
    """The backbone, without memory."""
    with shapes_only():
        model = build_backbone(config, feature_steps=1)
    assert isinstance(model, AIMTransformer)
    return model


@cache
def _built(config: Config) -> AIMTransformer:
    """The same for every caller: to be read alone."""
    return _build(config)
