"""A ds_config: what its section activation_checkpointing means here, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adatad_ds.config import BackboneConfig, Config, ConfigError
from adatad_ds.ds_config import activation_policy, read_ds_config, resolve_ds_config
from adatad_ds.models.stored import StoragePolicy


def policy(section: dict, *, cuda: bool = True, gb: float = 0.0):
    config = replace(Config(), backbone=BackboneConfig(stored_on_device_gb=gb))
    return activation_policy({"activation_checkpointing": section}, config=config, stored_tensors=12, cuda=cuda)


def test_cpu_checkpointing_goes_to_host_memory_but_for_a_budget():
    assert policy({"cpu_checkpointing": True}, gb=1.5)[0] == StoragePolicy(offload=True, device_bytes=1_500_000_000)
    assert not policy({"cpu_checkpointing": True}, cuda=False)[0].offload
    assert not policy({})[0].offload


def test_profile_and_synchronize():
    stopwatch = policy({"profile": True, "synchronize_checkpoint_boundary": True})[1]
    assert stopwatch.profile
    assert stopwatch.synchronize


def test_the_repository_has_it_on():
    section = read_ds_config("ds_configs/zero3_offload.json")["activation_checkpointing"]
    assert section["partition_activations"]
    assert policy(section)[0].offload


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"cpu_checkpoint": True}, "no key 'cpu_checkpoint'.*cpu_checkpointing"),
        ({"profile": 1}, "profile must be of type bool, not 1"),
        ({"number_checkpoints": 4}, "number_checkpoints is 4, but 12 tensors are kept"),
        ({"number_checkpoints": "all"}, "number_checkpoints must be of type int"),
    ],
)
def test_what_is_refused(section, said):
    with pytest.raises(ConfigError, match=said):
        policy(section)


def test_room_enough_is_fine():
    policy({"number_checkpoints": 12, "contiguous_memory_optimization": True, "partition_activations": True})


def test_a_byte_order_mark_is_read_and_another_encoding_named(tmp_path):
    path = tmp_path / "ds.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert read_ds_config(path) == {}
    path.write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot read the DeepSpeed config"):
        read_ds_config(path)


@pytest.mark.parametrize("part", ["offload_param", "offload_optimizer"])
def test_nvme_is_refused(part):
    config, zero = Config(), {"stage": 3, part: {"device": "nvme", "nvme_path": "/scratch"}}
    with pytest.raises(ConfigError, match=rf'{part}.device is "nvme", which is not tested here; use "cpu" or "none"'):
        resolve_ds_config({"zero_optimization": zero}, config=config, ranks=1, cuda=True)
    for device in ("cpu", "none"):
        resolve_ds_config({"zero_optimization": zero | {part: {"device": device}}}, config=config, ranks=1, cuda=True)
