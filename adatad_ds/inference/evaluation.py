"""Evaluate a trained model: write and print detections or predictions, metrics and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from adatad_ds.config import loading
from adatad_ds.config.schema import Config, ParallelConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.window_dataset import WindowDataset, load_subset
from adatad_ds.distributed.mesh import Mesh
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.accuracy import PREDICTIONS_FILE
from adatad_ds.evaluation.candidates_file import SavedCandidates, write_candidates
from adatad_ds.evaluation.detections_file import DETECTIONS_FILE, write_results
from adatad_ds.evaluation.metrics import Metrics
from adatad_ds.evaluation.metrics_files import METRICS_FILE, PER_CLASS_FILE, write_metrics
from adatad_ds.evaluation.operating_point import OperatingPoint, ShownFrom
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.inference.averaged import (
    OF_TESTING,
    AlignedWindows,
    AveragedDetector,
    check_same_points,
    number_inputs,
)
from adatad_ds.inference.trained_model import Trained, load_model, store_operating_point
from adatad_ds.models.factory import Model
from adatad_ds.recipes.class_order import describe_logits
from adatad_ds.tasks.base import open_test_loader
from adatad_ds.tasks.detection import open_test_windows
from adatad_ds.tasks.detection_pipeline import (
    Results,
    damaged_videos,
    external_scores,
    find_candidates,
    finish,
    measure,
)
from adatad_ds.tasks.recognition import measure_recognition, open_clips, recognise, save_predictions
from adatad_ds.weights.loading import in_published_order

PICTURE_FILE = "detections.png"
CANDIDATES_FILE = "raw.npz"
ALREADY_APPLIED = (  # before the file of candidates was written
    *("test.batch", "test.pre_nms_thresh", "test.pre_nms_topk"),
    *("test.topk_per_level", "test.min_duration_steps"),
)
PICTURE_VIDEOS = 6


def evaluate(
    trained: Trained,
    *,
    others: Sequence[Trained] = (),
    output: Path,
    world: World,
    save_candidates: bool = False,
    per_class: bool = False,
) -> None:
    """Detect in all test videos, then print and save detections, metrics and a picture.

    Args:
        trained: the detector.
        others: detectors that are averaged with it, point by point; each reads its own frames or features.
        output: folder of the files.
        world: the ranks.
        save_candidates: also save the candidates before suppression.
        per_class: print every class's AP; it is saved in any case.
    """
    config = replace(trained.config, parallel=ParallelConfig())  # every rank takes whole windows
    published = trained.trainable is None
    if published:
        config = world.attempt(lambda: in_published_order(config, order=trained.class_order))
    data = world.attempt(lambda: _open(trained, others, config=config))
    world.same((len(data), data.videos), what="data")
    if published and world.is_main and not config.data.class_agnostic:
        tqdm.write(describe_logits(data.classes))
    external = world.attempt(lambda: external_scores(config, videos=data.videos, classes=data.classes))
    name = " + ".join(each.name for each in (trained, *others))
    detector = world.attempt(lambda: _load(trained, others, num_classes=len(data.classes))).to(world.device)
    loader = open_test_loader(data, config=config, world=world, rank=world.rank, ranks=world.size)
    candidates = find_candidates(
        forward=detector,
        batches=tqdm(loader, desc="windows", unit="batch", disable=not world.is_main, dynamic_ncols=True),
        config=config,
        mesh=Mesh(world=world, config=config),
        report=tqdm.write if world.is_main else lambda message: None,
    )
    if save_candidates:
        kept = SavedCandidates(name=name, config=config.to_dict(), classes=data.classes, videos=candidates)
        world.on_main(lambda: store_candidates(output / CANDIDATES_FILE, kept))
    results = finish(
        candidates,
        videos=[video.name for video in data.videos],
        classes=data.classes,
        config=config,
        world=world,
        external=external,
    )
    if not world.is_main:
        return
    metrics = report(
        results,
        videos=data.videos,
        damaged=damaged_videos(candidates),
        config=config,
        name=name,
        output=output,
        per_class=per_class,
    )
    point = metrics.operating_point if metrics else None if others else trained.operating_point
    if metrics and point and external is None and not others:  # else scores are not the detector's own
        keep_operating_point(trained, point)
    draw(results, videos=data.videos, path=output / PICTURE_FILE, title=name, known=point)


def _open(trained: Trained, others: Sequence[Trained], *, config: Config) -> WindowDataset | AlignedWindows:
    """The test windows of the detector's `config`; of several detectors, as each reads them."""
    for other in others:
        check_same_points(trained, other)
    data = open_test_windows(config, classes=trained.classes)
    readings: list[tuple[str, WindowDataset]] = [(trained.name, data)]
    inputs = number_inputs((trained, *others))
    of_first = {key: getattr(config.data, key) for key in ("classes", *OF_TESTING)}
    for place, other in enumerate(others, start=1):
        if inputs[place] == len(readings):
            theirs = replace(other.config, data=replace(other.config.data, **of_first))
            readings.append((other.name, open_test_windows(theirs, classes=trained.classes)))
    return AlignedWindows(readings) if len(readings) > 1 else data


def _load(trained: Trained, others: Sequence[Trained], *, num_classes: int) -> Model | AveragedDetector:
    """The detector, or several as one."""
    every = (trained, *others)
    models = [load_model(each, num_classes=num_classes) for each in every]
    return AveragedDetector(models, inputs=number_inputs(every)) if others else models[0]


def store_candidates(path: Path, saved: SavedCandidates) -> None:
    """Write the candidates before suppression, and report it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_candidates(path, saved)
    tqdm.write(f"written: {path}")


def keep_operating_point(trained: Trained, point: OperatingPoint) -> None:
    """Store the score of the best F1 with the evaluated model, where predict.py finds it, and report it."""
    try:
        stored = store_operating_point(trained, point)
    except OSError as error:
        tqdm.write(f"warning: the score of the best F1 could not be stored: {error}")
        return
    where = f"stored in {stored}" if stored else "not stored, as a published file is left unchanged"
    use = "predict uses this score as its default threshold" if stored else f"use predict.py --score {point.score:g}"
    tqdm.write(f"{where}: {use}")


def evaluate_recognition(trained: Trained, *, output: Path, world: World, per_class: bool) -> None:
    """Recognise all test videos, then print and save predictions and accuracies.

    Args:
        trained: the model.
        output: folder of the files.
        world: the ranks.
        per_class: print every class's accuracy; it is saved in any case.
    """
    config = trained.config
    data = world.attempt(lambda: open_clips(config, training=False, classes=trained.classes))
    world.same((len(data), data.videos), what="data")
    model = world.attempt(lambda: load_model(trained, num_classes=len(data.classes))).to(world.device)
    logits, damaged = recognise(
        forward=model,
        batches=tqdm(
            open_test_loader(data, config=config, world=world, rank=world.rank, ranks=world.size),
            desc="clips",
            unit="batch",
            disable=not world.is_main,
            dynamic_ncols=True,
        ),
        world=world,
        report=tqdm.write if world.is_main else lambda message: None,
    )
    if not world.is_main:
        return
    output.mkdir(parents=True, exist_ok=True)
    recognition = measure_recognition(logits, data=data)
    for line in damaged.values():
        tqdm.write(f"warning: {line}")
    save_predictions(logits, damaged, data=data, folder=output)
    write_metrics(output, recognition)
    tqdm.write(f"{trained.name}\n{recognition.table()}")
    if per_class:
        tqdm.write(recognition.per_class_table())
    tqdm.write(f"written: {output}/{PREDICTIONS_FILE}, {METRICS_FILE}, {PER_CLASS_FILE}")


def evaluate_again(
    saved: SavedCandidates, *, overrides: Sequence[str], output: Path, world: World, per_class: bool = False
) -> None:
    """Repeat suppression and metrics on candidates saved by `evaluate`, without the detector and the videos.

    Args:
        saved: the saved candidates.
        overrides: `section.key=value` changes of its config.
        output: folder of the files.
        world: the ranks.
        per_class: print every class's AP.

    Raises:
        ConfigError: overrides that would need the detector.
        DataError: annotations that cannot be used, or have other classes than the detector.
    """
    for assignment in overrides:
        name = assignment.partition("=")[0].strip()
        if name in ALREADY_APPLIED or not name.startswith(("test.", "data.annotations")):
            raise ConfigError(
                f"--set {assignment}: cannot change {name}, as the candidates are already computed; allowed: "
                f"data.annotations, and test.* except {', '.join(ALREADY_APPLIED)}"
            )
    config = loading.override(loading.from_dict(saved.config), overrides)
    data = config.data
    classes = data.classes if data.class_agnostic else saved.classes
    annotations, _ = world.attempt(lambda: load_subset(data, subset=data.test_subset, classes=classes, train=False))
    videos = annotations.videos
    results = finish(
        saved.videos,
        videos=[video.name for video in videos],
        classes=saved.classes,
        config=config,
        world=world,
        external=world.attempt(lambda: external_scores(config, videos=videos, classes=saved.classes)),
    )
    if not world.is_main:
        return
    metrics = report(
        results,
        videos=videos,
        damaged=damaged_videos(saved.videos),
        config=config,
        name=saved.name,
        output=output,
        per_class=per_class,
    )
    known = metrics.operating_point if metrics else None
    draw(results, videos=videos, path=output / PICTURE_FILE, title=saved.name, known=known)


def report(
    results: Results,
    *,
    videos: Sequence[Video],
    damaged: Mapping[str, str],
    config: Config,
    name: str,
    output: Path,
    per_class: bool,
) -> Metrics | None:
    """Save detections; print and save the metrics, unless no action is annotated (as in challenges)."""
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / DETECTIONS_FILE, results, damaged=damaged)
    for line in damaged.values():
        tqdm.write(f"warning: {line}")
    written, metrics = [DETECTIONS_FILE], None
    what = f"{name} on {len(videos)} videos of subset {config.data.test_subset}"
    if any(video.actions for video in videos):
        metrics = measure(results, videos=videos, config=config)
        write_metrics(output, metrics)
        written += [METRICS_FILE, PER_CLASS_FILE]
        tqdm.write(f"{what}\n{metrics.table()}\n{metrics.operating_point or 'no detection is correct'}")
        if per_class:
            tqdm.write(metrics.per_class_table())
    else:
        for stale in (METRICS_FILE, PER_CLASS_FILE):
            (output / stale).unlink(missing_ok=True)
        tqdm.write(f"{what}: no action is annotated, so detections are not measured")
    tqdm.write(f"written: {output}/{', '.join(written)}")
    return metrics


def draw(results: Results, *, videos: Sequence[Video], path: Path, title: str, known: OperatingPoint | None) -> None:
    """Draw ground truth and detections, from the score of the best F1 on, of the first few videos."""
    shown, drawn = ShownFrom.choose(None, known), videos[:PICTURE_VIDEOS]
    records = [record for video in drawn for record in results[video.name]]
    heading = f"{title}: of {len(records)} detections {shown.summary(records)}"

    def timelines() -> None:
        from adatad_ds.evaluation.plots.timelines import TimelineVideo, draw_timeline  # one rank alone draws

        first = [TimelineVideo.of(video, list(filter(shown.passes, results[video.name]))) for video in drawn]
        draw_timeline(path, videos=first, title=heading)

    path.unlink(missing_ok=True)
    if try_to_draw(str(path), timelines, report=tqdm.write):
        tqdm.write(f"drawn: {path}")
