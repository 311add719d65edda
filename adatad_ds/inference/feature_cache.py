"""The features of a frozen backbone, extracted once before a training that then reads them in the place of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from adatad_ds.config.backbone import FEATURES
from adatad_ds.config.schema import Config
from adatad_ds.distributed.world import World
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.inference.feature_job import Extracted, Job, extract, frozen_source
from adatad_ds.weights.loading import fingerprint


def cache_features(config: Config, *, folder: Path, world: World) -> tuple[Config, dict[str, str]]:
    """Fill a folder with the features of a config's videos, as far as they are not there. A collective.

    Each rank does a share. Features are stored as float32; `describe_cache` says where losses are those of frames.

    Args:
        config: of a frozen detector without augmentation (`config/validation.py` says what else it must be).
        folder: of the features; one that was filled before, on however many ranks, is not filled again.
        world: the ranks.

    Returns:
        The config whose data are these features, and the fingerprint of the frozen backbone.

    Raises:
        ConfigError: the folder holds features of another backbone or other frames.
        DataError: videos that cannot be read.
        CheckpointError: weights that are missing, unreadable or do not fit.
    """

    def fill() -> tuple[Extracted, dict[str, str]]:
        source = frozen_source(config)
        frozen = fingerprint(source.backbone.vit)
        job = Job(out=folder, videos={}, snippet=None, dtype="float32", share=world.rank, shares=world.size)
        report = tqdm.write if world.is_main else lambda line: None
        return extract(source, job, report=report, bar=world.is_main), frozen

    own, frozen = world.attempt(fill)
    shares = world.gather(own)
    lines = [line for share in shares for line in share.failed]
    if lines:
        raise DataError(
            f"backbone.cache_features: {len(lines)} videos cannot be read; repair them, or leave them out with "
            f"data.exclude_file: {summarize_list(lines, limit=3)}"
        )
    if world.is_main:
        tqdm.write(f"cached features: {sum(share.done for share in shares)} videos in {folder}")
    data = replace(config.data, videos="", features=str(folder), frames_per_feature=1)
    if data.sampling == "resize":
        data = replace(data, crop_ratio=None)  # the whole video is one window
    backbone = replace(config.backbone, name=FEATURES, weights=None, cache_features=False)
    return replace(config, data=data, backbone=backbone), frozen
