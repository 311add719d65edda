"""Python's search for garbage in cycles, while libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Nothing is searched for garbage inside, and what is there at the end never again.

    For imports: they make half a million objects, which all stay; searching these again and again is 0.4 CPU s of a
    rank's start, and 0.2 of each later search.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
