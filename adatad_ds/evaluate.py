"""Evaluate a run or one of its checkpoints: detections.json and the mAP table.

    python adatad_ds/evaluate.py runs/NAME [--set section.key=value]

Under deepspeed or torchrun, windows are spread over the ranks. Each rank holds the whole model in the compute type.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file from a clone: make the package importable, and hide our module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tqdm import tqdm

from adatad_ds import config as configuration
from adatad_ds.checkpoint import find_checkpoint, frozen_fingerprint, load_checkpoint
from adatad_ds.config import Config, ConfigError
from adatad_ds.data.annotations import DataError
from adatad_ds.data.dataset import WindowDataset
from adatad_ds.data.loader import make_test_loader
from adatad_ds.evaluation.pictures import TimelineVideo, draw_timeline
from adatad_ds.evaluation.results import write_results
from adatad_ds.inference import Results, detect, measure
from adatad_ds.models.detector import Detector, build_detector
from adatad_ds.parallel import World, speaks
from adatad_ds.pretrained import load_backbone_weights
from adatad_ds.runs import METRICS_FILE, RESULTS_FILE, RunFolder

PICTURE_FILE = "detections.png"
PICTURE_VIDEOS = 6
PICTURE_SCORE = 0.3
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main(argv: Sequence[str] | None = None) -> int:
    """Run; what the user got wrong ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    world = None
    try:
        checkpoint = find_checkpoint(arguments.path)
        run = RunFolder(checkpoint.parents[1])
        config, classes = run.read()
        config = configuration.override(config, arguments.set)
        world = World.join()
        output = arguments.output or run.path / "evaluate"
        evaluate(config, classes=classes, checkpoint=checkpoint, output=output, raw=arguments.raw, world=world)
    except (ConfigError, DataError) as error:
        if speaks():
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        if world is not None:
            world.leave()
    return 0


def evaluate(
    config: Config, *, classes: Sequence[str], checkpoint: Path, output: Path, raw: bool, world: World
) -> None:
    """Detect in all test videos, then print and save detections, metrics and a picture."""
    data = WindowDataset.for_testing(config.data, classes=classes)
    detector = load_detector(config, num_classes=len(classes), checkpoint=checkpoint, raw=raw).to(world.device)
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
        classes=classes,
        config=config,
        world=world,
        report=say,
    )
    if not world.is_main:
        return
    metrics = measure(results, videos=data.videos, config=config)
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / RESULTS_FILE, results)
    (output / METRICS_FILE).write_text(json.dumps(metrics.to_dict(), indent=1) + "\n")
    draw(results, data=data, path=output / PICTURE_FILE, title=f"{checkpoint.parents[1].name}, {checkpoint.name}")
    say(f"{checkpoint} on {len(data.videos)} videos of subset {config.data.test_subset}\n{metrics.table()}")
    say(f"written: {output}/{RESULTS_FILE}, {METRICS_FILE}, {PICTURE_FILE}")


def load_detector(config: Config, *, num_classes: int, checkpoint: Path, raw: bool) -> Detector:
    """The detector of a checkpoint, for inference on the CPU, in the config's compute type.

    Args:
        config: the run's config.
        num_classes: K.
        checkpoint: a checkpoint's folder.
        raw: take the trained weights rather than their running average.

    Raises:
        ConfigError: the frozen weights are not those of the training.
    """
    torch.manual_seed(config.train.seed)  # as in training, for a backbone without pretrained weights
    detector = build_detector(config, num_classes=num_classes)
    if config.backbone.weights is not None:
        load_backbone_weights(detector.backbone.vit, config.backbone.weights)
    learnt, state = load_checkpoint(checkpoint)
    if state["frozen_fingerprint"] != frozen_fingerprint(detector):
        raise ConfigError(
            f"{checkpoint} was trained on other frozen weights than those of backbone.weights={config.backbone.weights}"
        )
    detector.load_state_dict(learnt["master" if raw or "average" not in learnt else "average"], strict=False)
    return detector.to(DTYPES[config.train.precision]).eval()


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
    parser.add_argument("path", type=Path, help="a run's folder (its best checkpoint, else the newest) or a checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the config")
    parser.add_argument("--output", type=Path, help="where results go; default RUN/evaluate")
    parser.add_argument("--raw", action="store_true", help="the trained weights, not their running average")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
