"""Build a checked `Config` from JSON and `--set section.key=value`.

Unknown keys, wrong types and impossible values raise `ConfigError` with one paragraph that names the key and the fix.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad_ds.config.older import OLDER_KEYS, renewed
from adatad_ds.config.parsing import coerce, literal, nearest
from adatad_ds.config.schema import Config, RecognitionConfig
from adatad_ds.config.validation import problems
from adatad_ds.errors import ConfigError


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Build and check a `Config` from a nested dict, an older version's too; missing keys take their defaults.

    Raises:
        ConfigError: unknown key, wrong type, impossible value.
    """
    sections: dict[str, Any] = {}
    types_of_sections = _hints(Config)
    for name, values in renewed(tree).items():
        if name not in types_of_sections:
            raise ConfigError(f"unknown config section {name!r}{nearest(name, types_of_sections)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"config section {name!r} must be a mapping, not {values!r}")
        section = RecognitionConfig if name == "recognition" else types_of_sections[name]
        sections[name] = _section(section, name, values)
    config = Config(**sections)
    if found := problems(config):
        raise ConfigError("this configuration cannot be run: " + "; ".join(found))
    return config


def load(path: Path) -> Config:
    """Read a config that a run has saved (`RunFolder.describe`).

    Raises:
        ConfigError: unreadable file, or as for `from_dict`.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # ValueError: neither JSON nor UTF-8
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    return from_dict(tree)


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Apply `section.key=value` strings; values are Python literals, and bare words are strings.

    Raises:
        ConfigError: malformed assignment, unknown key, wrong type, impossible value.
    """
    tree = config.to_dict()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and key):
            raise ConfigError(f"--set takes section.key=value, e.g. train.lr_head=1e-4; got {assignment!r}")
        if section == "recognition" and section not in tree:
            raise ConfigError(f"--set {assignment}: this is a detection recipe, it has no section {section!r}")
        if section not in tree:
            raise ConfigError(f"--set {assignment}: unknown section {section!r}{nearest(section, tree)}")
        if key not in tree[section] and (section, key) not in OLDER_KEYS:
            raise ConfigError(f"--set {assignment}: {section} has no key {key!r}{nearest(key, tree[section])}")
        tree[section][key] = literal(text.strip())
    return from_dict(tree)


def check_once(assignments: Sequence[str], *, option: str, key: str) -> None:
    """Check that `--set` does not also give a key that an option stands for; an empty value says nothing.

    Raises:
        ConfigError: it does.
    """
    given = [text for name, _, text in (each.partition("=") for each in assignments) if name.strip() == key]
    if any(literal(text.strip()) for text in given):
        raise ConfigError(f"{option} and --set {key} are two ways to say the same: give one of them")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _section(cls: type, section: str, values: Mapping[str, Any]) -> Any:
    hints = _hints(cls)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise ConfigError(f"config section {section!r} lacks {', '.join(missing)}")
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise ConfigError("; ".join(f"{section} has no key {key!r}{nearest(key, hints)}" for key in unknown))
    return cls(**{key: coerce(value, hints[key], f"{section}.{key}") for key, value in values.items()})
