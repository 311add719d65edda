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
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.fake_run import fake_tensors, live_bytes


def image_flop(config: Config, *, executed: bool = False) -> float:
    """FLOPs of a sample's forward and backward pass through the backbone; see `memory.step_flop`."""
    model = _on_meta(config)
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
    return forward + backward + (forward if executed and model.activation_checkpointing else 0.0)


def image_bytes(config: Config, *, samples: int, clips: int) -> int:
    """Peak bytes of a rank's forward and backward pass through the backbone, given the gradients of weights.

    Args:
        config: config of the run.
        samples: samples per forward pass.
        clips: clips per sample on this rank.
    """
    total = samples * clips
    at_once = min(config.backbone.clips_per_chunk or total, total)
    recomputes = config.backbone.activation_checkpointing or config.backbone.tuning == "frozen"
    bare = replace(config.backbone, weights=None, activation_checkpointing=False, clips_per_chunk=0)
    key = replace(config, backbone=bare)
    together = _clips_bytes(key, at_once) if recomputes else total * _clips_bytes(key, 1)
    model, size = _on_meta(config), config.train.dtype.itemsize
    features = total * config.clip_frames * model.width * (size + 4)
    # Autograd sums the gradients of all chunks before it accumulates a weight's gradient.
    pieces = (
        size * sum(p.numel() for p in model.parameters() if p.requires_grad) if recomputes and at_once < total else 0
    )
    return together + features + pieces


@cache
def _clips_bytes(config: Config, clips: int) -> int:
    model = _on_meta.__wrapped__(config)  # a fresh copy, since it is modified
    side = config.data.resolution
    with fake_tensors(model, config.train.dtype):
        frames = torch.empty(clips, model.clip_frames, side, side, 3, dtype=torch.uint8)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        return live_bytes(lambda: model.frame_features(frames).float().sum().backward())


@cache
def _on_meta(config: Config) -> AIMTransformer:
    with shapes_only():
        model = build_backbone(config, feature_steps=1)
    assert isinstance(model, AIMTransformer)
    return model
