"""A ds_config: what its section activation_checkpointing means here, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from adatad_ds import train
from adatad_ds.config.loading import override
from adatad_ds.config.schema import BackboneConfig, Config, Precision
from adatad_ds.distributed.ds_config import activation_policy, read_ds_config, resolve_ds_config
from adatad_ds.errors import ConfigError
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.planning.memory import make_plan


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


@pytest.mark.parametrize("cuda", [False, True])
def test_host_memory_is_pinned_for_a_gpu_alone(cuda):
    offload = {"device": "cpu", "pin_memory": "auto"}
    found = resolve_ds_config(
        {"zero_optimization": {"stage": 3, "offload_param": offload}}, config=Config(), ranks=1, cuda=cuda
    )
    assert found["zero_optimization"]["offload_param"]["pin_memory"] is cuda


def test_no_step_waits_for_a_timer_that_nobody_asked_for():
    """DeepSpeed's throughput timer waits for a GPU twice a micro batch."""
    source: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    asked = {"timers": {"throughput": {"enabled": True}}}
    found = [resolve_ds_config(source | more, config=Config(), ranks=1, cuda=True) for more in ({}, asked)]
    assert [each["timers"]["throughput"]["enabled"] for each in found] == [False, True]


def test_ranks_that_share_windows_have_one_batch():
    config = override(Config(), ["parallel.temporal=2", "train.global_batch=8", "train.micro_batch=2"])
    found = resolve_ds_config({"zero_optimization": {"stage": 2}}, config=config, ranks=4, cuda=False)
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [found[key] for key in keys] == [2 * 8, 2, 2]  # DeepSpeed counts each rank's


@pytest.mark.parametrize("given", [{}, {"communication_data_type": "auto"}])
@pytest.mark.parametrize(
    ("ranks", "precision", "reduced_in"),
    [(1, "bf16", "bf16"), (64, "bf16", "bf16"), (65, "bf16", "fp32"), (128, "fp16", "fp32"), (8, "fp32", "fp32")],
)
def test_many_ranks_add_up_gradients_in_fp32(given, ranks, precision, reduced_in):
    assert resolved(given, ranks=ranks, precision=precision)["communication_data_type"] == reduced_in


def test_what_gradients_are_added_up_in_can_be_said():
    assert resolved({"communication_data_type": "bf16"}, ranks=128)["communication_data_type"] == "bf16"
    assert resolved({"communication_data_type": "fp32"}, ranks=2)["communication_data_type"] == "fp32"
    with pytest.raises(ConfigError, match="communication_data_type is 'float32'; it must be bf16, fp16, fp32 or auto"):
        resolved({"communication_data_type": "float32"}, ranks=2)


def resolved(given: dict, *, ranks: int, precision: Precision = "bf16") -> dict:
    train = replace(Config().train, precision=precision, global_batch=ranks)
    source = {"zero_optimization": {"stage": 2}} | given
    return resolve_ds_config(source, config=replace(Config(), train=train), ranks=ranks, cuda=False)


def test_a_byte_order_mark_is_read_and_another_encoding_named(tmp_path):
    path = tmp_path / "ds.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert read_ds_config(path) == {}
    path.write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot read the DeepSpeed config"):
        read_ds_config(path)


@pytest.mark.slow
def test_the_option_without_a_file_takes_one_and_says_so(capsys):
    named = ["--recipe", "quickstart", "--dry-run", "--deepspeed_config", str(train.DEFAULT_DS_CONFIG)]
    assert train.main(named) == 0
    expected = capsys.readouterr()
    assert train.main(named[:-1]) == 0
    found = capsys.readouterr()
    assert found.out == expected.out
    assert "without a file: using " in found.err
    assert "ds_configs/zero3_offload.json" in found.err
    assert "without a file" not in expected.err
    with pytest.raises(SystemExit):
        train.main(["--recipe", "quickstart"])  # no option at all: nothing is guessed


def test_auto_as_hugging_face_has_it_is_deepspeeds_default():
    """In a plan as in a run: DeepSpeed leaves such keys out."""
    keys = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    offloaded = {"device": "cpu", "pin_memory": "auto", "buffer_count": "auto"}
    zero: dict[str, Any] = {"stage": 3, "sub_group_size": 1e9, "offload_param": offloaded}
    given = {"zero_optimization": zero | dict.fromkeys(keys, "auto") | {"offload_optimizer": "auto"}}
    wanted = zero | {"offload_param": {"device": "cpu", "pin_memory": False}}
    assert resolved(given, ranks=2)["zero_optimization"] == wanted
    config = replace(Config(), backbone=BackboneConfig(name="tiny"))
    plans = [make_plan(config, ds_config=each, ranks=1, num_classes=3) for each in (given, {"zero_optimization": zero})]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"reduce_bucket_size": "5e8"}, "reduce_bucket_size is '5e8'; it must be a whole number or auto"),
        ({"stage3_max_live_parameters": None}, "stage3_max_live_parameters is None; it must be a whole number"),
        ({"stage3_prefetch_bucket_size": 0.5}, "stage3_prefetch_bucket_size is 0.5; it must be"),
        ({"sub_group_size": float("inf")}, "sub_group_size is inf; it must be"),
        ({"offload_param": "cpu"}, "offload_param is 'cpu'; it must be an object with a device"),
    ],
)
def test_what_is_no_number_is_refused(section, said):
    with pytest.raises(ConfigError, match=f"zero_optimization.{said}"):
        resolved({"zero_optimization": {"stage": 3} | section}, ranks=1)


def test_sections_are_objects(tmp_path):
    path = tmp_path / "ds.json"
    for section in ("bf16", "zero_optimization", "activation_checkpointing"):
        path.write_text(json.dumps({section: "auto"}))
        with pytest.raises(ConfigError, match=f"{section} in the DeepSpeed config .* must be a JSON object"):
            read_ds_config(path)


@pytest.mark.parametrize("part", ["offload_param", "offload_optimizer"])
def test_nvme_is_refused(part):
    config, zero = Config(), {"stage": 3, part: {"device": "nvme", "nvme_path": "/scratch"}}
    with pytest.raises(ConfigError, match=rf'{part}.device is "nvme", which is not tested here; use "cpu" or "none"'):
        resolve_ds_config({"zero_optimization": zero}, config=config, ranks=1, cuda=True)
    for device in ("cpu", "none"):
        resolve_ds_config({"zero_optimization": zero | {part: {"device": device}}}, config=config, ranks=1, cuda=True)


def test_compilation_is_refused_under_zero3_alone():
    config = replace(Config(), train=replace(Config().train, compile=True))
    for stage in (1, 2):
        resolve_ds_config({"zero_optimization": {"stage": stage}}, config=config, ranks=1, cuda=False)
    with pytest.raises(ConfigError, match=r"stage is 3, .* cannot be compiled \(train.compile\)"):
        resolve_ds_config({"zero_optimization": {"stage": 3}}, config=config, ranks=1, cuda=False)
