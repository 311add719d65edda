"""Updates measured from each rank's part equal those of the whole tensors. Real launches."""

from __future__ import annotations

import json

import pytest

from tests.support.launch import finish, launched


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_in_parts_as_whole(ds_config, tmp_path):
    finish(launched("pool", 2, ["tests/support/count_updates.py", ds_config, str(tmp_path)]))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for key in ("updates", "gammas"):
        assert first[key] == second[key]
    assert first["updates"].keys() == first["before"].keys()
    assert any(first["sizes"][name] != second["sizes"][name] for name in first["sizes"])  # parted unevenly
    started = 0
    for name, update in first["updates"].items():
        was, moved = first["before"][name], first["moved"][name]
        assert update == pytest.approx(moved / was if was else float(moved > 0), rel=1e-4), name
        started += not was
    assert started
    assert sum(moved > 0 for moved in first["moved"].values()) > 0.9 * len(first["moved"])
    assert first["gammas"] == pytest.approx(first["gamma"], rel=1e-6)
    assert sorted(first["gammas"].values()) == pytest.approx([0.5, 1.5], abs=0.01)
