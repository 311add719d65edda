"""Errors that a user can fix, which every command prints as one paragraph; and long lists in one line."""

from __future__ import annotations

from collections.abc import Sequence

LISTED_FAULTS = 10  # of one error; the rest is counted


class UserError(ValueError):
    """What a user can fix; the message says all that is to be known, and every command prints it alone."""


class ConfigError(UserError):
    """What the user asked for cannot be run; the message says which key or file, and what would do."""


class DataError(UserError):
    """Videos or annotations that cannot be used; the message says which, and what would do."""


class CheckpointError(UserError):
    """A checkpoint, export or weights file that cannot be read, is damaged, or fits nothing; the message says why."""


class TrainingError(UserError):
    """A training that cannot go on: losses or gradients that are not finite, a run's folder that is another's now."""


class WriteError(OSError):
    """Files that cannot be written, as on a full disk; the message says which, what is left, and what to do."""


class RankError(Exception):
    """What some rank ran into, raised on every rank; where it happened, from the error itself."""


def in_words(error: BaseException) -> str:
    """An error in a line; of those that are no user's, with their kind."""
    text = str(error)
    return text if isinstance(error, UserError | WriteError | RankError) else f"{type(error).__name__}: {text}"


def summarize_list(items: Sequence[str], *, limit: int = LISTED_FAULTS, separator: str = "; ") -> str:
    """The first few items of a list, and how many there are besides."""
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
