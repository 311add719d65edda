"""Frozen weights lie in memory once, in the compute type, without gradients or masters: by counting bytes."""

from __future__ import annotations

import json

import pytest

from tests.support.launch import finish, launched

TRAINABLE_SHARE = 0.2  # of the frozen parameters, at most: the test's model is mostly backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ds_config", "precision"), [("zero3", "bf16"), ("zero3_offload", "fp32"), ("zero2", "bf16"), ("zero2", "fp32")]
)
def test_bytes_of_each_kind(ds_config, precision, tmp_path):
    ranks, size = 2, {"bf16": 2, "fp32": 4}[precision]
    finish(launched("pool", ranks, ["tests/support/count_bytes.py", ds_config, precision, str(tmp_path)]))
    counts = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank*.json"))]
    assert len(counts) == ranks
    frozen, trainable = counts[0]["frozen"], counts[0]["trainable"]
    assert trainable < TRAINABLE_SHARE * frozen
    copies = 1 if ds_config.startswith("zero3") else ranks

    def total(kind: str) -> int:
        return sum(count["kinds"][kind] for count in counts)

    assert total("frozen_weights") == pytest.approx(copies * size * frozen, rel=0.001)
    assert total("trainable_weights") == pytest.approx(copies * size * trainable, rel=0.02)
    for kind in ("masters", "exp_avg", "exp_avg_sq", "average"):
        assert total(kind) == pytest.approx(4 * trainable, rel=0.02), kind
    # Two of 12 blocks at most are there when one begins: in backward passes and evaluations, too.
    assert all(count["most_gathered"] < (0.2 if copies == 1 else 1.1) * frozen for count in counts)
    assert all(count["frozen_with_gradient"] == 0 for count in counts)
    # No tensor of the process, whoever holds it, adds up to a second copy of the frozen weights.
    expected = sum(sum(count["kinds"].values()) for count in counts)
    assert sum(count["bytes_in_large_tensors"] for count in counts) < expected + 0.25 * size * frozen
