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
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from adatad_ds import config as configuration
from adatad_ds.checkpoint import find_checkpoint
from adatad_ds.config import Config, ConfigError, ParallelConfig
from adatad_ds.data.annotations import Video, load_annotations
from adatad_ds.data.dataset import WindowDataset
from adatad_ds.data.loader import make_test_loader
from adatad_ds.evaluation.pictures import TimelineVideo, draw_timeline
from adatad_ds.evaluation.raw import RawDetections, read_raw, write_raw
from adatad_ds.evaluation.recognition import PREDICTIONS_FILE
from adatad_ds.evaluation.results import write_per_class, write_results
from adatad_ds.inference import Results, external_scores, find_candidates, finish, measure
from adatad_ds.launch import has_launcher
from adatad_ds.parallel import World
from adatad_ds.preemption import follow_launcher
from adatad_ds.process import report_error, run_process
from adatad_ds.recognition_task import (
    make_clip_loader,
    measure_recognition,
    open_clips,
    recognise,
    save_predictions,
)
from adatad_ds.runs import METRICS_FILE, RESULTS_FILE
from adatad_ds.temporal import Mesh
from adatad_ds.trained import Trained, find_trained, load_model

PICTURE_FILE = "detections.png"
PER_CLASS_FILE = "per_class.csv"
RAW_FILE = "raw.npz"
FIXED_IN_RAW = ("test.batch", "test.pre_nms_thresh", "test.pre_nms_topk")  # had their effect before the file was kept
PICTURE_VIDEOS = 6
PICTURE_SCORE = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    if has_launcher():
        follow_launcher(lambda: os._exit(128 + signal.SIGTERM))
    try:
        world = World.join()
        run(arguments, world=world)
        world.leave()
    except Exception as error:
        return report_error(error, world)
    return 0


def run(arguments: argparse.Namespace, *, world: World) -> None:
    """Find what is named, and evaluate it."""
    path: Path = arguments.path
    if path.suffix == ".npz":
        evaluate_again(
            world.attempt(lambda: read_raw(path)),
            overrides=arguments.set,
            output=arguments.output or path.parent,
            world=world,
            per_class=arguments.per_class,
        )
        return
    # A training beside may save a newer checkpoint between two ranks' looks.
    path = world.on_main(lambda: find_checkpoint(path) if path.is_dir() else path)
    trained = world.attempt(
        lambda: find_trained(path, recipe=arguments.recipe, overrides=arguments.set, raw=arguments.raw)
    )
    if trained.config.recognition and arguments.save_raw:
        raise ConfigError("--save-raw keeps candidates of detection; this is a model of recognition")
    world.allow(hang_timeout_sec=trained.config.train.hang_timeout_sec)
    output = arguments.output or trained.folder / "evaluate"
    if trained.config.recognition:
        evaluate_recognition(trained, output=output, world=world, per_class=arguments.per_class)
    else:
        evaluate(trained, output=output, world=world, save_raw=arguments.save_raw, per_class=arguments.per_class)


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
    data = world.attempt(lambda: WindowDataset.for_testing(config.data, classes=trained.classes))
    world.same((len(data), data.videos), what="data")
    external = world.attempt(lambda: external_scores(config, videos=data.videos, classes=data.classes))
    detector = world.attempt(lambda: load_model(trained, num_classes=len(data.classes))).to(world.device)
    loader = world.attempt(
        lambda: make_test_loader(
            data,
            config=config.data,
            batch=config.test.batch,
            rank=world.rank,
            ranks=world.size,
            pin_memory=world.device.type == "cuda",
        )
    )
    candidates = find_candidates(
        forward=detector,
        batches=tqdm(loader, desc="windows", unit="batch", disable=not world.is_main, dynamic_ncols=True),
        config=config,
        mesh=Mesh(world=world, config=config),
        report=tqdm.write if world.is_main else lambda message: None,
    )
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
    if save_raw:
        output.mkdir(parents=True, exist_ok=True)
        write_raw(
            output / RAW_FILE,
            RawDetections(name=trained.name, config=config.to_dict(), classes=data.classes, videos=candidates),
        )
        tqdm.write(f"written: {output / RAW_FILE}")
    report(results, videos=data.videos, config=config, name=trained.name, output=output, per_class=per_class)


def evaluate_recognition(trained: Trained, *, output: Path, world: World, per_class: bool = False) -> None:
    """Recognise all test videos, then print and save predictions and accuracies.

    Args:
        trained: the model.
        output: the folder for files.
        world: the ranks.
        per_class: print every class's accuracy; they are saved in any case.
    """
    config = trained.config
    data = world.attempt(lambda: open_clips(config, training=False, classes=trained.classes))
    world.same((len(data), data.videos), what="data")
    model = world.attempt(lambda: load_model(trained, num_classes=len(data.classes))).to(world.device)
    logits = recognise(
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
    save_predictions(logits, data=data, folder=output)
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
    annotations, _ = world.attempt(
        lambda: load_annotations(
            data.annotations, subset=data.test_subset, classes=data.classes, exclude=data.exclude, as_published=True
        )
    )
    results = finish(
        raw.videos,
        videos=[video.name for video in annotations.videos],
        classes=raw.classes,
        config=config,
        world=world,
        external=world.attempt(lambda: external_scores(config, videos=annotations.videos, classes=raw.classes)),
    )
    if world.is_main:
        report(results, videos=annotations.videos, config=config, name=raw.name, output=output, per_class=per_class)


def report(
    results: Results, *, videos: Sequence[Video], config: Config, name: str, output: Path, per_class: bool
) -> None:
    """Save detections and a picture; print and save the metrics, unless nothing is annotated (a challenge's videos)."""
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / RESULTS_FILE, results)
    draw(results, videos=videos, path=output / PICTURE_FILE, title=name)
    written = [RESULTS_FILE, PICTURE_FILE]
    what = f"{name} on {len(videos)} videos of subset {config.data.test_subset}"
    if any(video.actions for video in videos):
        metrics = measure(results, videos=videos, config=config)
        (output / METRICS_FILE).write_text(json.dumps(metrics.to_dict(), indent=1) + "\n", encoding="utf-8")
        write_per_class(output / PER_CLASS_FILE, metrics.per_class())
        written += [METRICS_FILE, PER_CLASS_FILE]
        tqdm.write(f"{what}\n{metrics.table()}")
        if per_class:
            tqdm.write(metrics.per_class_table())
    else:
        for stale in (METRICS_FILE, PER_CLASS_FILE):
            (output / stale).unlink(missing_ok=True)
        tqdm.write(f"{what}: no action is annotated, so detections are not measured")
    tqdm.write(f"written: {output}/{', '.join(written)}")


def draw(results: Results, *, videos: Sequence[Video], path: Path, title: str) -> None:
    """A picture of ground truth and confident detections of the first few videos."""
    first = [
        TimelineVideo(
            name=video.name,
            duration_sec=video.duration_sec,
            ground_truth=[(action.start_sec, action.end_sec, action.label) for action in video.actions],
            detections=[record for record in results[video.name] if record["score"] >= PICTURE_SCORE],
        )
        for video in videos[:PICTURE_VIDEOS]
    ]
    draw_timeline(path, videos=first, title=f"{title}, scores from {PICTURE_SCORE}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Evaluate a trained detector or recogniser.", allow_abbrev=False)
    parser.add_argument(
        "path",
        type=Path,
        help="a run (its best checkpoint, else the newest), a checkpoint, an export, a published .pth, a raw.npz",
    )
    parser.add_argument("--recipe", help="what a published checkpoint was trained by; see train.py --list-recipes")
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
    run_process(main)
