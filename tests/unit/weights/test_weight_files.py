"""Files of weights: what is read, and what is refused with a message that helps."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.weights.files import open_tensors, require_safetensors
from adatad_ds.weights.loading import check_fingerprint
from tests.support.launch import REPOSITORY, environment


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch /tmp/adatad_ds_was_here",)


def damaged(path, kind: str):
    if kind == "half a safetensors file":
        path = path.with_suffix(".safetensors")
        save_file({"a": torch.zeros(1000)}, path)
    else:
        torch.save({"a": torch.zeros(1000)}, path)
    content = {
        "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2000000000\n",
        "a web page": b"\n <!DOCTYPE html><html><head><title>Sign in</title>",
        "nothing": b"",
        "noise": bytes(range(256)) * 8,
    }.get(kind, path.read_bytes()[: path.stat().st_size // 2])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("git lfs", "git lfs pull"),
        ("a web page", "is a web page"),
        ("nothing", "is empty"),
        ("noise", "damaged"),
        ("half a .pth", "cut short"),
        ("half a safetensors file", "cut short"),
    ],
)
def test_what_downloads_leave_behind(kind, said, tmp_path):
    path = damaged(tmp_path / "weights.pth", kind)
    with pytest.raises(CheckpointError, match=said) as raised:
        open_tensors(path)
    assert str(path) in str(raised.value)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": {"a": torch.zeros(2)}, "hook": RunsCode()}, path)
    with pytest.raises(CheckpointError, match=r"refused: it asks for posix\.system"):
        open_tensors(path, entries=("model",))
    assert not os.path.exists("/tmp/adatad_ds_was_here")


@pytest.mark.parametrize("zipped", [True, False])
def test_training_arguments_beside_the_weights_do_no_harm(zipped, tmp_path):
    path = tmp_path / "checkpoint.pth"
    content = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "model": {"a": torch.arange(3.0)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors = open_tensors(path, entries=("state_dict", "model"))
    assert tensors["a"].shape == (3,)
    assert torch.equal(tensors["a"].read(), torch.arange(3.0))


def test_a_part_takes_no_more_rows_than_it_lies_in(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(24.0).view(4, 3, 2), "b": torch.tensor(5.0), "c": torch.arange(7.0)}, path)
    tensors = open_tensors(path)
    assert torch.equal(tensors["b"].part(0, 1), torch.tensor([5.0]))
    assert torch.equal(tensors["c"].part(2, 5), torch.arange(2.0, 5.0))
    read = tensors["a"].read_rows
    assert read is not None
    rows = []
    told = replace(tensors["a"], read_rows=lambda start, stop: (rows.append((start, stop)), read(start, stop))[1])
    for part in ((0, 24), (7, 8), (5, 13)):
        assert torch.equal(told.part(*part), torch.arange(float(part[0]), float(part[1])))
    assert rows == [(0, 4), (1, 2), (0, 3)]


def test_shards_in_a_folder(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert {name: tensor.shape for name, tensor in open_tensors(tmp_path).items()} == {"a": (2,), "b": (3,)}
    (tmp_path / places["b"]).unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 shards"):
        open_tensors(tmp_path)


def test_an_empty_folder_and_a_file_without_tensors(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        open_tensors(tmp_path)
    torch.save({"epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_tensors(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        open_tensors(tmp_path / "x.pth")


OTHERS = "a run was trained on features of another backbone than those of data"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, r"there is no features\.json with them"),
        ({"features 0": "2"}, OTHERS),
        ({"features 0": "1", "features 1": "1"}, OTHERS),
    ],
)
def test_features_of_another_backbone(now, said):
    """As of a head that was trained on those of one source; those that do not say what they are of are not others."""
    check_fingerprint({"features 0": "1"}, {"features 0": "1"}, trained="a run", weights=None)
    check_fingerprint({}, {}, trained="a run on features that say nothing of themselves", weights=None)
    with pytest.raises(CheckpointError, match=said):
        check_fingerprint(now, {"features 0": "1"}, trained="a run", weights=None)


def test_tensors_under_another_name_are_named(tmp_path):
    """A running average that somebody has saved alone."""
    torch.save({"epoch": 3, "state_dict_ema": {"a": torch.zeros(2)}}, tmp_path / "average.pth")
    with pytest.raises(CheckpointError, match=r"holds tensors in state_dict_ema alone, .* in state_dict, model; save"):
        open_tensors(tmp_path / "average.pth", entries=("state_dict", "model"))


def test_tensors_are_written_as_safetensors_alone(tmp_path):
    require_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"--out must end in \.safetensors; got a\.pth"):
        require_safetensors(Path("a.pth"))


@pytest.mark.slow
def test_a_name_on_the_hub_is_taken_from_its_cache(tmp_path):
    """The hub's own cache, laid out as its library does; no network."""
    cached = tmp_path / "models--lab--videomae"
    snapshot = cached / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    save_file({"videomae.a": torch.ones(2)}, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    program = (
        "from adatad_ds.weights.files import open_tensors;"
        "print(*open_tensors('lab/videomae')); open_tensors('lab/another')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment() | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)},
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["videomae.a"]
    assert "nor can lab/another be had from the Hugging Face hub" in done.stderr


def test_the_quickstarts_weights_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_tensors("adatad_ds/weights/tiny.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights file adatad_ds/weights/huge"):
        open_tensors("adatad_ds/weights/huge.safetensors")
