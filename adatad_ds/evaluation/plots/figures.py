"""Shared by all figures: class styles, literal text, atomic saving."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from adatad_ds.evaluation.plots.fonts import families_for
from adatad_ds.system.atomic import replacing

# Okabe and Ito's colours, which the colour-blind can distinguish; hatched if there are more classes.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "||||", "----", "++++")
OTHER_COLOR = "#999999"  # of classes without their own look
LONGEST_NAME = 28  # characters
_DPI = 110
_LIGHT = 0.55  # luma from which on marks are black


class PlainFigure(Figure):
    """A figure without markup: a label `$x_{$` is drawn literally, in any script with an installed font.

    Args:
        width: inches.
        height: inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(self)

    def draw(self, renderer: Any) -> None:
        """Draw with literal text and fonts that have its characters."""
        texts = self.findobj(Text)
        families = families_for(text.get_text() for text in texts if isinstance(text, Text))
        for text in texts:
            text.set(parse_math=False, usetex=False, fontfamily=families)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a box is drawn in its place
            super().draw(renderer)


@dataclass(frozen=True)
class Look:
    """Style of a class: a colour, and matplotlib's hatch on it."""

    color: str
    hatch: str

    @property
    def ink(self) -> str:
        """Colour of the hatch: black on light colours, white on dark ones."""
        red, green, blue = to_rgb(self.color)
        return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > _LIGHT else "#FFFFFF"


def class_looks(labels: Sequence[str], *, most: int = len(PALETTE) * len(HATCHES)) -> dict[str, Look]:
    """A distinct look for each of the first `most` classes; the others are grey."""
    own = [Look(color, hatch) for hatch in HATCHES for color in PALETTE][:most]
    return {label: own[index] if index < len(own) else Look(OTHER_COLOR, "") for index, label in enumerate(labels)}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def short_name(label: str) -> str:
    """A name on one line; the middle of a long one is left out, since its ends are more distinctive."""
    label, half = " ".join(label.split()), LONGEST_NAME // 2
    return label if len(label) <= LONGEST_NAME else f"{label[:half]}…{label[1 - half :]}"


def drawable(name: str) -> str:
    """A name that fonts can draw; of a file name that is not UTF-8, the bytes as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_axis(axis: Axes) -> None:
    """Remove the frame at the top and the right; make the numbers small."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
