"""Evaluate a run or one of its checkpoints: detections.json and the mAP table; of recognition, the accuracies.

    python adatad_ds/evaluate.py runs/NAME [--set section.key=value]
    python adatad_ds/evaluate.py EXPORT.safetensors
    python adatad_ds/evaluate.py PUBLISHED.pth --recipe NAME
    python adatad_ds/evaluate.py RAW.npz --set test.sigma=0.5   (what --save-raw kept: suppression and metrics again)

Under deepspeed or torchrun, windows are spread over the ranks. Each rank holds the whole model in the compute type.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from adatad_ds import config as configuration
from adatad_ds.class_order import describe_logits
from adatad_ds.config import Config, ConfigError, ParallelConfig
from adatad_ds.data.annotations import DataError, Video, load_annotations
from adatad_ds.data.dataset import WindowDataset
from adatad_ds.data.loader import make_test_loader
from adatad_ds.data.video_lists import class_assignments
from adatad_ds.evaluation.figures import try_to_draw
from adatad_ds.evaluation.metrics import Metrics
from adatad_ds.evaluation.operating_point import OperatingPoint, ShownFrom
from adatad_ds.evaluation.pictures import TimelineVideo, draw_timeline
from adatad_ds.evaluation.raw import RawDetections, read_raw, write_raw
from adatad_ds.evaluation.recognition import PREDICTIONS_FILE
from adatad_ds.evaluation.results import write_results
from adatad_ds.evaluation.tables import write_per_class
from adatad_ds.inference import Results, damaged_videos, external_scores, find_candidates, finish, measure
from adatad_ds.parallel import World, end_process, report_error
from adatad_ds.pretrained import in_published_order
from adatad_ds.recognition_task import (
    make_clip_loader,
    measure_recognition,
    open_clips,
    recognise,
    save_predictions,
)
from adatad_ds.runs import METRICS_FILE, RESULTS_FILE
from adatad_ds.temporal import Mesh
from adatad_ds.trained import Trained, find_trained, load_model, store_operating_point
from adatad_ds.utf8 import use_utf8

PICTURE_FILE = "detections.png"
PER_CLASS_FILE = "per_class.csv"
RAW_FILE = "raw.npz"
FIXED_IN_RAW = ("test.batch", "test.pre_nms_thresh", "test.pre_nms_topk")  # had their effect before the file was kept
PICTURE_VIDEOS = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    try:
        overrides = [*arguments.set, *class_assignments(arguments.classes)]
        if arguments.path.suffix == ".npz":
            raw = read_raw(arguments.path)
            world = World.join()
            evaluate_again(
                raw,
                overrides=overrides,
                output=arguments.output or arguments.path.parent,
                world=world,
                per_class=arguments.per_class,
            )
            return 0
        found = find_trained(arguments.path, recipe=arguments.recipe, overrides=overrides, raw=arguments.raw)
        if found.config.recognition and arguments.save_raw:
            raise ConfigError("--save-raw keeps candidates of detection; this is a model of recognition")
        world = World.join(worker_timeout_sec=found.config.data.worker_timeout_sec)
        chosen = world.on_main(lambda: found.source)  # of a run that still trains, ranks may have found different ones
        trained = world.attempt(
            lambda: (
                found
                if found.source == chosen
                else find_trained(chosen, recipe=arguments.recipe, overrides=overrides, raw=arguments.raw)
            )
        )
        output = arguments.output or trained.folder / "evaluate"
        if trained.config.recognition:
            evaluate_recognition(trained, output=output, world=world, per_class=arguments.per_class)
            return 0
        evaluate(trained, output=output, world=world, save_raw=arguments.save_raw, per_class=arguments.per_class)
    except (ConfigError, DataError) as error:
        report_error(error)
        return 2
    finally:
        if world is not None:
            world.leave()
    return 0


def evaluate(trained: Trained, *, output: Path, world: World, save_raw: bool = False, per_class: bool = False) -> None:
    """Detect in all test videos, then print and save detections, metrics and a picture.

    Args:
        trained: the detector.
        output: the folder for files.
        world: the ranks.
        save_raw: keep the candidates before suppression too.
        per_class: print every class's AP; they are saved in any case.
    """
    config = replace(trained.config, parallel=ParallelConfig())  # every rank takes whole windows
    published = trained.learnt is None
    if published:
        config = in_published_order(config, order=trained.class_order)
    data = WindowDataset.for_testing(config.data, classes=trained.classes)
    if published and world.is_main and not config.data.class_agnostic:
        tqdm.write(describe_logits(data.classes))
    external = external_scores(config, videos=data.videos, classes=data.classes)
    detector = world.attempt(lambda: load_model(trained, num_classes=len(data.classes))).to(world.device)
    loader = make_test_loader(
        data,
        config=config.data,
        batch=config.test.batch,
        rank=world.rank,
        ranks=world.size,
        pin_memory=world.device.type == "cuda",
    )
    candidates = find_candidates(
        forward=detector,
        batches=tqdm(loader, desc="windows", unit="batch", disable=not world.is_main, dynamic_ncols=True),
        config=config,
        mesh=Mesh(world=world, config=config),
        report=tqdm.write if world.is_main else lambda message: None,
    )
    if save_raw:
        kept = RawDetections(name=trained.name, config=config.to_dict(), classes=data.classes, videos=candidates)
        world.on_main(lambda: save_candidates(output / RAW_FILE, kept))
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
        name=trained.name,
        output=output,
        per_class=per_class,
    )
    point = metrics.operating_point if metrics else trained.operating_point
    if metrics and point and external is None:  # with external classes, scores are not the detector's own
        keep_operating_point(trained, point)
    draw(results, videos=data.videos, path=output / PICTURE_FILE, title=trained.name, known=point)


def save_candidates(path: Path, raw: RawDetections) -> None:
    """Write candidates before suppression, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raw(path, raw)
    tqdm.write(f"written: {path}")


def keep_operating_point(trained: Trained, point: OperatingPoint) -> None:
    """Store the score of the best F1 with what was evaluated, where predict.py finds it, and say so."""
    try:
        stored = store_operating_point(trained, point)
    except OSError as error:
        tqdm.write(f"warning: the score of the best F1 could not be stored: {error}")
        return
    where = f"stored in {stored}" if stored else "a published file stays as it is"
    use = "predict.py shows detections from there on" if stored else f"predict.py --score {point.score:g} shows them"
    tqdm.write(f"{where}: {use}")


def evaluate_recognition(trained: Trained, *, output: Path, world: World, per_class: bool = False) -> None:
    """Recognise all test videos, then print and save predictions and accuracies.

    Args:
        trained: the model.
        output: the folder for files.
        world: the ranks.
        per_class: print every class's accuracy; they are saved in any case.
    """
    config = trained.config
    data = open_clips(config, training=False, classes=trained.classes)
    model = world.attempt(lambda: load_model(trained, num_classes=len(data.classes))).to(world.device)
    logits, damaged = recognise(
        forward=model,
        batches=tqdm(
            make_clip_loader(data, config=config, world=world),
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
    (output / METRICS_FILE).write_text(json.dumps(recognition.to_dict(), indent=1) + "\n", encoding="utf-8")
    write_per_class(output / PER_CLASS_FILE, recognition.per_class())
    tqdm.write(f"{trained.name}\n{recognition.table()}")
    if per_class:
        tqdm.write(recognition.per_class_table())
    tqdm.write(f"written: {output}/{PREDICTIONS_FILE}, {METRICS_FILE}, {PER_CLASS_FILE}")


def evaluate_again(
    raw: RawDetections, *, overrides: Sequence[str], output: Path, world: World, per_class: bool = False
) -> None:
    """As `evaluate`, from candidates that it kept, without the detector and the videos' files.

    Args:
        raw: what was kept.
        overrides: `section.key=value` changes of its config.
        output: the folder for files.
        world: the ranks.
        per_class: print every class's AP.

    Raises:
        ConfigError: overrides that would need the detector.
    """
    for assignment in overrides:
        name = assignment.partition("=")[0].strip()
        if name in FIXED_IN_RAW or not name.startswith(("test.", "data.annotations")):
            raise ConfigError(
                f"--set {assignment}: the candidates were found under another setting, which only the detector could "
                f"change; of kept ones, data.annotations and test.* but for {', '.join(FIXED_IN_RAW)} can be"
            )
    config = configuration.override(configuration.from_dict(raw.config), overrides)
    data = config.data
    annotations, _ = load_annotations(
        data.annotations,
        subset=data.test_subset,
        classes=data.classes,
        exclude=data.exclude,
        exclude_file=data.exclude_file,
        as_published=True,
    )
    results = finish(
        raw.videos,
        videos=[video.name for video in annotations.videos],
        classes=raw.classes,
        config=config,
        world=world,
        external=external_scores(config, videos=annotations.videos, classes=raw.classes),
    )
    if not world.is_main:
        return
    videos = annotations.videos
    metrics = report(
        results,
        videos=videos,
        damaged=damaged_videos(raw.videos),
        config=config,
        name=raw.name,
        output=output,
        per_class=per_class,
    )
    known = metrics.operating_point if metrics else None
    draw(results, videos=videos, path=output / PICTURE_FILE, title=raw.name, known=known)


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
    """Save detections; print and save the metrics, unless nothing is annotated (a challenge's videos)."""
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / RESULTS_FILE, results, damaged=damaged)
    for line in damaged.values():
        tqdm.write(f"warning: {line}")
    written, metrics = [RESULTS_FILE], None
    what = f"{name} on {len(videos)} videos of subset {config.data.test_subset}"
    if any(video.actions for video in videos):
        metrics = measure(results, videos=videos, config=config)
        (output / METRICS_FILE).write_text(json.dumps(metrics.to_dict(), indent=1) + "\n", encoding="utf-8")
        write_per_class(output / PER_CLASS_FILE, metrics.per_class())
        written += [METRICS_FILE, PER_CLASS_FILE]
        tqdm.write(f"{what}\n{metrics.table()}\n{metrics.operating_point or 'no detection is true'}")
        if per_class:
            tqdm.write(metrics.per_class_table())
    else:
        for stale in (METRICS_FILE, PER_CLASS_FILE):
            (output / stale).unlink(missing_ok=True)
        tqdm.write(f"{what}: no action is annotated, so detections are not measured")
    tqdm.write(f"written: {output}/{', '.join(written)}")
    return metrics


def draw(results: Results, *, videos: Sequence[Video], path: Path, title: str, known: OperatingPoint | None) -> None:
    """A picture of ground truth and of the detections from the best F1's score on, of the first few videos."""
    shown, some = ShownFrom.choose(None, known), videos[:PICTURE_VIDEOS]
    first = [
        TimelineVideo(
            name=video.name,
            duration_sec=video.duration_sec,
            ground_truth=[(action.start_sec, action.end_sec, action.label) for action in video.actions],
            detections=list(filter(shown.passes, results[video.name])),
        )
        for video in some
    ]
    records = [record for video in some for record in results[video.name]]
    heading = f"{title}: of {len(records)} detections {shown.summary(records)}"
    path.unlink(missing_ok=True)
    if try_to_draw(str(path), lambda: draw_timeline(path, videos=first, title=heading), report=tqdm.write):
        tqdm.write(f"drawn: {path}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Evaluate a trained detector or recogniser.", allow_abbrev=False)
    parser.add_argument(
        "path",
        type=Path,
        help="a run (its best checkpoint, else the newest), a checkpoint, an export, a published .pth, a raw.npz",
    )
    parser.add_argument("--recipe", help="what a published checkpoint was trained by; see train.py --list-recipes")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names in the order of the logits, one a line, where unknown"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the config")
    parser.add_argument("--output", type=Path, help="where results go; default: evaluate/ beside what is evaluated")
    parser.add_argument("--per-class", action="store_true", help="print every class's AP, too")
    parser.add_argument(
        "--save-raw", action="store_true", help=f"keep the candidates before suppression in {RAW_FILE}, to evaluate it"
    )
    parser.add_argument("--raw", action="store_true", help="the trained weights, not their running average")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(argv)


if __name__ == "__main__":
    use_utf8()
    end_process(main())
