"""What a training would be: its parameters, memory and weights, by names and shapes alone. Nothing is allocated."""

from __future__ import annotations

from pathlib import Path

from adatad_ds.config.schema import Config
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.models.factory import build_model
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.memory import make_plan
from adatad_ds.system.launch import launched_ranks
from adatad_ds.training.optim import parameter_table
from adatad_ds.weights.files import is_to_download
from adatad_ds.weights.loading import find_weights, published_state, weights_reports


def dry_run(config: Config, ds_config: Path | None) -> str:
    """Parameters by kind and, given a ds_config, the memory that each launched rank will need."""
    classes = len(config.data.classes) or 1
    with shapes_only():
        parameters = parameter_table(build_model(config, num_classes=classes))
    if ds_config is None:
        return parameters
    plan = make_plan(config, ds_config=read_ds_config(ds_config), ranks=launched_ranks(), num_classes=classes)
    return f"{parameters}\n\n{plan.table()}"


def weights_that_fit(config: Config) -> str:
    """Report on a config's weights from names and shapes alone, the same as when loading them.

    Raises:
        ConfigError: settings that no model can be built with.
        CheckpointError: weights that are missing, unreadable, or of another model.
    """
    source, classes = config.backbone.weights, config.data.classes
    if source is not None and is_to_download(source):
        return f"weights: {source} is not in the hub's cache yet; whether it fits is checked once it is fetched"
    with shapes_only():
        model = build_model(config, num_classes=len(classes) or 1)
    weights = find_weights(config.backbone, model.backbone.vit)
    if weights is None:
        what = "there is no transformer" if config.backbone.is_features else "the transformer is randomly initialised"
        return f"weights: none, {what}"
    # Unnamed classes are those of the data, which are not read here: a classifier of any number may fit.
    reset_classifier = config.reset_classifier or not classes
    trainable = published_state(weights, model, config=config, reset_classifier=reset_classifier)
    what = "transformer, adapters and head" if trainable else "transformer"
    return "\n".join([*weights_reports(weights, config.backbone), f"weights: they fit the {what}"])
