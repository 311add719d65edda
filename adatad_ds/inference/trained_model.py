"""Find trained models on disk and load them for inference.

A run or one of its checkpoints; an export of `adatad-ds export` (trainable tensors, and how to rebuild the rest);
a checkpoint published by AdaTAD's or AIM's authors, together with its recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.data.features.sources import feature_fingerprint
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.evaluation.operating_point import OperatingPoint
from adatad_ds.models.factory import Model, build_model
from adatad_ds.models.tuning.lora import is_update, merged_weights
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.recipes.class_order import ClassOrder
from adatad_ds.runs.checkpoint import find_checkpoint, open_checkpoint, read_operating_point, write_operating_point
from adatad_ds.runs.folder import RunFolder
from adatad_ds.system.json_text import write_json
from adatad_ds.weights.files import SAFETENSORS, Tensors, check_fit, held_tensor, open_tensors
from adatad_ds.weights.loading import (
    check_fingerprint,
    fill_backbone,
    find_weights,
    fingerprint,
    open_backbone_weights,
    trained_tensors,
)
from adatad_ds.weights.trainable_state import AVERAGE, MASTER

EXPORT_FORMAT = "adatad_ds adapter 1"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model that was found but not yet read.

    Attributes:
        name: for messages.
        source: the checkpoint's folder or the file.
        folder: the run's folder, or the file's; results go below it.
        config: how to build it.
        classes: class names, in the order of the logits; empty: those of the data.
        trainable: adapters, pyramid and heads by name; None: they are part of `backbone.weights`.
        frozen_fingerprint: fingerprint of the frozen weights that it was trained with; None: unknown.
        averaged: whether `trainable` is the running average.
        class_order: classes of a published checkpoint's logits; None: unknown.
        noted_in: where its operating point is stored, a checkpoint's folder or an export's JSON file; None: a published
            file, which is left unchanged.
        operating_point: the score of the best F1, if evaluated.
        metrics: shares of 1 by name, as evaluated in training; None: unknown, or not those of the best checkpoint.
        merged: of `trainable`, the transformer's weights that contain trained updates, in place of the frozen ones.
    """

    name: str
    source: Path
    folder: Path
    config: Config
    classes: tuple[str, ...]
    trainable: Tensors | None
    frozen_fingerprint: Mapping[str, str] | None
    averaged: bool
    class_order: ClassOrder | None = None
    noted_in: Path | None = None
    operating_point: OperatingPoint | None = None
    metrics: Mapping[str, float] | None = None
    merged: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Kind of weights: the running average, or the last ones."""
        return AVERAGE if self.averaged else MASTER


def find_trained(
    path: Path, *, recipe: str | None = None, overrides: Sequence[str] = (), averaged: bool = True
) -> Trained:
    """Find a trained model.

    Args:
        path: a run's folder, a checkpoint's folder, an export, or a published checkpoint.
        recipe: recipe of a published checkpoint.
        overrides: `section.key=value` changes of its config.
        averaged: use the running average of the weights (EMA) where there is one, not the last weights.

    Raises:
        ConfigError: nothing is there, `recipe` is missing, or `averaged` does not fit an export, or a model has
            classes of its own and `overrides` names others.
        CheckpointError: an incomplete checkpoint, an unreadable file, or a transformer alone.
    """
    if path.is_dir():
        return _from_checkpoint(find_checkpoint(path), overrides, averaged=averaged)
    if not path.exists():
        raise ConfigError(f"there is no {path}; give a run's folder, a checkpoint, an export or a published .pth")
    if path.suffix == SAFETENSORS and path.with_suffix(".json").exists():
        description = read_description(path.with_suffix(".json"))
        if description.get("format") == EXPORT_FORMAT:
            return _from_export(path, description, overrides, averaged=averaged)
    if recipe is None:
        raise ConfigError(
            f"{path} does not say how it was trained; for a published model, add --recipe NAME (train.py --list-recipes"
            " shows all). A transformer alone, without adapters and head, is not a trained model"
        )
    found = find_recipe(recipe)
    config = loading.override(found.config, overrides)
    if config.backbone.weights not in (found.config.backbone.weights, str(path)):
        raise ConfigError(f"backbone.weights={config.backbone.weights}: the backbone of {path} is in that file itself")
    config = replace(config, backbone=replace(config.backbone, weights=str(path)))
    if not open_backbone_weights(config.backbone).trained:
        raise CheckpointError(f"{path} holds a transformer alone, without a trained model")
    return Trained(
        name=path.name,
        source=path,
        folder=path.parent,
        config=config,
        classes=config.data.classes,
        trainable=None,
        frozen_fingerprint=None,
        averaged=averaged,
        class_order=found.class_order,
    )


def check_recipe(recipe: str | None, found: Sequence[Trained]) -> None:
    """Check that a recipe, if one is given, is that of a published checkpoint.

    Raises:
        ConfigError: all models say themselves how they were trained.
    """
    if recipe is not None and all(trained.trainable is not None for trained in found):
        raise ConfigError(
            f"--recipe {recipe}: {', '.join(trained.name for trained in found)} has its own settings; leave --recipe "
            "out, and change them with --set"
        )


def load_model(trained: Trained, *, num_classes: int) -> Model:
    """Load the detector or recogniser for inference, on the CPU, in its config's compute type.

    Args:
        trained: the model found.
        num_classes: K.

    Raises:
        ConfigError: settings that no model can be built with.
        CheckpointError: weights that are missing, unreadable, do not fit, or differ from those of the training.
    """
    config = trained.config
    torch.manual_seed(config.train.seed)  # as in training, for a backbone without pretrained weights
    model = build_model(config, num_classes=num_classes)
    vit, dtype = model.backbone.vit, config.train.dtype
    published = trained.trainable is None
    weights = find_weights(config.backbone, vit, averaged=trained.averaged and published)
    if weights is None:
        frozen = fingerprint(vit)
    else:
        frozen = fill_backbone(vit, weights.vit, dtype=dtype, read=True, host=lambda module: None)
    if config.backbone.is_features:
        frozen = feature_fingerprint(config)
    if trained.frozen_fingerprint is not None:
        check_fingerprint(frozen, trained.frozen_fingerprint, trained=trained.name, weights=config.backbone.weights)
    trainable = trained.trainable
    if trainable is None:
        assert weights is not None
        trainable = trained_tensors(weights, model, reset_classifier=False)
    parameters = dict(model.named_parameters())
    wanted = {name: p for name, p in parameters.items() if p.requires_grad or name in trained.merged}
    check_fit(trainable, {name: tuple(p.shape) for name, p in wanted.items()}, source=trained.name)
    with torch.no_grad():
        for name, stored in trainable.items():
            parameters[name].copy_(stored.read().reshape(parameters[name].shape))
    return model.to(dtype).eval().requires_grad_(False)


def merge_updates(trained: Trained) -> Trained:
    """The same model without LoRA's layers: its updates are part of the transformer's weights, in the compute type.

    Raises:
        ConfigError: it has no such updates.
        CheckpointError: as for `load_model`.
    """
    tuning = {"lora": "frozen", "tia+lora": "tia", "plain+lora": "plain"}.get(trained.config.backbone.tuning)
    if tuning is None or trained.trainable is None:
        raise ConfigError(
            f"{trained.name} has nothing to merge: its backbone.tuning is {trained.config.backbone.tuning}, "
            "not lora, tia+lora or plain+lora"
        )
    dtype = trained.config.train.dtype
    model = load_model(trained, num_classes=len(trained.classes))
    weights = {name: held_tensor(weight.to(dtype)) for name, weight in merged_weights(model).items()}
    rest = {name: stored for name, stored in trained.trainable.items() if not is_update(name)}
    return replace(
        trained,
        # A budget is for training, and nothing is left to train where the transformer is frozen.
        config=loading.override(trained.config, [f"backbone.tuning={tuning}", "backbone.activation_memory_gb=null"]),
        trainable=rest | weights,
        merged=tuple(sorted(weights)),
    )


def export(trained: Trained, path: Path, *, extra: Mapping[str, Any]) -> None:
    """Write the trainable tensors as one safetensors file, and a JSON file that describes how to rebuild the rest.

    Args:
        trained: a run's model.
        path: the file, `.safetensors`.
        extra: more entries of the JSON file, such as versions.

    Raises:
        ConfigError: it is a published checkpoint, which has nothing to export.
    """
    if trained.trainable is None:
        raise ConfigError(f"{trained.name} is a published checkpoint already")
    description = {
        "format": EXPORT_FORMAT,
        "trained": trained.name,
        "weights": trained.kind,
        "classes": list(trained.classes),
        "backbone": {"name": trained.config.backbone.name, "weights": trained.config.backbone.weights},
        "config": trained.config.to_dict(),
        "frozen_fingerprint": trained.frozen_fingerprint,
        "operating_point": trained.operating_point and trained.operating_point.to_dict(),
        "metrics": trained.metrics,
        "merged": list(trained.merged),
        **extra,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: stored.read().contiguous() for name, stored in trained.trainable.items()}, path)
    write_json(path.with_suffix(".json"), description)


def store_operating_point(trained: Trained, point: OperatingPoint) -> Path | None:
    """Store the score of the best F1 with a run's checkpoint or an export, for prediction.

    Returns:
        Where it is stored; None for a published file.

    Raises:
        OSError: it cannot be written.
    """
    source = trained.noted_in
    if source is None:
        return None
    if source.is_dir():
        write_operating_point(source, kind=trained.kind, point=point)
    else:
        write_json(source, {**read_description(source), "operating_point": point.to_dict()})
    return source


def _from_checkpoint(checkpoint: Path, overrides: Sequence[str], *, averaged: bool) -> Trained:
    run = RunFolder(checkpoint.parents[1])
    config, classes = run.read()
    trainable, state = open_checkpoint(checkpoint)
    averaged = averaged and AVERAGE in trainable
    kind = AVERAGE if averaged else MASTER
    return Trained(
        name=f"{run.path.name}, {checkpoint.name}",
        source=checkpoint,
        folder=run.path,
        config=_changed(config, overrides, classes=classes, name=str(run.path)),
        classes=classes,
        trainable=trainable[kind],
        frozen_fingerprint=state["frozen_fingerprint"],
        averaged=averaged,
        noted_in=checkpoint,
        operating_point=read_operating_point(checkpoint, kind=kind),
        metrics=run.metrics_of(checkpoint) if averaged or AVERAGE not in trainable else None,
    )


def _from_export(path: Path, description: Mapping[str, Any], overrides: Sequence[str], *, averaged: bool) -> Trained:
    holds_average = description["weights"] == AVERAGE
    if holds_average and not averaged:
        raise ConfigError(f"{path} holds only the running average; export the run again with --no-ema")
    config, classes = loading.from_dict(description["config"]), tuple(description["classes"])
    return Trained(
        name=path.name,
        source=path,
        folder=path.parent,
        config=_changed(config, overrides, classes=classes, name=str(path)),
        classes=classes,
        trainable=open_tensors(path),
        frozen_fingerprint=description["frozen_fingerprint"],
        averaged=holds_average,
        noted_in=path.with_suffix(".json"),
        operating_point=OperatingPoint.from_dict(description.get("operating_point")),
        metrics=description.get("metrics"),
        merged=tuple(description.get("merged", ())),
    )


def _changed(config: Config, overrides: Sequence[str], *, classes: tuple[str, ...], name: str) -> Config:
    changed = loading.override(config, overrides)
    if classes and changed.data.classes not in (config.data.classes, classes):
        raise ConfigError(
            f"{name} has classes of its own, {len(classes)} in the order of its logits: leave out --classes and "
            "data.classes, which name those of a published checkpoint"
        )
    return changed


def read_description(path: Path) -> Mapping[str, Any]:
    """The JSON file of an export; empty where it holds something else.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return content if isinstance(content, Mapping) else {}
