"""The model card of a shared model: what it is, how well it does, what it needs, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adatad_ds.config.schema import Config
from adatad_ds.evaluation.metrics_files import HEADLINES
from adatad_ds.inference.trained_model import Trained
from adatad_ds.models.tuning.lora import is_update
from adatad_ds.weights.files import is_hub_name
from adatad_ds.weights.loading import VIT, WHERE_FROM

_SHIPPED = "adatad_ds/"  # start of the paths of weights that come with this package
_PAPERS = {False: "[AdaTAD](https://arxiv.org/abs/2311.17241)", True: "[AIM](https://arxiv.org/abs/2302.03024)"}
_SHOWN = (*HEADLINES, "top5", "mean_class_top1")  # and each mAP@T


def model_card(trained: Trained, *, place: str, file: str) -> str:
    """The card, in Markdown, after its metadata in YAML.

    Args:
        trained: an export, without paths of the machine that it comes from.
        place: `hub:USER/NAME` or a folder, where it will be.
        file: name of its safetensors file there.
    """
    from huggingface_hub import ModelCardData

    name = Path(place.removeprefix("hub:")).name
    config, weights = trained.config, trained.config.backbone.weights
    metadata = ModelCardData(
        library_name="adatad_ds",
        pipeline_tag="video-classification",
        tags=["action-recognition" if config.recognition else "temporal-action-detection"],
        base_model=weights if weights and is_hub_name(weights) else None,
    )
    parts = [
        f"# {name}",
        _summary(trained),
        f"## Results\n\n{_results(trained)}",
        f"## Use\n\n{_use(config, place=place, name=name, file=file)}",
        f"## Backbone\n\n{backbone_text(trained)}",
        f"## Data and training\n\n{_training(config)}",
        f"## Classes\n\n{_verbatim(trained.classes)}",
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def backbone_terms(trained: Trained) -> str:
    """Where a model's backbone comes from, and on what terms, as far as that is known."""
    backbone = trained.config.backbone
    if (backbone.weights or "").startswith(_SHIPPED):
        return "come with adatad_ds"
    known = WHERE_FROM.get(backbone.name)
    return f"come from {known}" if known else "have terms that are not known here: ask where they come from"


def backbone_text(trained: Trained) -> str:
    """What a model's backbone is, and what is known of its terms."""
    backbone = trained.config.backbone
    if backbone.is_features:
        return "Features of videos, extracted beforehand; they must be of the backbone that the training began with."
    if backbone.weights is None:
        return f"`{backbone.name}`, with random weights of the training's seed."
    checked = " Others are refused when the model is loaded, by their fingerprint." * bool(trained.frozen_fingerprint)
    return f"`{backbone.name}`, weights `{backbone.weights}`. They {backbone_terms(trained)}.{checked}"


def holds_backbone(trained: Trained) -> bool:
    """Whether some of the transformer's own weights are among the trained ones, as after `--merge`."""
    return any(name.startswith(VIT) and not is_update(name) for name in trained.trainable or ())


def _summary(trained: Trained) -> str:
    config, count = trained.config, len(trained.classes)
    does = "Recognises" if config.recognition else "Finds, in untrimmed videos, the start and end of"
    held = "and some weights of its backbone" if holds_backbone(trained) else "not the frozen backbone"
    return (
        f"{does} actions{f' of {count} classes' if count > 1 else ''}. Trained with adatad_ds, after "
        f"{_PAPERS[bool(config.recognition)]} (`backbone.tuning={config.backbone.tuning}`). The files hold what was "
        f"trained, {held}."
    )


def _results(trained: Trained) -> str:
    if not trained.metrics:
        return "No evaluation came with this model."
    config = trained.config
    shown = {key: value for key, value in trained.metrics.items() if key in _SHOWN or key.startswith("mAP@")}
    rows = [f"| {HEADLINES.get(key, key)} | {100 * value:.2f} |" for key, value in shown.items()]
    lists = config.recognition.test_list if config.recognition else config.data.annotations
    subset = "" if config.recognition else f", subset `{config.data.test_subset}`"
    best = [f"\nOf all score thresholds: {trained.operating_point}."] if trained.operating_point else []
    return "\n".join([f"On `{lists}`{subset}, in %:\n", "| metric | % |", "|---|---|", *rows, *best])


def _use(config: Config, *, place: str, name: str, file: str) -> str:
    pull, path = f"adatad-ds pull {place} --out {name}", f"{name}/{file}"
    weights = config.backbone.weights
    asked = weights is not None and not weights.startswith(_SHIPPED) and not is_hub_name(weights)
    if config.recognition or config.backbone.is_features:
        needs = {"data.videos": "FOLDER", "recognition.test_list": "FILE"}
        if config.backbone.is_features:
            needs = {"data.annotations": "FILE", "data.features": "FOLDER"}
        if asked and not config.backbone.is_features:
            needs["backbone.weights"] = "FILE"
        settings = "".join(f" --set {key}={value}" for key, value in needs.items())
        return f"```bash\n{pull}\nadatad-ds evaluate {path}{settings}\n```"
    overrides = ', overrides=["backbone.weights=FILE"]' if asked else ""
    return (
        f"```bash\n{pull}\n```\n\n```python\nfrom adatad_ds.predict import load_detector\n"
        f'detections = load_detector("{path}"{overrides}).detect("video.mp4")\n```'
    )


def _training(config: Config) -> str:
    data, train = config.data, config.train
    if config.recognition:
        frames = f"{config.recognition.frames} frames"
        source = f"videos of `{config.recognition.train_list}`"
    else:
        frames = f"windows of {data.window_frames} frames, {data.resolution} px"
        source = f"`{data.annotations}`, subset `{data.train_subset}`"
        if config.backbone.is_features:
            frames = f"windows of {data.window_size} features"
    return (
        f"Trained on {source}: {frames}, {train.stop_epoch} epochs, {train.precision}. `model.json` has all settings."
    )


def _verbatim(names: Sequence[str]) -> str:
    return "\n".join(f"    {name}" for name in names) or "Those of the data; the model does not name them."
