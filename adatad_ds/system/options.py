"""Numbers of the command line, for argparse's `type`, and options that would change nothing: the user's errors."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

from adatad_ds.errors import ConfigError


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    number.__name__ = "whole number"  # which argparse says of what is none
    return number


def between(least: float, most: float = math.inf) -> Callable[[str], float]:
    """What reads a number; infinity and NaN are none."""

    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and least <= value <= most):
            limits = f"at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {value:g}")
        return value

    number.__name__ = "number"
    return number


def check_unused(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, names: Sequence[str], *, why: str
) -> None:
    """Check that options which would change nothing have their defaults.

    Raises:
        ConfigError: one has not.
    """
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            raise ConfigError(f"--{name.replace('_', '-')} would change nothing: {why}; leave it out")
