"""What is counted, skipped and restored of a hosted model, on real ranks."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.launch import REPOSITORY, finish, launched

SCRIPT = REPOSITORY / "tests/support/count_steps.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "ds_config", "precision"),
    [(2, "zero3_offload", "bf16"), (2, "zero2", "fp32"), (1, "zero1", "fp16"), (1, "zero3", "fp16")],
)
def test_steps_taken_and_state_restored(ranks, ds_config, precision, tmp_path):
    finish(launched("pool", ranks, [str(SCRIPT), ds_config, precision, str(tmp_path)]))
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    assert all(each == found[0] for each in found)
    found = found[0]
    assert found["fused"]  # of Adam's ways on a CPU the fast one
    assert found["waits alike"], "DeepSpeed's group and ours"
    assert found["moved"] > 1e-3
    assert found["average"] < 1e-6
    assert found["accumulated"] < (1e-4 if "zero3" in ds_config else 5e-6)  # ZeRO-3's norm is DeepSpeed's, and coarser
    if ds_config in ("zero1", "zero2"):  # all of 37 gradients at once, not each by itself
        assert 1 <= found["measuring"] < 10
        assert found["copying"] < 37

    # Three steps in a row are too many; those before are told, from the second on with the tensors' names.
    assert found["taken"] == [False, False, True, False, False, False]
    assert found["skipped changes nothing"]
    assert found["total"] == 5
    assert found["in a row"] == 3
    assert [line.partition(":")[0] for line in found["said"]] == [f"step {n} skipped" for n in (0, 1, 3, 4)]
    assert "tensors" not in found["said"][0]
    for line in (*found["said"][1:], found["error"]):
        assert "backbone.adapters.0." in line
        assert "cls_head" not in line  # its gradient is finite
    assert "3 steps in a row were skipped" in found["error"]
    assert "train.max_skipped_steps=3" in found["error"]

    assert found["optimizer"]["steps"] == 3  # of eight
    scale = found["optimizer"]["loss_scale"]
    assert scale.get("cur_scale") == (2.0**3 if precision == "fp16" else None)  # from 2**8, halved by each skipped one
    for name in ("averaged", "masters again", "fresh is another", "restored", "goes on alike", "average from masters"):
        assert found[name], name
    for name in ("missing", "unexpected", "other shapes", "other shapes of a part"):
        assert "the weights in FILE (" in found[name], (name, found[name])
    assert "head.more" in found["unexpected"]
    assert "the model wants" in found["other shapes"]
    assert found["a part"] == "taken"


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero2", "zero3"])
def test_a_step_waits_for_a_gpu_for_its_norm_alone(ds_config):
    """Under ZeRO-3, where DeepSpeed takes the norm, three times, one after the other."""
    printed = finish([sys.executable, "tests/support/count_waits.py", ds_config])
    found = json.loads(printed.splitlines()[-1])
    assert found["taken"]
    assert found["passes"] == {}
    if ds_config == "zero2":
        assert found["step"] == {"distributed/world.py World.to_host: copy to the host": 1}
    else:
        assert sum(found["step"].values()) <= 3
