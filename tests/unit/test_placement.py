"""How many blocks of a transformer stay on a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adatad_ds.models.detector import build_detector
from adatad_ds.placement import place, resident_blocks, working_bytes
from adatad_ds.recipes import find_recipe

QUICKSTART = find_recipe("quickstart").config
CONFIG = replace(QUICKSTART, backbone=replace(QUICKSTART.backbone, weights=None))


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
    room_gb = (rest + 3.5 * block + working_bytes(CONFIG)) / 1e9
    placed = place(detector, config=CONFIG, device=torch.device("cpu"), max_device_gb=room_gb)
    waiting = [all(p.is_meta for p in each.parameters()) for each in placed.backbone.vit.blocks]
    assert waiting == [False, False, True, True, True, True]
    assert not any(p.is_meta for name, p in placed.named_parameters() if ".vit.blocks." not in name)


@pytest.mark.parametrize(("changes", "more"), [({"window_size": 128}, 1.5), ({"resolution": 128}, 3.0)])
def test_larger_windows_take_more(changes: dict, more: float):
    larger = replace(CONFIG, data=replace(CONFIG.data, short_side_before_crop=144, **changes))
    assert working_bytes(larger) > more * working_bytes(CONFIG)
