"""Train a detector or a recogniser.

    deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero3_offload.json --recipe NAME [--set SECTION.KEY=V]

Also works under torchrun, srun and plain python.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file from a clone: import the package, and hide its module names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from adatad_ds.config import loading
from adatad_ds.config.schema import Config
from adatad_ds.config.without_effect import described
from adatad_ds.data.labelled_videos import class_assignments
from adatad_ds.distributed.process import report_error, run_process
from adatad_ds.recipes.catalog import config_diff, find_recipe, recipe_table
from adatad_ds.system.clone import DS_CONFIGS
from adatad_ds.system.collection import collection_paused
from adatad_ds.system.launch import has_launcher, launched_rank
from adatad_ds.system.utf8 import use_utf8
from adatad_ds.training.preemption import StopRequest

if TYPE_CHECKING:
    from adatad_ds.distributed.world import World

DEFAULT_DS_CONFIG = DS_CONFIGS / "zero3_offload.json"


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command; a user's error prints one paragraph and gives exit code 2."""
    arguments = parse_arguments(argv, prog=prog)
    world: World | None = None
    stop = StopRequest(launched=has_launcher(), rank=launched_rank())
    try:
        if arguments.deepspeed_config is DEFAULT_DS_CONFIG and launched_rank() == 0:
            print(f"--deepspeed_config without a file: using {DEFAULT_DS_CONFIG}", file=sys.stderr)
        if arguments.list_recipes or arguments.print_config or arguments.diff or arguments.dry_run:
            for text in inform(arguments):
                _show(text)
            return 0
        with collection_paused():
            from adatad_ds.distributed.world import World  # PyTorch and DeepSpeed: seconds
            from adatad_ds.inference.feature_cache import cache_features
            from adatad_ds.training.session import train

        world = World.join()
        config, ds_config = world.attempt(lambda: read_settings(arguments))
        world.same((config, ds_config), what="settings (recipe, --set, DeepSpeed config)")
        world.allow(hang_timeout_sec=config.train.hang_timeout_sec)
        with stop.listening(timeout_sec=config.train.stop_timeout_sec):
            train(
                config,
                ds_config,
                folder=arguments.run_dir or Path("runs") / arguments.recipe,
                class_order=find_recipe(arguments.recipe).class_order,
                resume=arguments.resume == "auto",
                profile=arguments.profile,
                mirrors=arguments.mirror,
                world=world,
                stop=stop,
                cache_features=cache_features,
            )
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
        from adatad_ds.training.dry_run import dry_run, weights_that_fit

        config = as_features_are(config)
        yield dry_run(config, arguments.deepspeed_config)
        yield weights_that_fit(config)


def recipe_config(arguments: argparse.Namespace) -> Config:
    """The recipe's config with the command line's changes; those that change nothing are named."""
    if arguments.classes is not None:
        loading.check_once(arguments.set, option="--classes", key="data.classes")
    config = loading.override(
        find_recipe(arguments.recipe).config, [*arguments.set, *class_assignments(arguments.classes)]
    )
    for line in described(config, arguments.set) if launched_rank() == 0 else ():
        print(f"note: {line}", file=sys.stderr)
    return config


def as_features_are(config: Config) -> Config:
    """The config with the channels of the features that it names, if it reads any."""
    if not config.backbone.is_features:
        return config
    from adatad_ds.data.features.sources import with_feature_channels  # a decoder: not for what needs none

    return with_feature_channels(config)


def read_settings(arguments: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The config, and the ds_config as in its file."""
    from adatad_ds.distributed.ds_config import read_ds_config
    from adatad_ds.runs.mirrors import check_mirrors
    from adatad_ds.training.profiling import parse_profile

    check_mirrors(arguments.mirror)
    if arguments.profile:
        parse_profile(arguments.profile)  # report errors early
    return as_features_are(recipe_config(arguments)), read_ds_config(arguments.deepspeed_config)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; `prog`: the command's name in messages, by default this file's."""
    parser = argparse.ArgumentParser(prog=prog, description="Train a temporal action detector.", allow_abbrev=False)
    parser.add_argument("--recipe", help="name of an experiment; see --list-recipes")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="file of class names by index, one per line; default: the sorted labels",
    )
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        nargs="?",
        const=DEFAULT_DS_CONFIG,
        metavar="FILE",
        help=f"DeepSpeed config; without FILE: ds_configs/{DEFAULT_DS_CONFIG.name}",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting of the recipe"
    )
    parser.add_argument("--run-dir", type=Path, help="folder of the run; default: runs/RECIPE")
    parser.add_argument(
        "--resume", default="never", choices=("never", "auto"), help="auto: continue from the newest checkpoint, if any"
    )
    parser.add_argument("--profile", metavar="START:STOP", help="trace these steps; STOP is exclusive")
    parser.add_argument(
        "--mirror",
        action="append",
        default=[],
        choices=("wandb", "mlflow"),
        help="also log to Weights & Biases or MLflow; in the run's folder, unless the environment names a server",
    )
    inform = parser.add_mutually_exclusive_group()
    inform.add_argument("--list-recipes", action="store_true", help="print all recipes and exit")
    inform.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    inform.add_argument("--diff", metavar="RECIPE", help="print the differences from another recipe and exit")
    inform.add_argument(
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
