"""What a rank does in training must not grow with the number of ranks; tools/bench/scale.py counts it."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.launch import finish


@pytest.mark.slow
def test_counts_do_not_grow_with_the_ranks(tmp_path):
    """From 2 to 4 ranks, one window a rank: collectives, bytes, objects and files, from start to resume."""
    found = tmp_path / "counts.json"
    finish([sys.executable, "tools/bench/scale.py", "--ranks", "2", "4", "--json", str(found)])
    rows = json.loads(found.read_text())["rows"]
    assert [row for row in rows if row["note"] == "GROWS"] == []
    counted = {(row["stage"], row["quantity"], row["whose"]): row["counts"] for row in rows}
    for stage in ("start", "step", "save", "evaluate", "resume"):
        assert min(counted[stage, "collectives", "others"].values()) > 0
        assert counted[stage, "collectives", "rank 0"] == counted[stage, "collectives", "others"]
    assert ("step", "objects", "others") not in counted  # tensors alone are sent between steps
    for stage in ("save", "end"):  # rank 0 alone writes and looks at evaluations
        assert (stage, "opened", "rank 0") in counted
        assert (stage, "calls", "others") not in counted
