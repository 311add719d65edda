"""A detector on one device, for inference; what of its transformer does not fit there waits in host memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adatad_ds.config import TUBELET_FRAMES, Config
from adatad_ds.models.backbone import AdaptedBackbone
from adatad_ds.models.detector import Detector

MARGIN = 1.25  # of the estimate of what a forward pass needs: fragments, libraries' workspaces


def place(detector: Detector, *, config: Config, device: torch.device, max_device_gb: float | None) -> Detector:
    """Move a detector to a device, as many of its transformer's blocks as fit; accelerate brings the others each time.

    Args:
        detector: on the CPU.
        config: its config; `test.batch` windows go through it at once.
        device: where it runs.
        max_device_gb: the most memory for weights and work; None: what is free there (on a CPU, all).
    """
    if max_device_gb is None and device.type != "cuda":
        return detector.to(device)
    room = torch.cuda.mem_get_info(device)[0] if max_device_gb is None else max_device_gb * 1e9
    blocks = detector.backbone.vit.blocks
    resident = resident_blocks(detector, room_bytes=room - working_bytes(detector, config))
    if resident == len(blocks):
        return detector.to(device)
    from accelerate import cpu_offload

    detector.backbone.vit.blocks = blocks[:resident]
    detector.to(device)
    for block in blocks[resident:]:
        weights = {name: _host(tensor, device) for name, tensor in block.state_dict().items()}
        cpu_offload(block, execution_device=device, state_dict=weights)  # layer by layer: AIM calls a block's layers
    detector.backbone.vit.blocks = blocks
    return detector


def resident_blocks(detector: Detector, *, room_bytes: float) -> int:
    """How many of the transformer's blocks fit on a device beside everything else, and one that is being brought."""
    sizes = [_bytes(block) for block in detector.backbone.vit.blocks]
    if _bytes(detector) <= room_bytes:
        return len(sizes)
    left = room_bytes - (_bytes(detector) - sum(sizes)) - max(sizes)
    return max(0, min(len(sizes), int(left // max(sizes))))


def working_bytes(detector: Detector, config: Config) -> int:
    """About what a forward pass without gradients takes beside the weights.

    A span at work in a block (queries, keys, values, hidden channels), its pixels as floats, the windows' frames, and
    for video transformers two tensors of all their tokens.
    """
    backbone, resolution = detector.backbone, config.data.resolution
    windows, frames = config.test.batch, config.test.batch * config.data.window_frames
    chunk = backbone.clips_per_chunk * config.clip_frames or frames
    hidden = backbone.vit.blocks[0].get_parameter("mlp.fc1.weight").shape[0]
    if isinstance(backbone, AdaptedBackbone):
        tokens_of_frame, whole = backbone.vit.grid_side**2 / TUBELET_FRAMES, 2
        chunk = max(chunk, windows * config.clip_frames)
    else:
        tokens_of_frame, whole = (resolution // backbone.vit.patch) ** 2 + backbone.vit.prefix_tokens, 0
    chunk = min(chunk, frames)
    elements = tokens_of_frame * (chunk * (7 * backbone.width + 2 * hidden) + whole * frames * backbone.width)
    pixels = 3 * resolution**2 * (frames + 8 * chunk)
    return int(MARGIN * (elements * config.train.dtype.itemsize + pixels))


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _host(tensor: Tensor, device: torch.device) -> Tensor:
    """In page-locked memory where that makes for faster copies."""
    return tensor.cpu().pin_memory() if device.type == "cuda" else tensor.cpu()
