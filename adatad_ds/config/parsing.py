"""Parse config values as users write them, and check them against type hints."""

from __future__ import annotations

import ast
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from adatad_ds.errors import ConfigError

CLIP_FRAMES = 16  # frames per clip of a video transformer; attention stays inside a clip
TUBELET_FRAMES = 2  # frames per token

_ITEM = re.compile(r"""'[^']*'|"[^"]*"|[^][(),\s][^][(),]*""")  # list item: quoted, or up to the next comma or bracket


def coerce(value: Any, hint: Any, key: str) -> Any:
    """Check `value` against a type hint; turn lists into tuples and ints into floats.

    Raises:
        ConfigError: wrong type, or a number outside the hint's `Range`.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = coerce(value, args[0], key)
        for limits in args[1:]:
            if value not in limits:
                raise ConfigError(f"{key} must be {limits}; got {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        others = [arg for arg in args if arg is not type(None)]
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        fitting = [arg for arg in others if (typing.get_origin(arg) is tuple) == is_list]
        if isinstance(value, str):  # `1.5 | "auto"`
            fitting = [arg for arg in fitting if arg is str or typing.get_origin(arg) is Literal] or fitting
        return coerce(value, (fitting or others)[0], key)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{key} must be one of {', '.join(map(repr, args))}; got {value!r}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{key} must be a list, e.g. {key}=[...]; got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(coerce(item, args[0], key) for item in value)
        if len(value) != len(args):
            raise ConfigError(f"{key} must hold {len(args)} values; got {value!r}")
        return tuple(coerce(item, arg, key) for item, arg in zip(value, args, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (hint is int and isinstance(value, bool)) or not isinstance(value, hint):
        raise ConfigError(f"{key} must be {hint.__name__}; got {value!r} ({type(value).__name__})")
    return value


def literal(text: str) -> Any:
    """Parse a value written after `--set section.key=`: a Python literal, a bare word, or a list of both."""
    aliases = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in aliases:
        return aliases[text.lower()]
    for written in (text, _ITEM.sub(lambda item: repr(literal(item[0].strip())), text) if text[:1] in "[(" else text):
        try:
            return ast.literal_eval(written)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """Suggest the closest known name, as the end of an error message."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
