"""Fonts for names in any script: matplotlib's own and, for characters that it lacks, those of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT = "DejaVu Sans"  # comes with matplotlib
_NO_SCRIPTS = ("Last Resort", "cm")  # boxes for everything; mathematical symbols at the code points of others


def families_for(texts: Iterable[str]) -> list[str]:
    """Font families in order of preference: each character is drawn in the first that has it.

    For characters that no installed font has, matplotlib draws a box.
    """
    return [family for family, _ in _fonts_for(frozenset("".join(texts)))]


def file_for(text: str) -> str:
    """The font file with most of a text's characters; on ties, the default's."""
    return max((path for _, path in _fonts_for(frozenset(text))), key=lambda path: len(_found(path, frozenset(text))))


@lru_cache(maxsize=256)
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Family and file of the default font and of fonts that add characters."""
    fonts = [(DEFAULT, str(font_manager.findfont(DEFAULT)))]
    missing = frozenset(filter(str.isprintable, characters)) - _found(fonts[0][1], characters)
    candidates = font_manager.fontManager.ttflist if missing else []
    for font in sorted(candidates, key=lambda font: ("Sans" not in font.name, font.name)):
        upright = font.style == "normal" and str(font.weight) in ("400", "normal", "regular")
        if upright and not font.name.startswith(_NO_SCRIPTS) and (found := _found(font.fname, missing)):
            fonts.append((font.name, font.fname))
            missing -= found
    return tuple(fonts)


@lru_cache(maxsize=1024)
def _found(path: str, characters: frozenset[str]) -> frozenset[str]:
    """The subset of the characters that a font file has; empty for an unreadable file."""
    if not characters:
        return characters
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(character for character in characters if font.get_char_index(ord(character)))
