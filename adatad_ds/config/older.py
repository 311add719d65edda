"""Settings of older versions, put as today's: runs, exports and commands of theirs are still read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adatad_ds.errors import ConfigError

OLDER_KEYS = (("backbone", "adapter"),)  # the adapter of tuning=tia, side and tia+lora; now part of the tuning
_PLAIN = {"tia": "plain", "side": "side_plain", "tia+lora": "plain+lora"}


def renewed(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A nested dict of settings without keys that are no more.

    Raises:
        ConfigError: such a key has a value that it never had.
    """
    backbone = tree.get("backbone")
    if not isinstance(backbone, Mapping) or "adapter" not in backbone:
        return tree
    now = dict(backbone)
    adapter, tuning = now.pop("adapter"), now.get("tuning", "tia")
    if adapter not in ("tia", "plain"):
        raise ConfigError(
            f"backbone.adapter={adapter!r}, of an older version, was 'tia' or 'plain'; see backbone.tuning"
        )
    if adapter == "plain" and tuning in _PLAIN:
        now["tuning"] = _PLAIN[tuning]
    return {**tree, "backbone": now}
