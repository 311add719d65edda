"""Messages of libraries that are for their callers' authors, left out one by one. All others are shown."""

from __future__ import annotations

import logging
import re
import warnings

# DeepSpeed's calls of collectives that PyTorch has renamed; both names do the same.
_RENAMED_COLLECTIVES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
# The tests of this project are about torch's AdamW with every stage of ZeRO.
_UNTESTED_OPTIMIZER = re.compile(r"You are using ZeRO with an untested optimizer")


class _Without(logging.Filter):
    """Leaves out a logger's messages of a pattern."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        super().__init__()
        self._pattern = pattern

    def filter(self, record: logging.LogRecord) -> bool:
        return self._pattern.search(record.getMessage()) is None


def hide_library_messages() -> None:
    """Leave out what no user of this project can act on."""
    warnings.filterwarnings("ignore", message=_RENAMED_COLLECTIVES, category=FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(_Without(_UNTESTED_OPTIMIZER))
