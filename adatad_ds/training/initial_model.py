"""The model before its first step: as the seed and its weights file have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from adatad_ds.config.schema import Config
from adatad_ds.data.features.sources import feature_fingerprint
from adatad_ds.distributed.engine import partitioner
from adatad_ds.distributed.world import World
from adatad_ds.errors import summarize_list
from adatad_ds.models.backbones.features import FeatureBackbone
from adatad_ds.models.detector import Detector
from adatad_ds.models.execution.segment_timer import Stopwatch
from adatad_ds.models.factory import Model, Runtime, build_model
from adatad_ds.tasks.base import Task
from adatad_ds.weights.files import Tensors
from adatad_ds.weights.loading import fill_backbone, find_weights, fingerprint, weights_reports
from adatad_ds.weights.trainable_state import MASTER


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """A model before its first step.

    Attributes:
        model: with its frozen weights.
        stopwatch: times its recomputed segments.
        frozen_fingerprint: of the frozen weights; empty on other ranks than 0, which do not read them.
        published: trainable tensors of a published model, by kind and parameter name; empty where the weights file
            holds a transformer alone.
        reports: lines about that file.
    """

    model: Model
    stopwatch: Stopwatch
    frozen_fingerprint: dict[str, str]
    published: Mapping[str, Tensors]
    reports: list[str]

    def describe_published(self, task: Task) -> list[str]:
        """Lines about what was restored of a published model, and what is newly initialised."""
        if not self.published:
            return []
        restored = self.published[MASTER]
        trainable = (name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        new = summarize_list([name for name in trainable if name not in restored], limit=5, separator=", ")
        also = "weights: also loaded adapters and head" + (f"; newly initialised: {new}" if new else "")
        return [also, *task.describe_published(restored)]


def build_initial_model(
    config: Config,
    ds_config: dict[str, Any],
    *,
    task: Task,
    runtime: Runtime,
    world: World,
    cached: dict[str, str] | None,
) -> InitialModel:
    """Build the model and load its pretrained weights. A collective.

    Args:
        config: of the run.
        ds_config: resolved.
        task: of the run.
        runtime: of this rank.
        world: the ranks.
        cached: fingerprint of the frozen backbone whose features are read in its place; None: it runs.

    Raises:
        ConfigError: unknown backbone, or adapters that do not fit it.
        CheckpointError: weights that are missing, unreadable, or of another model.
    """
    torch.manual_seed(config.train.seed)  # of the initialisation alone: samples carry their own seeds
    model = world.attempt(lambda: build_model(config, num_classes=len(task.classes), runtime=runtime))
    if cached is not None:  # the head is initialised as beside the backbone
        assert isinstance(model, Detector)
        model.backbone = FeatureBackbone(channels=model.backbone.width)  # pyright: ignore[reportAttributeAccessIssue]
        return InitialModel(
            model=model, stopwatch=runtime.stopwatch, frozen_fingerprint=cached, published={}, reports=[]
        )
    vit = model.backbone.vit
    weights = world.attempt(lambda: find_weights(config.backbone, vit))
    reports = weights_reports(weights, config.backbone)
    world.same(reports, what="pretrained weights")
    published: Mapping[str, Tensors] = {}
    if weights is None:
        frozen = fingerprint(vit)
    else:
        published = world.attempt(lambda: task.restore_published(weights, model))
        host = partitioner(ds_config, world=world)
        frozen = fill_backbone(vit, weights.vit, dtype=config.train.dtype, read=world.is_main, host=host)
    if config.backbone.is_features:
        frozen = world.attempt(lambda: feature_fingerprint(config))
    return InitialModel(
        model=model, stopwatch=runtime.stopwatch, frozen_fingerprint=frozen, published=published, reports=reports
    )
