"""Pixels' mean and deviation lie on the device, exact in any precision, and are neither learnt nor saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adatad_ds.models.backbones.contract import VideoTransformer, ViTSpec
from adatad_ds.models.backbones.internvideo2 import InternVideo2
from adatad_ds.models.backbones.patch_embed import PIXEL_MEAN, PIXEL_STD
from adatad_ds.models.backbones.vit import VisionTransformer
from adatad_ds.models.backbones.vjepa2 import VJEPA2
from tests.support import image_models
from tests.support.host_numbers import TensorsOfNumbers

SPEC = ViTSpec(width=24, depth=2, heads=2, mlp_hidden=48, pretrained_side=32)
BUILD: dict[str, Callable[[], VideoTransformer]] = {
    "VideoMAE": lambda: VisionTransformer(spec=SPEC, resolution=32),
    "V-JEPA 2": lambda: VJEPA2(spec=SPEC, clip_frames=16, resolution=32),
    "InternVideo2": lambda: InternVideo2(
        spec=replace(SPEC, tubelet_frames=1, prefix_tokens=1), clip_frames=16, resolution=32
    ),
    "image": lambda: image_models.build().vit,
}


def clips(vit: VideoTransformer) -> Tensor:
    return torch.randint(256, (2, vit.clip_frames, 32, 32, 3), dtype=torch.uint8)


@pytest.mark.parametrize("family", BUILD)
def test_embedding_makes_no_tensor_from_numbers(family: str):
    vit = BUILD[family]()
    with torch.no_grad(), TensorsOfNumbers() as numbers:
        vit.run_block(0, vit.embed(clips(vit)))
        assert numbers.made == 0
        torch.tensor([1.0, 2.0])
        assert numbers.made == 1


@pytest.mark.parametrize("family", BUILD)
def test_pixels_are_scaled_exactly_however_the_model_is_cast(family: str):
    vit = BUILD[family]()
    scales = {name: buffer for name, buffer in vit.named_buffers() if name.endswith("pixel_scale")}
    rounded = [name for name, buffer in vit.to(torch.bfloat16).named_buffers() if buffer.dtype == torch.bfloat16]
    assert (not rounded) == (family in ("InternVideo2", "image"))  # other tables are cast
    (scale,) = scales.values()
    mean, std = (image_models.MEAN, image_models.STD) if family == "image" else (PIXEL_MEAN, PIXEL_STD)
    assert torch.equal(scale.view(torch.float32), torch.tensor([mean, std]))
    assert not any(name in vit.state_dict() for name in scales)


def test_tokens_are_those_of_tensors_made_in_each_call():
    embed = VisionTransformer(spec=SPEC, resolution=32).patch_embed
    frames = torch.arange(256, dtype=torch.uint8).repeat(16 * 32 * 32 * 3 // 256).view(1, 16, 32, 32, 3)
    pixels = (frames.float() - torch.tensor(PIXEL_MEAN)).div_(torch.tensor(PIXEL_STD))
    tubelets = pixels.view(1, 8, 2, 2, 16, 2, 16, 3).permute(0, 1, 3, 5, 7, 2, 4, 6)
    assert torch.equal(embed(frames), embed.proj(tubelets.flatten(4).flatten(1, 3)))
