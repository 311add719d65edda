"""Errors that a user can mend, which every command prints as one paragraph; and long lists in one line."""

from __future__ import annotations

from collections.abc import Sequence

LISTED_FAULTS = 10  # of one error; the rest is counted


class ConfigError(ValueError):
    """What the user asked for cannot be run; the message says which key or file, and what would do."""


class DataError(ValueError):
    """Videos or annotations that cannot be used; the message says which, and what would do."""


def summarize_list(items: Sequence[str], *, limit: int = LISTED_FAULTS, separator: str = "; ") -> str:
    """The first few items of a list, and how many there are besides."""
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
