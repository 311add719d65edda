"""Checkpoints on disk: compact form, damage, retention."""

from __future__ import annotations

import pytest
import torch

from adatad_ds.checkpoint import CheckpointStore, find_checkpoint, open_checkpoint
from adatad_ds.compact import AVERAGE, MASTER, decode, encode, rounded
from adatad_ds.config import ConfigError


def learnt() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(5, 7, generator=generator)
    squares = torch.rand(5, 7, generator=generator) ** 20
    average = master + 1e-3 * torch.randn(5, 7, generator=generator)
    return {
        MASTER: {"w": master},
        "exp_avg": {"w": 1e-6 * master},
        "exp_avg_sq": {"w": squares},
        AVERAGE: {"w": average},
    }


def save(store: CheckpointStore, step: int, *, compact: bool = False) -> None:
    state = learnt()
    if compact:
        master = state[MASTER]["w"]
        state = {kind: {"w": encode(kind, tensors["w"], master)} for kind, tensors in state.items()}
    store.save(step=step, learnt=state, compact=compact, state={"note": step})


@pytest.mark.parametrize("compact", [False, True])
def test_what_was_saved_is_read(compact, tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=2)
    save(store, 3, compact=compact)
    newest = store.latest()
    assert newest is not None
    read, state = open_checkpoint(newest)
    assert state["note"] == state["step"] == 3
    for kind, tensors in learnt().items():
        expected = rounded(kind, tensors["w"], learnt()[MASTER]["w"]) if compact else tensors["w"]
        assert read[kind]["w"].shape == (5, 7)
        assert torch.equal(read[kind]["w"].read(), expected), kind


def test_compact_form_is_small_and_close():
    state = learnt()
    master = state[MASTER]["w"]
    stored = {kind: encode(kind, tensors["w"], master) for kind, tensors in state.items()}
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored.values()) == 9 * master.numel()
    tolerances = {MASTER: 2**-16, "exp_avg": 2**-8, "exp_avg_sq": 2**-8}
    for kind, tolerance in tolerances.items():
        value = state[kind]["w"]
        assert ((rounded(kind, value, master) - value).abs() <= tolerance * value.abs()).all(), kind
    distance = (state[AVERAGE]["w"] - master).abs()
    error = rounded(AVERAGE, state[AVERAGE]["w"], master) - state[AVERAGE]["w"]
    assert (error.abs() <= 2**-8 * distance + 2**-15 * master.abs()).all()


def test_rounding_twice_changes_nothing_and_extremes_survive():
    values = torch.tensor([3.4028234e38, -3.4028234e38, float("inf"), 0.0, -0.0, 1e-45, -1.0, 1 + 2**-17])
    once = rounded(MASTER, values, values)
    assert torch.equal(rounded(MASTER, once, once), once)
    assert torch.isfinite(once).tolist() == torch.isfinite(values).tolist()
    assert torch.equal(decode(MASTER, encode(MASTER, once, once), once), once)


def test_the_newest_whole_one_is_found_and_damage_is_told(tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=3)
    for step in (2, 4, 6):
        save(store, step)
    with (tmp_path / "step_00000006" / "average.safetensors").open("r+b") as file:
        file.truncate(50)
    assert store.latest() == tmp_path / "step_00000004"
    assert store.broken() == [tmp_path / "step_00000006"]
    with pytest.raises(ConfigError, match="is not whole"):
        find_checkpoint(tmp_path / "step_00000006")
    (tmp_path / "step_00000004" / "state.json").write_text("{")
    assert store.latest() == tmp_path / "step_00000002"


def test_the_newest_and_the_best_stay(tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=2)
    (tmp_path / ".writing_00000001").mkdir()  # what a kill -9 leaves
    save(store, 2)
    store.mark_best(step=2)
    for step in (4, 6, 8):
        save(store, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best",
        "step_00000002",
        "step_00000006",
        "step_00000008",
    ]
    assert store.best() == tmp_path / "step_00000002"
