"""Shares of a window that several ranks hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from adatad_ds.distributed.mesh import SharedWindow
from adatad_ds.models.execution.window_share import Share


def test_shares_differ_by_a_clip_and_know_the_largest():
    """All ranks run as many spans as the one with the most clips, as ZeRO-3 gathers weights for each."""
    group: Any = SimpleNamespace(size=3, rank=0)
    window = SharedWindow(group=group, clips=7, clip_steps=8)
    for group.rank, (first, own) in enumerate([(0, 2), (2, 2), (4, 3)]):
        assert window.share(own) == Share(first, 7, 3)
    with pytest.raises(ValueError, match="rank 2 of a temporal group holds 3 clips, was given 2"):
        window.share(2)
