"""Drawing whose failure costs no result. Needs no matplotlib, which takes half a second to import."""

from __future__ import annotations

from collections.abc import Callable


def try_to_draw(what: str, draw: Callable[[], object], *, report: Callable[[str], object]) -> bool:
    """Draw a figure; a failure is only reported, even of importing matplotlib.

    Args:
        what: the figure, for the message.
        draw: draws it.
        report: called with a warning if drawing fails.

    Returns:
        Whether it was drawn.
    """
    try:
        draw()
    except Exception as error:  # any error: results matter more
        lines = str(error).strip().splitlines()
        report(f"warning: {what} could not be drawn: {type(error).__name__}{f': {lines[0]}' if lines else ''}")
        return False
    return True
