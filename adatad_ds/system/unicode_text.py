"""Text that looks the same, and is the same: letters with accents are one character (NFC), or several (NFD).

Keyboards and most programs write the former; file names of macOS may be the latter.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def composed(text: str) -> str:
    """The form to compare text in (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)


class TextLookup:
    """Lookup of texts, such as labels, that may have another form elsewhere; an exact match is preferred."""

    def __init__(self, known: Iterable[str]) -> None:
        exact = {text: text for text in known}
        self._texts = {composed(text): text for text in exact} | exact

    def find(self, text: str) -> str | None:
        """The known text that is the same as `text`; None if there is none."""
        return self._texts.get(text) or self._texts.get(composed(text))
