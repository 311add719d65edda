"""Text that looks the same, and is the same: letters with accents are one character (NFC), or several (NFD).

Keyboards and most programs write the former; file names of macOS may be the latter.
"""

from __future__ import annotations

import unicodedata


def composed(text: str) -> str:
    """The form to compare text in (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)
