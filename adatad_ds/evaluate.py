"""Evaluate a run or one of its checkpoints: detections.json and the mAP table.

    python adatad_ds/evaluate.py runs/NAME [--set section.key=value]
    python adatad_ds/evaluate.py EXPORT.safetensors
    python adatad_ds/evaluate.py PUBLISHED.pth --recipe NAME

Under deepspeed or torchrun, windows are spread over the ranks. Each rank holds the whole model in the compute type.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from adatad_ds.config import ConfigError, ParallelConfig
from adatad_ds.data.annotations import DataError
from adatad_ds.data.dataset import WindowDataset
from adatad_ds.data.loader import make_test_loader
from adatad_ds.evaluation.pictures import TimelineVideo, draw_timeline
from adatad_ds.evaluation.results import write_results
from adatad_ds.inference import Results, detect, measure
from adatad_ds.parallel import World, speaks
from adatad_ds.runs import METRICS_FILE, RESULTS_FILE
from adatad_ds.temporal import Mesh
from adatad_ds.trained import Trained, find_trained, load_detector

PICTURE_FILE = "detections.png"
PICTURE_VIDEOS = 6
PICTURE_SCORE = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    try:
        trained = find_trained(arguments.path, recipe=arguments.recipe, overrides=arguments.set, raw=arguments.raw)
        world = World.join()
        evaluate(trained, output=arguments.output or trained.folder / "evaluate", world=world)
    except (ConfigError, DataError) as error:
        if speaks():
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        if world is not None:
            world.leave()
    return 0


def evaluate(trained: Trained, *, output: Path, world: World) -> None:
    """Detect in all test videos, then print and save detections, metrics and a picture."""
    config = replace(trained.config, parallel=ParallelConfig())  # every rank takes whole windows
    data = WindowDataset.for_testing(config.data, classes=trained.classes)
    detector = world.attempt(lambda: load_detector(trained, num_classes=len(data.classes))).to(world.device)
    loader = make_test_loader(
        data,
        config=config.data,
        batch=config.test.batch,
        rank=world.rank,
        ranks=world.size,
        pin_memory=world.device.type == "cuda",
    )

    def say(message: str) -> None:
        if world.is_main:
            tqdm.write(message)

    results = detect(
        forward=detector,
        batches=tqdm(loader, desc="windows", unit="batch", disable=not world.is_main, dynamic_ncols=True),
        videos=[video.name for video in data.videos],
        classes=data.classes,
        config=config,
        mesh=Mesh(world=world, config=config),
        report=say,
    )
    if not world.is_main:
        return
    metrics = measure(results, videos=data.videos, config=config)
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / RESULTS_FILE, results)
    (output / METRICS_FILE).write_text(json.dumps(metrics.to_dict(), indent=1) + "\n")
    draw(results, data=data, path=output / PICTURE_FILE, title=trained.name)
    say(f"{trained.name} on {len(data.videos)} videos of subset {config.data.test_subset}\n{metrics.table()}")
    say(f"written: {output}/{RESULTS_FILE}, {METRICS_FILE}, {PICTURE_FILE}")


def draw(results: Results, *, data: WindowDataset, path: Path, title: str) -> None:
    """A picture of ground truth and confident detections of the first few videos."""
    videos = [
        TimelineVideo(
            name=video.name,
            duration_sec=video.duration_sec,
            ground_truth=[(action.start_sec, action.end_sec, action.label) for action in video.actions],
            detections=[record for record in results[video.name] if record["score"] >= PICTURE_SCORE],
        )
        for video in data.videos[:PICTURE_VIDEOS]
    ]
    draw_timeline(path, videos=videos, title=f"{title}, scores from {PICTURE_SCORE}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Evaluate a trained detector.", allow_abbrev=False)
    parser.add_argument(
        "path",
        type=Path,
        help="a run (its best checkpoint, else the newest), a checkpoint, an export, a published .pth",
    )
    parser.add_argument("--recipe", help="what a published checkpoint was trained by; see train.py --list-recipes")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the config")
    parser.add_argument("--output", type=Path, help="where results go; default: evaluate/ beside what is evaluated")
    parser.add_argument("--raw", action="store_true", help="the trained weights, not their running average")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
