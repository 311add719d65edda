"""How many blocks of a transformer stay on a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adatad_ds.config.schema import Config
from adatad_ds.inference.placement import forward_bytes, place, resident_blocks, working_bytes
from adatad_ds.models.factory import build_detector
from adatad_ds.models.live_bytes import live_bytes
from adatad_ds.recipes.catalog import find_recipe

QUICKSTART = find_recipe("quickstart").config
CONFIG = replace(QUICKSTART, backbone=replace(QUICKSTART.backbone, weights=None))
ALONE = replace(CONFIG, test=replace(CONFIG.test, batch=1))


def test_as_many_blocks_as_fit_stay():
    detector = build_detector(CONFIG, num_classes=5)
    block = sum(p.numel() * 4 for p in detector.backbone.vit.blocks[0].parameters())
    everything = sum(p.numel() * 4 for p in detector.parameters())
    rest = everything - 6 * block
    # One block's room is kept for that which is being brought, but where all fit.
    for room, resident in (
        (everything, 6),
        (everything - 1, 4),
        (rest + 3.5 * block, 2),
        (rest + 2 * block, 1),
        (rest, 0),
        (0, 0),
    ):
        assert resident_blocks(detector, room_bytes=room) == resident, room


def test_some_blocks_wait():
    detector = build_detector(CONFIG, num_classes=5)
    block = sum(p.numel() * 4 for p in detector.backbone.vit.blocks[0].parameters())
    rest = sum(p.numel() * 4 for p in detector.parameters()) - 6 * block
    room_gb = (rest + 3.5 * block + working_bytes(detector, CONFIG, cuda=False)) / 1e9
    placed = place(detector, config=CONFIG, device=torch.device("cpu"), max_device_gb=room_gb)
    waiting = [all(p.is_meta for p in each.parameters()) for each in placed.backbone.vit.blocks]
    assert waiting == [False, False, True, True, True, True]
    assert not any(p.is_meta for name, p in placed.named_parameters() if ".vit.blocks." not in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "checkpointing", "window", "chunk"),
    [
        ("tia", True, 64, 2),
        ("tia", False, 64, 2),
        ("side", True, 64, 2),
        ("side", False, 128, 1),
        ("ladder", True, 128, 1),
        ("frozen", True, 64, 2),
        ("full", True, 32, 0),
        ("tia", True, 32, 0),
    ],
)
def test_what_a_forward_pass_takes_is_what_is_counted(tuning, checkpointing, window, chunk):
    changes = {"tuning": tuning, "activation_checkpointing": checkpointing, "clips_per_chunk": chunk, "drop_path": 0.0}
    backbone = replace(CONFIG.backbone, **changes)
    config = replace(ALONE, backbone=backbone, data=replace(CONFIG.data, window_size=window))
    assert forward_bytes(build_detector(config, num_classes=5), config, cuda=False) == pytest.approx(
        measured(config), rel=0.15
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4])
def test_of_an_image_transformer_too(chunk):
    backbone = replace(CONFIG.backbone, name="vit_tiny_patch16_224", tuning="aim", clips_per_chunk=chunk)
    config = replace(ALONE, backbone=backbone, data=replace(CONFIG.data, window_size=32))
    assert forward_bytes(build_detector(config, num_classes=5), config, cuda=False) == pytest.approx(
        measured(config), rel=0.15
    )


def measured(config: Config) -> int:
    """Most bytes of tensors that are alive at once in a real forward pass."""
    detector = build_detector(config, num_classes=5).eval()
    shape = (config.test.batch, config.data.window_frames, config.data.resolution, config.data.resolution, 3)

    def run() -> None:
        with torch.no_grad():
            frames = torch.zeros(shape, dtype=torch.uint8)
            detector(frames, torch.ones(config.test.batch, config.data.window_size, dtype=torch.bool))

    return live_bytes(run)


@pytest.mark.parametrize(("changes", "more"), [({"window_size": 128}, 1.5), ({"resolution": 128}, 3.0)])
def test_larger_windows_take_more(changes: dict, more: float):
    larger = replace(CONFIG, data=replace(CONFIG.data, short_side_before_crop=144, **changes))
    detectors = [build_detector(config, num_classes=5) for config in (larger, CONFIG)]
    assert working_bytes(detectors[0], larger, cuda=False) > more * working_bytes(detectors[1], CONFIG, cuda=False)


@pytest.mark.slow
def test_an_image_transformers_blocks_wait():
    """AIM calls the layers of a frozen block one by one, twice."""
    backbone = replace(CONFIG.backbone, name="vit_tiny_patch16_224", tuning="aim", clips_per_chunk=1)
    config = replace(CONFIG, backbone=backbone, data=replace(CONFIG.data, window_size=16, resolution=32))
    detector = build_detector(config, num_classes=5).eval()
    frames = torch.randint(256, (2, 32, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = detector.backbone(frames)
        place(detector, config=config, device=torch.device("cpu"), max_device_gb=0.0)
        assert all(parameter.is_meta for parameter in detector.backbone.vit.blocks.parameters())
        assert torch.equal(detector.backbone(frames), expected)
