"""Evaluate a run or one of its checkpoints: detections.json and the mAP table, or accuracies for recognition.

    python adatad_ds/evaluate.py runs/NAME [--set section.key=value]
    python adatad_ds/evaluate.py EXPORT.safetensors
    python adatad_ds/evaluate.py PUBLISHED.pth --recipe NAME
    python adatad_ds/evaluate.py DETECTIONS.json --annotations FILE   (of whatever origin: the metrics alone)
    python adatad_ds/evaluate.py raw.npz --set test.sigma=0.5   (of --save-candidates; suppression and metrics again)
    python adatad_ds/evaluate.py A/raw.npz B/raw.npz --output FOLDER   (an ensemble: candidates of all, suppressed once)
    python adatad_ds/evaluate.py runs/A runs/B --output FOLDER   (averaged at each point, as OpenTAD's fuse_list)

Under deepspeed or torchrun, windows are spread over the ranks. Each rank holds the whole model in the compute type.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file from a clone: import the package, and hide its module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from adatad_ds.config.loading import check_once
from adatad_ds.data.labelled_videos import class_assignments
from adatad_ds.distributed.process import report_error, run_process
from adatad_ds.errors import ConfigError
from adatad_ds.system.collection import collection_paused
from adatad_ds.system.launch import has_launcher
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.training.preemption import end_with_launcher

if TYPE_CHECKING:
    from adatad_ds.distributed.world import World


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command; a user's error prints one paragraph and gives exit code 2."""
    arguments = make_parser(prog).parse_args(argv)
    world: World | None = None
    if has_launcher():
        end_with_launcher()
    with collection_paused():
        from adatad_ds.distributed.world import World  # PyTorch: seconds

    try:
        world = World.join()
        run(arguments, world=world)
        world.leave()
    except Exception as error:
        return report_error(error, world)
    return 0


def run(arguments: argparse.Namespace, *, world: World) -> None:
    """Find the model or candidates, and evaluate them."""
    with collection_paused():
        from adatad_ds.evaluation.candidates_file import read_candidates
        from adatad_ds.evaluation.ensemble import describe_fusion, fuse_candidates
        from adatad_ds.inference.evaluation import evaluate, evaluate_again, evaluate_recognition
        from adatad_ds.inference.trained_model import check_recipe, find_trained
        from adatad_ds.runs.checkpoint import find_checkpoint

    paths: list[Path] = arguments.paths
    path, *others = paths
    _check_paths(paths, output=arguments.output, weights=arguments.weights)
    _check_options(arguments)
    overrides = world.attempt(lambda: [*arguments.set, *class_assignments(arguments.classes)])
    for key, value in (("annotations", arguments.annotations), ("test_subset", arguments.subset)):
        overrides += [] if value is None else [f"data.{key}={value!r}"]
    if path.suffix == ".json":
        from adatad_ds.inference.any_detections import evaluate_detections

        output = arguments.output or path.parent / "evaluate"
        world.on_main(
            lambda: evaluate_detections(
                path, recipe=arguments.recipe, overrides=overrides, output=output, per_class=arguments.per_class
            )
        )
        return
    if path.suffix == ".npz":
        parts = world.attempt(lambda: [read_candidates(each) for each in paths])
        for line in describe_fusion(parts) if world.is_main else ():
            print(f"warning: {line}")
        evaluate_again(
            world.attempt(lambda: fuse_candidates(parts, weights=arguments.weights)) if others else parts[0],
            overrides=overrides,
            output=arguments.output or path.parent,
            world=world,
            per_class=arguments.per_class,
        )
        return
    # A running training may save a newer checkpoint between the looks of two ranks.
    found = world.on_main(lambda: [find_checkpoint(each) if each.is_dir() else each for each in paths])
    trained, *more = world.attempt(
        lambda: [
            find_trained(each, recipe=arguments.recipe, overrides=overrides, averaged=not arguments.no_ema)
            for each in found
        ]
    )
    check_recipe(arguments.recipe, [trained, *more])
    world.allow(hang_timeout_sec=trained.config.train.hang_timeout_sec)
    output = arguments.output or trained.folder / "evaluate"
    if trained.config.recognition:
        if more:
            raise ConfigError("only detection models can be averaged; these are recognition models")
        if arguments.save_candidates:
            raise ConfigError("--save-candidates is for detection; this is a recognition model")
        evaluate_recognition(trained, output=output, world=world, per_class=arguments.per_class)
    else:
        evaluate(
            trained,
            others=more,
            output=output,
            world=world,
            save_candidates=arguments.save_candidates,
            per_class=arguments.per_class,
        )


def _check_paths(paths: Sequence[Path], *, output: Path | None, weights: Sequence[float]) -> None:
    """Raises ConfigError where several files are no ensemble, or weights do not belong to them."""
    if len(paths) > 1:
        kinds = {path.suffix if path.suffix in (".npz", ".json") else "" for path in paths}
        if len(kinds) > 1 or ".json" in kinds:
            raise ConfigError(
                "an ensemble consists only of raw.npz files (candidates from --save-candidates, suppressed together) "
                "or only of models (averaged at each point)"
            )
        if output is None:
            raise ConfigError("an ensemble needs --output FOLDER for its results")
    if weights and (len(weights) != len(paths) or len(paths) == 1 or paths[0].suffix != ".npz"):
        raise ConfigError(
            f"--weights takes a positive number for each of several raw.npz; got {len(weights)} for {len(paths)}"
        )
    if wrong := [weight for weight in weights if not 0 < weight < math.inf]:  # NaN is in no range
        raise ConfigError(f"--weights takes positive numbers, not {wrong[0]:g}; leave out a file that should not count")


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options that would change nothing, and for two that say the same."""
    path: Path = arguments.paths[0]
    of_model = {"--no-ema": arguments.no_ema, "--save-candidates": arguments.save_candidates}
    if path.suffix == ".json" and (given := [option for option, value in of_model.items() if value]):
        raise ConfigError(f"{given[0]} is for models; {path} holds finished detections")
    of_model["--recipe"] = arguments.recipe is not None
    if path.suffix == ".npz" and (given := [option for option, value in of_model.items() if value]):
        raise ConfigError(f"{given[0]} is for models; {path} holds candidates, and the settings of their model")
    for option, key in (("classes", "classes"), ("annotations", "annotations"), ("subset", "test_subset")):
        if getattr(arguments, option) is not None:
            check_once(arguments.set, option=f"--{option}", key=f"data.{key}")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; `prog`: the command's name in messages, by default this file's."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Evaluate a trained detector or recogniser.", allow_abbrev=False
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        type=Path,
        help="a run (its best checkpoint, else the newest), a checkpoint, an export, a published .pth, detections in a "
        ".json, or raw.npz files of --save-candidates; several raw.npz, or several models, make an ensemble",
    )
    parser.add_argument(
        "--recipe", help="recipe of a published checkpoint or of detections; see train.py --list-recipes"
    )
    parser.add_argument("--annotations", metavar="FILE", help="same as --set data.annotations=FILE")
    parser.add_argument("--subset", metavar="NAME", help="same as --set data.test_subset=NAME")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="file of class names in the order of the logits, one per line, if they are unknown",
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    parser.add_argument("--output", type=Path, help="folder for the results; default: evaluate/ next to the model")
    parser.add_argument("--per-class", action="store_true", help="also print every class's AP")
    parser.add_argument(
        "--save-candidates",
        action="store_true",
        help="also save the candidates before suppression as raw.npz, to evaluate them again",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=[],
        metavar="W",
        help="for an ensemble: factors on the scores of each file",
    )
    parser.add_argument("--no-ema", action="store_true", help="use the last weights, not their running average (EMA)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser


if __name__ == "__main__":
    use_utf8()
    run_process(main)
