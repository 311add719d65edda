"""Placement of a detector on one device for inference; transformer blocks that do not fit stay in host memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adatad_ds.config.schema import Config
from adatad_ds.models.backbones.adapted_video import AdaptedBackbone
from adatad_ds.models.detector import Detector

MARGIN = 1.25  # on a forward pass's memory: fragmentation, libraries' workspaces
FLOAT = 4  # bytes


def place(detector: Detector, *, config: Config, device: torch.device, max_device_gb: float | None) -> Detector:
    """Move a detector to a device, with as many transformer blocks as fit; accelerate loads the others on each use.

    Args:
        detector: on the CPU.
        config: its config; `test.batch` windows run at once.
        device: target device.
        max_device_gb: memory limit for weights and activations; None: the device's free memory (on a CPU, no limit).
    """
    if max_device_gb is None and device.type != "cuda":
        return detector.to(device)
    room = torch.cuda.mem_get_info(device)[0] if max_device_gb is None else max_device_gb * 1e9
    blocks = detector.backbone.vit.blocks
    working = working_bytes(detector, config, cuda=device.type == "cuda")
    resident = resident_blocks(detector, room_bytes=room - working)
    if resident == len(blocks):
        return detector.to(device)
    from accelerate import cpu_offload

    for block in blocks[resident:]:
        weights = {name: _host(tensor, device) for name, tensor in block.state_dict().items()}
        cpu_offload(block, execution_device=device, state_dict=weights)  # layer by layer: AIM calls a block's layers
    for tensor in (*detector.parameters(), *detector.buffers()):
        if not tensor.is_meta:  # those stay in host memory
            tensor.data = tensor.to(device)
    return detector


def resident_blocks(detector: Detector, *, room_bytes: float) -> int:
    """Number of transformer blocks that fit on a device with all other weights and one block being loaded."""
    sizes = [_bytes(block) for block in detector.backbone.vit.blocks]
    if _bytes(detector) <= room_bytes:
        return len(sizes)
    left = room_bytes - (_bytes(detector) - sum(sizes)) - max(sizes)
    return max(0, min(len(sizes), int(left // max(sizes))))


def working_bytes(detector: Detector, config: Config, *, cuda: bool) -> int:
    """Memory of a forward pass without gradients, apart from the weights, with a margin."""
    return int(MARGIN * forward_bytes(detector, config, cuda=cuda))


def forward_bytes(detector: Detector, config: Config, *, cuda: bool) -> int:
    """Peak bytes of a forward pass without gradients, apart from the weights.

    The windows' frames; one chunk, as pixels or inside a block; for a video transformer, the tensors between its blocks
    (models/execution/recompute.py); features.
    """
    backbone, resolution, size = detector.backbone, config.data.resolution, config.train.dtype.itemsize
    windows, frames = config.test.batch, config.test.batch * config.data.window_frames
    clips = backbone.chunk(cuda=cuda) if isinstance(backbone, AdaptedBackbone) else backbone.clips_per_chunk
    chunk = min(frames, clips * config.clip_frames or frames)
    width, hidden = backbone.width, backbone.vit.blocks[0].get_parameter("mlp.fc1.weight").shape[0]
    if isinstance(backbone, AdaptedBackbone):
        chunk = max(chunk, windows * config.clip_frames)
        tokens_of_frame = backbone.vit.positions / backbone.vit.spec.tubelet_frames
        waiting = size * width * tokens_of_frame * _waiting_frames(backbone, windows=windows, frames=frames)
        at_work = max(8 * width, 3 * width + 2 * hidden)  # attention: in, normed, q, k, v, mixed twice, out
        features = frames // backbone.vit.spec.tubelet_frames
        waiting += size * width * features * len(backbone.long_adapters)  # means over positions
        pixel = 1 + FLOAT + (size if size < FLOAT else 0)  # reordered, normalised, in the model's type
    else:
        tokens_of_frame = (resolution // backbone.vit.patch) ** 2 + backbone.vit.prefix_tokens
        waiting, at_work, features, pixel = 0, 5 * width + 2 * hidden, frames, 2 * FLOAT
    tokens = chunk * tokens_of_frame
    as_pixels = pixel * chunk * 3 * resolution**2 + tokens * width * size
    kept = frames * 3 * resolution**2 + waiting + FLOAT * features * width
    return int(kept + max(as_pixels, tokens * at_work * size))


def _waiting_frames(backbone: AdaptedBackbone, *, windows: int, frames: int) -> int:
    """Frames whose tokens are held between a video transformer's blocks."""
    if backbone.beside:
        reach = sum(adapter.reach for adapter in backbone.adapters.values())  # pyright: ignore
        return min(2 * reach * backbone.vit.spec.tubelet_frames * windows, len(backbone.adapters) * frames)
    return min(2, len(backbone.stored_outputs)) * frames  # one that a segment reads, one that it writes


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _host(tensor: Tensor, device: torch.device) -> Tensor:
    """A host copy, page-locked if copies go to a GPU."""
    return tensor.cpu().pin_memory() if device.type == "cuda" else tensor.cpu()
