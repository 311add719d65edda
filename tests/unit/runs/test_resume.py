"""What a resume may change: settings, training data, the folder's checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.runs.folder import CONFIG_FILE, RunFolder
from adatad_ds.runs.resume import MAY_CHANGE, check_same_data, setting_changes
from adatad_ds.tasks.base import data_fingerprint
from adatad_ds.training.restore import SavedRun, describe_resume
from tests.support.checkpoints import save

DETECTION, RECOGNITION = find_recipe("thumos14_videomae_s").config, find_recipe("quickstart_aim").config


def keys(config: Config) -> list[str]:
    return [f"{section}.{key}" for section, values in config.to_dict().items() for key in values]


def changed(config: Config, key: str) -> Config:
    """The config with another value of a key; whether it could be run does not matter here."""
    section, _, name = key.partition(".")
    part: Any = getattr(config, section)
    return replace(config, **{section: replace(part, **{name: "another value"})})


@pytest.mark.parametrize("config", [DETECTION, RECOGNITION], ids=["detection", "recognition"])
def test_every_setting_but_the_stated_ones_must_stay(config):
    for key in keys(config):
        refused, allowed = setting_changes(config, changed(config, key))
        stated = key in MAY_CHANGE or key.startswith("test.")
        assert (allowed if stated else refused) == [f"{key} {_value(config, key)!r} -> 'another value'"], key
        assert (refused if stated else allowed) == [], key


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return config.to_dict()[section][name]


def test_what_may_change_is_what_there_is():
    known = {*keys(DETECTION), *keys(RECOGNITION), "test.*"}
    assert [key for key in MAY_CHANGE if key not in known] == []
    assert len(set(MAY_CHANGE)) == len(MAY_CHANGE)


@pytest.mark.parametrize(
    "key",
    [f"train.{name}" for name in ("seed", "global_batch", "repeats", "lr_head", "schedule_epochs", "ema_decay")]
    + [f"data.{name}" for name in ("classes", "augment", "window_size")]
    + ["head.width", "backbone.adapter_ratio", "backbone.tuning", "train.precision"],
)
def test_model_data_order_batch_optimiser_and_schedule_stay(key):
    assert setting_changes(DETECTION, changed(DETECTION, key))[0]


def test_detection_is_not_resumed_as_recognition():
    refused, _ = setting_changes(DETECTION, RECOGNITION)
    assert any(change.startswith("recognition.frames None -> ") for change in refused)


def start(run: RunFolder, config: Config, *, resume: bool) -> str | None:
    chosen = run.start(run.checkpoints(keep=2), config=config, resume=resume)
    return chosen and chosen.name


def test_a_run_goes_on_as_itself_alone(tmp_path):
    run = RunFolder(tmp_path)
    assert start(run, DETECTION, resume=True) is None  # nothing is there
    run.describe(config=DETECTION, ds_config={}, classes=["a"])
    before = (tmp_path / CONFIG_FILE).read_bytes()
    assert start(run, DETECTION, resume=False) is None  # it ended before its first checkpoint
    assert start(run, DETECTION, resume=True) is None

    other = loading.override(DETECTION, ["backbone.adapter_ratio=0.5", "head.width=64", "train.stop_epoch=70"])
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"adapter_ratio 0.25 -> 0.5, head.width 512 -> 64\. .*no checkpoint"):
            start(run, other, resume=resume)

    save(run.checkpoints(keep=2), 4)
    save(run.checkpoints(keep=2), 8)
    assert start(run, DETECTION, resume=True) == "step_00000008"
    longer = loading.override(DETECTION, ["train.stop_epoch=70", "parallel.temporal=2", "test.sigma=0.4"])
    assert start(run, longer, resume=True) == "step_00000008"
    assert run.setting_changes(longer)[1] == [
        "train.stop_epoch 60 -> 70", "test.sigma 0.7 -> 0.4", "parallel.temporal 1 -> 2"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"already holds a run \(up to step_00000008\); continue with --resume auto"):
        start(run, DETECTION, resume=False)
    with pytest.raises(ConfigError, match=r"head.width 512 -> 64. Use the old values to continue it, or choose"):
        start(run, other, resume=True)
    assert (tmp_path / CONFIG_FILE).read_bytes() == before


def test_a_setting_that_is_newer_than_the_run_has_its_default(tmp_path):
    run = RunFolder(tmp_path)
    tree = DETECTION.to_dict()
    del tree["train"]["max_skipped_steps"], tree["train"]["ema_warmup"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(tree))
    assert start(run, DETECTION, resume=True) is None
    with pytest.raises(ConfigError, match=r"train.ema_warmup None -> True"):
        start(run, loading.override(DETECTION, ["train.ema_warmup=true"]), resume=True)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(tmp_path):
    run = RunFolder(tmp_path)
    save(run.checkpoints(keep=2), 4)
    (tmp_path / "checkpoints/step_00000004/master.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints in .* is complete"):
        start(run, DETECTION, resume=True)


def test_epochs_that_were_measured_otherwise_are_named(tmp_path):
    run = RunFolder(tmp_path)
    run.describe(config=DETECTION, ds_config={}, classes=["a"])
    saved = SavedRun(checkpoint=tmp_path / "checkpoints/step_00000004", trainable={}, state={"progress": {"step": 4}})
    stricter = loading.override(DETECTION, ["test.tiou=[0.7]", "test.batch=8", "data.test_subset=training"])

    def warnings(config: Config) -> list[str]:
        lines = describe_resume(run, run.checkpoints(keep=2), config=config, saved=saved)
        return [line for line in lines if line.startswith("warning: ")]

    assert warnings(stricter) == []  # nothing has been evaluated yet
    (tmp_path / "evaluations/epoch_0003").mkdir(parents=True)
    (tmp_path / "evaluations/epoch_0003/metrics.json").write_text('{"average_mAP": 0.5}')
    (warning,) = warnings(stricter)
    assert "epochs 3 were evaluated with other settings (data.test_subset 'validation' -> 'training', test." in warning
    assert "test.batch" not in warning
    assert warnings(loading.override(DETECTION, ["test.batch=8", "train.stop_epoch=70"])) == []


def test_other_training_data_are_refused():
    videos = [("v1", 10.0, (0.0, 2.0, "a")), ("v2", 20.0, (1.0, 2.0, "b"))]
    found = data_fingerprint(videos, classes=("a", "b"))
    assert found["hash"] == "ec4d1a63554e185b", "else runs of versions before could not go on"
    assert json.loads(json.dumps(found)) == found
    check_same_data(data_fingerprint(map(list, videos), classes=["a", "b"]), found)
    others = [
        data_fingerprint(reversed(videos), classes=("a", "b")),
        data_fingerprint([videos[0], ("v2", 20.0, (1.0, 2.5, "b"))], classes=("a", "b")),
        data_fingerprint(videos, classes=("b", "a")),
    ]
    for other in others:
        with pytest.raises(ConfigError, match=r"run began with \(2 videos, 2 classes; now 2 .*differ\. Use the old"):
            check_same_data(other, found)
