"""Checkpoints on disk: compact form, damage, retention."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from adatad_ds.errors import CheckpointError, WriteError
from adatad_ds.runs import checkpoint
from adatad_ds.runs.checkpoint import CheckpointStore, find_checkpoint, open_checkpoint
from adatad_ds.weights.trainable_state import AVERAGE, MASTER, decode, encode, round_
from tests.support.checkpoints import save, trainable


def rounded(kind: str, value: torch.Tensor, master: torch.Tensor) -> torch.Tensor:
    exact = master.clone()
    others = {} if kind == MASTER else {kind: value.clone()}
    round_(exact, others)
    return others.get(kind, exact)


@pytest.mark.parametrize("compact", [False, True])
def test_what_was_saved_is_read(compact, tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=2)
    save(store, 3, compact=compact)
    newest = store.latest()
    assert newest is not None
    read, state = open_checkpoint(newest)
    assert state["note"] == state["step"] == 3
    for kind, tensors in trainable().items():
        expected = rounded(kind, tensors["w"], trainable()[MASTER]["w"]) if compact else tensors["w"]
        assert read[kind]["w"].shape == (5, 7)
        assert torch.equal(read[kind]["w"].read(), expected), kind
        assert torch.equal(read[kind]["w"].part(9, 23), expected.flatten()[9:23]), kind  # across rows


def test_compact_form_is_small_and_close():
    state = trainable()
    master = state[MASTER]["w"]
    stored = {kind: encode(kind, tensors["w"], master) for kind, tensors in state.items()}
    exact = decode(MASTER, stored[MASTER], master)
    for kind, tensors in state.items():
        assert torch.equal(decode(kind, stored[kind], exact), rounded(kind, tensors["w"], master)), kind
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
    assert store.newer_than(store.latest()) == [tmp_path / "step_00000006"]
    with pytest.raises(CheckpointError, match="is incomplete"):
        find_checkpoint(tmp_path / "step_00000006")
    (tmp_path / "step_00000004" / "state.json").write_text("{")
    assert store.latest() == tmp_path / "step_00000002"


def test_a_checkpoint_is_what_its_state_says_in_whatever_order(tmp_path):
    """As versions before or after may write it; the checksum is that of the contents."""
    store = CheckpointStore(folder=tmp_path, keep=3)
    save(store, 2)
    path = tmp_path / "step_00000002" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(state.items()))))
    assert store.latest() == path.parent
    path.write_text(json.dumps(state | {"note": 3}))
    assert store.latest() is None


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
    shutil.rmtree(tmp_path / "step_00000002")
    assert store.best() is None


@pytest.mark.slow
def test_a_flipped_byte_anywhere_is_damage(tmp_path):
    """In every file, `state.json` with its numbers included; the one before is taken."""
    store = CheckpointStore(folder=tmp_path, keep=3)
    for step in (2, 4):
        save(store, step)
    newest = tmp_path / "step_00000004"
    assert store.latest() == newest
    files = sorted(newest.iterdir())
    assert [path.name for path in files] == [
        "average.safetensors",
        "exp_avg.safetensors",
        "exp_avg_sq.safetensors",
        "master.safetensors",
        "state.json",
    ]
    for path in files:
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            for mask in (0x01, 0xFF):
                flipped = bytearray(content)
                flipped[place] ^= mask
                path.write_bytes(flipped)
                assert store.latest() == tmp_path / "step_00000002", (path.name, place, mask)
        path.write_bytes(content)
    assert store.latest() == newest


def test_a_checkpoint_from_before_checksums_is_read(tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=3)
    save(store, 2)
    path = tmp_path / "step_00000002" / "state.json"
    state = json.loads(path.read_text())
    del state["crc32"]
    state["files"] = {name: written["bytes"] for name, written in state["files"].items()}
    path.write_text(json.dumps(state))
    assert store.latest() == path.parent
    assert open_checkpoint(path.parent)[1]["note"] == 2


def test_damaged_ones_do_not_count_among_those_kept(tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=2)
    for step in (2, 4, 8):
        save(store, step)
    (tmp_path / "step_00000008" / "state.json").unlink()
    save(store, 6)
    assert [path.name for path in store.all()] == ["step_00000004", "step_00000006", "step_00000008"]
    save(store, 8)
    assert [path.name for path in store.all()] == ["step_00000006", "step_00000008"]
    assert store.latest() == tmp_path / "step_00000008"
    (tmp_path / "step_00000008" / "master.safetensors").unlink()
    save(store, 10)
    assert [path.name for path in store.all()] == ["step_00000006", "step_00000010"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    store = CheckpointStore(folder=tmp_path, keep=2)
    save(store, 2)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "flush", full)
    with pytest.raises(WriteError, match=r"step 4 could not be written.*the newest complete one is step_00000002"):
        save(store, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_a_damaged_best_is_not_replaced_in_silence(tmp_path):
    store = CheckpointStore(folder=tmp_path / "checkpoints", keep=2)
    for step in (2, 4):
        save(store, step)
    store.mark_best(step=2)
    assert find_checkpoint(tmp_path).name == "step_00000002"
    (tmp_path / "checkpoints/step_00000002/master.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step_00000002 is incomplete.*another one"):
        find_checkpoint(tmp_path)


@contextmanager
def busy(folder: Path) -> Iterator[None]:
    """Something in a folder cannot be removed: as a file still open on NFS."""
    inside = folder / "inside"
    inside.mkdir()
    if os.geteuid() == 0:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inside)], capture_output=True, check=False).returncode:
            pytest.skip("root may not mount here, and removes whatever there is")
        release = ["umount"]
    else:
        (inside / "file").touch()
        inside.chmod(0o500)
        release = ["chmod", "700"]
    try:
        yield
    finally:
        subprocess.run([*release, str(next(folder.parent.glob("**/inside")))], check=True)


def test_what_cannot_be_removed_is_a_warning(tmp_path):
    store = CheckpointStore(folder=tmp_path, keep=1)
    save(store, 2)
    with busy(tmp_path / "step_00000002"):
        warnings = save(store, 4)
        assert len(warnings) == 1
        assert "step_00000002" in warnings[0]
        assert "cannot be removed" in warnings[0]
        assert store.all() == [tmp_path / "step_00000004"]  # what is left of the other is no checkpoint
        assert len(save(store, 6)) == 1
    assert save(store, 8) == []  # tried again
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000008"]


def test_all_ranks_see_the_chosen_one(tmp_path):
    stores = [CheckpointStore(folder=tmp_path / node, keep=2) for node in ("node0", "node1")]
    for store in stores:
        save(store, 2)
    chosen = stores[0].choose()
    assert chosen is not None
    for thoroughly in (False, True):
        assert stores[1].confirm(chosen, thoroughly=thoroughly) == tmp_path / "node1/step_00000002"
    masters = tmp_path / "node1/step_00000002/master.safetensors"
    flipped = masters.read_bytes()
    masters.write_bytes(flipped[:-1] + bytes([flipped[-1] ^ 1]))
    stores[1].confirm(chosen, thoroughly=False)  # by the others of the node, whose first one is thorough
    with pytest.raises(CheckpointError, match="that rank 0 resumes from is missing or incomplete"):
        stores[1].confirm(chosen, thoroughly=True)
    stores[1].save(step=2, trainable=trainable(), compact=False, state={"note": "of another run"})
    with pytest.raises(CheckpointError, match="that rank 0 resumes from is a different one"):
        stores[1].confirm(chosen, thoroughly=False)
    shutil.rmtree(tmp_path / "node1")
    with pytest.raises(CheckpointError, match=r"is missing or incomplete on .*--run-dir"):
        stores[1].confirm(chosen, thoroughly=False)


@pytest.mark.slow
def test_reading_beside_training_finds_whole_ones_alone(tmp_path):
    """Whatever is read is of one save; one that is removed meanwhile is a message."""
    store = CheckpointStore(folder=tmp_path / "checkpoints", keep=1)
    ended, wrong, read = threading.Event(), [], set()

    def train() -> None:
        step = 0
        while not ended.is_set():
            step += 1
            kinds = {kind: {"w": torch.full((400, 50), float(step))} for kind in (MASTER, "exp_avg", AVERAGE)}
            store.save(step=step, trainable=kinds, compact=False, state={})

    training = threading.Thread(target=train)
    training.start()
    try:
        while len(read) < 20 and not wrong:
            try:
                tensors, state = open_checkpoint(find_checkpoint(tmp_path))
                values = {float(tensor["w"].read().unique()) for tensor in tensors.values()}
            except CheckpointError as error:  # removed between two looks; but some checkpoint is always there
                if read and "removes old checkpoints" not in str(error) and "is incomplete" not in str(error):
                    wrong.append(error)
                continue
            wrong += [] if values == {float(state["step"])} else [values]
            read.add(state["step"])
    finally:
        ended.set()
        training.join()
    assert not wrong
