"""Settings that a resume may change; all others must stay as the run began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError

MAY_CHANGE = (
    # how the work is distributed and stored; also the number of ranks and the whole ds_config
    "parallel.temporal",
    "train.micro_batch",
    "train.compile",
    "backbone.activation_checkpointing",
    "backbone.activation_memory_gb",
    "backbone.clips_per_chunk",
    "backbone.cache_features",
    "backbone.stored_on_device_gb",
    "data.workers",
    "data.prefetch",
    "data.worker_timeout_sec",
    "data.reader",  # all give the same pixels, but `auto` of prepared MJPEG and `nvdec`: they differ by a few levels
    # when it ends
    "train.stop_epoch",
    "train.max_skipped_steps",
    "train.hang_timeout_sec",
    "train.stop_timeout_sec",
    "data.max_failed_videos",
    # evaluation
    "test.*",
    "train.eval_from_epoch",
    "train.eval_every",
    "train.eval_pictures",
    "data.test_subset",
    "data.test_window_overlap",
    "data.test_whole_videos",
    "recognition.test_list",
    "recognition.test_clips",
    "recognition.test_crops",
    # what is written
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.compact_checkpoints",
    # paths: the contents are compared instead, see `check_same_data` and `weights.loading.check_fingerprint`
    "data.annotations",
    "data.videos",
    "data.features",
    "backbone.weights",
    "recognition.train_list",
    "recognition.class_names",
)

OF_SCORES = ("test.", "data.test_", "recognition.test_")  # with which the scores of epochs compare alone


def setting_changes(saved: Config, now: Config) -> tuple[list[str], list[str]]:
    """Settings that differ, as `section.key OLD -> NEW`: first those that a resume may not change, then the others."""
    old, new = _flat(saved), _flat(now)
    refused, allowed = [], []
    for key in old | new:
        if old.get(key) != new.get(key):
            may = key in MAY_CHANGE or f"{key.partition('.')[0]}.*" in MAY_CHANGE
            (allowed if may else refused).append(f"{key} {old.get(key)!r} -> {new.get(key)!r}")
    return refused, allowed


def incomparable(changes: Sequence[str]) -> list[str]:
    """Of changes as in `setting_changes`, those after which scores do not compare with earlier ones."""
    return [change for change in changes if change.startswith(OF_SCORES) and not change.startswith("test.batch ")]


def check_same_data(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that the training data are those that the run began with, as they determine the order of samples.

    Args:
        found: fingerprint of the present data.
        wanted: fingerprint of the data that the run began with.

    Raises:
        ConfigError: the data differ.
    """
    if found != wanted:
        theirs, ours = (f"{each['videos']} videos, {each['classes']} classes" for each in (wanted, found))
        raise ConfigError(
            f"the training data are not those that this run began with ({theirs}; now {ours}): names, times, labels or "
            "their order differ. Use the old annotations to continue, or start a new run with --run-dir"
        )


def _flat(config: Config) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in config.to_dict().items() for key, value in values.items()}
