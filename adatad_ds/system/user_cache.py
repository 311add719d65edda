"""The folder in which things that can be made again are kept for a user, across runs."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """ADATAD_DS_CACHE, or `adatad_ds` in the user's cache folder: XDG_CACHE_HOME, or ~/.cache.

    Raises:
        RuntimeError: this user has no home.
    """
    if own := os.environ.get("ADATAD_DS_CACHE", ""):
        return Path(own)
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "adatad_ds"
