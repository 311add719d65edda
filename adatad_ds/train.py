"""Train a detector or a recogniser.

    deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero3_offload.json --recipe NAME [--set SECTION.KEY=V]

Also works under torchrun, srun and plain python.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file from a clone: import the package, and hide its module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.data.labelled_videos import class_assignments
from adatad_ds.distributed.ds_config import read_ds_config
from adatad_ds.distributed.process import report_error, run_process
from adatad_ds.distributed.world import World
from adatad_ds.models.factory import build_model
from adatad_ds.planning.memory import make_plan
from adatad_ds.recipes.catalog import config_diff, find_recipe, recipe_table
from adatad_ds.runs.folder import RunFolder
from adatad_ds.runs.lock import RunLock
from adatad_ds.system.launch import has_launcher, launched_rank, launched_ranks
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.training.build import Session, build_trainer
from adatad_ds.training.initial_model import weights_reports
from adatad_ds.training.optim import parameter_table
from adatad_ds.training.preemption import StopRequest
from adatad_ds.training.profiling import parse_profile
from adatad_ds.weights.files import is_to_download
from adatad_ds.weights.loading import find_weights, published_state

DEFAULT_DS_CONFIG = Path(__file__).resolve().parents[1] / "ds_configs" / "zero3_offload.json"


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command; a user's error prints one paragraph and gives exit code 2."""
    arguments = parse_arguments(argv, prog=prog)
    world = None
    stop = StopRequest(launched=has_launcher(), rank=launched_rank())
    try:
        if arguments.deepspeed_config is DEFAULT_DS_CONFIG and launched_rank() == 0:
            print(f"--deepspeed_config without a file: using {DEFAULT_DS_CONFIG}", file=sys.stderr)
        if arguments.list_recipes or arguments.print_config or arguments.diff or arguments.dry_run:
            for text in inform(arguments):
                _show(text)
            return 0
        world = World.join()
        config, ds_config = world.attempt(lambda: read_settings(arguments))
        world.same((config, ds_config), what="settings (recipe, --set, DeepSpeed config)")
        world.allow(hang_timeout_sec=config.train.hang_timeout_sec)
        with stop.listening(timeout_sec=config.train.stop_timeout_sec):
            train(config, ds_config, arguments=arguments, world=world, stop=stop)
        world.leave()
    except Exception as error:
        return report_error(error, world)
    return 0


def inform(arguments: argparse.Namespace) -> Iterator[str]:
    """Output of the options that print something instead of training; the parts before an error are still printed."""
    if arguments.list_recipes:
        yield recipe_table()
        return
    config = recipe_config(arguments)
    if arguments.print_config:
        yield json.dumps(config.to_dict(), indent=1)
    elif arguments.diff:
        yield config_diff(config, find_recipe(arguments.diff).config)
    else:
        yield dry_run(config, arguments.deepspeed_config)
        yield weights_that_fit(config)


def recipe_config(arguments: argparse.Namespace) -> Config:
    """The recipe's config with the command line's changes."""
    return loading.override(
        find_recipe(arguments.recipe).config, [*arguments.set, *class_assignments(arguments.classes)]
    )


def read_settings(arguments: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The config, and the ds_config as in its file."""
    if arguments.profile:
        parse_profile(arguments.profile)  # report errors early
    return recipe_config(arguments), read_ds_config(arguments.deepspeed_config)


def train(
    config: Config, ds_config: Mapping[str, Any], *, arguments: argparse.Namespace, world: World, stop: StopRequest
) -> None:
    """Build the trainer and run it; nothing stays alive when this returns."""
    run = RunFolder(arguments.run_dir or Path("runs") / arguments.recipe)
    lock = RunLock(run.path)  # rank 0 holds it
    try:
        stale = world.on_main(lock.take)
        trainer = build_trainer(
            config,
            ds_config,
            class_order=find_recipe(arguments.recipe).class_order,
            resume=arguments.resume == "auto",
            session=Session(run=run, lock=lock, world=world, stop=stop, profile=arguments.profile),
        )
        if stale:
            trainer.monitor.say(f"the lock of {run.path} was taken over from {stale}")
        trainer.run()
        trainer.report_evaluations()
        trainer.report_memory()
        trainer.close()
    finally:
        lock.release()


def dry_run(config: Config, ds_config: Path | None) -> str:
    """Parameters by kind and, given a ds_config, the memory that each launched rank will need."""
    classes = len(config.data.classes) or 1
    with torch.device("meta"):
        parameters = parameter_table(build_model(config, num_classes=classes))
    if ds_config is None:
        return parameters
    plan = make_plan(config, ds_config=read_ds_config(ds_config), ranks=launched_ranks(), num_classes=classes)
    return f"{parameters}\n\n{plan.table()}"


def weights_that_fit(config: Config) -> str:
    """Report on a config's weights from names and shapes alone, the same as when loading them.

    Raises:
        ConfigError: as `find_weights` and `published_state`: missing, unreadable, or of another model.
    """
    source, classes = config.backbone.weights, config.data.classes
    if source is not None and is_to_download(source):
        return f"weights: {source} is not in the hub's cache yet; whether it fits is checked once it is fetched"
    with torch.device("meta"):
        model = build_model(config, num_classes=len(classes) or 1)
    weights = find_weights(config.backbone, model.backbone.vit)
    if weights is None:
        return "weights: none, the transformer is randomly initialised"
    # Unnamed classes are those of the data, which are not read here: a classifier of any number may fit.
    reset_classifier = config.reset_classifier or not classes
    trainable = published_state(weights, model, config=config, reset_classifier=reset_classifier)
    what = "transformer, adapters and head" if trainable else "transformer"
    return "\n".join([*weights_reports(weights, config.backbone), f"weights: they fit the {what}"])


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; `prog`: the command's name in messages, by default this file's."""
    parser = argparse.ArgumentParser(prog=prog, description="Train a temporal action detector.", allow_abbrev=False)
    parser.add_argument("--recipe", help="name of an experiment; see --list-recipes")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names by index, one per line; default: the sorted labels"
    )
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        nargs="?",
        const=DEFAULT_DS_CONFIG,
        metavar="FILE",
        help=f"engine policy; without FILE ds_configs/{DEFAULT_DS_CONFIG.name}",
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    parser.add_argument("--run-dir", type=Path, help="the run's folder; default runs/RECIPE")
    parser.add_argument(
        "--resume", default="never", choices=("never", "auto"), help="auto: continue from the newest checkpoint, if any"
    )
    parser.add_argument("--profile", metavar="START:STOP", help="trace these steps; STOP is exclusive")
    parser.add_argument("--list-recipes", action="store_true", help="print all recipes and exit")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--diff", metavar="RECIPE", help="print what differs from another recipe and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, memory (given a ds_config) and whether the weights fit, and exit",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser


def parse_arguments(argv: Sequence[str] | None, *, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; a contradiction prints the usage and gives exit code 2."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if not arguments.list_recipes and arguments.recipe is None:
        parser.error("--recipe NAME is missing; --list-recipes shows all")
    informs = arguments.list_recipes or arguments.print_config or arguments.dry_run or arguments.diff
    if not informs and arguments.deepspeed_config is None:
        parser.error("--deepspeed_config FILE is missing, e.g. ds_configs/zero3_offload.json")
    return arguments


def _show(text: str) -> None:
    if launched_rank() == 0:
        print(text)


if __name__ == "__main__":
    use_utf8()
    run_process(main)
