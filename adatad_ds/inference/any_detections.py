"""Measure a file of detections of whatever origin, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.diagnosis.inputs import evaluated_beside, read_source
from adatad_ds.evaluation.metrics_files import METRICS_FILE, PER_CLASS_FILE, write_metrics
from adatad_ds.inference.evaluation import PICTURE_FILE, draw
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.tasks.detection_pipeline import measure

MAY_CHANGE = (
    *("data.annotations", "data.test_subset", "data.exclude", "data.exclude_file"),
    *("test.tiou", "test.recall_topk"),
)


def evaluate_detections(
    path: Path, *, recipe: str | None, overrides: Sequence[str], output: Path, per_class: bool = False
) -> None:
    """Print and save the metrics of a file of detections, and a picture.

    Args:
        path: detections in the community's format.
        recipe: whose annotations, subset, thresholds and recalls are taken; None: those that `overrides` name.
        overrides: `section.key=value` changes of its config.
        output: folder of the files.
        per_class: print every class's AP; it is saved in any case.

    Raises:
        ConfigError: no annotations are named, or overrides that would need a detector.
        DataError: files that cannot be used, or not together.
    """
    config = _config(path, recipe=recipe, overrides=overrides)
    data = config.data
    source = read_source(
        path,
        Path(data.annotations),
        subset=data.test_subset,
        exclude=data.exclude,
        exclude_file=data.exclude_file,
    )
    videos = source.videos
    test = replace(config.test, external_scores="")
    config = replace(config, data=replace(data, class_agnostic=False), test=test)  # truths are labelled as detections
    found = {video.name: source.results.get(video.name, []) for video in videos}
    metrics = measure(found, videos=source.truths, config=config)
    output.mkdir(parents=True, exist_ok=True)
    write_metrics(output, metrics)
    for note in source.notes:
        tqdm.write(f"note: {note}")
    tqdm.write(f"{path} on {len(videos)} videos of subset {data.test_subset}\n{metrics.table()}")
    tqdm.write(str(metrics.operating_point or "no detection is correct"))
    if per_class:
        tqdm.write(metrics.per_class_table())
    tqdm.write(f"written: {output}/{METRICS_FILE}, {PER_CLASS_FILE}")
    draw(found, videos=videos, path=output / PICTURE_FILE, title=path.name, known=metrics.operating_point)


def _config(path: Path, *, recipe: str | None, overrides: Sequence[str]) -> Config:
    names = [assignment.partition("=")[0].strip() for assignment in overrides]
    if wrong := [name for name in names if name not in MAY_CHANGE]:
        raise ConfigError(
            f"--set {', '.join(wrong)}: {path} holds finished detections; allowed: {', '.join(MAY_CHANGE)}"
        )
    config = find_recipe(recipe).config if recipe else Config()
    evaluated_tiou, _ = evaluated_beside(path)
    if recipe is None and evaluated_tiou:
        config = replace(config, test=replace(config.test, tiou=evaluated_tiou))
    config = loading.override(config, overrides)
    if config.recognition or not config.data.annotations:
        raise ConfigError(
            f"{path} holds detections; give what they are measured against: --annotations FILE [--subset NAME], or the "
            "--recipe of their data set"
        )
    return config
