"""Line charts as SVG in a page: they need no script, scale with the window, and name each point under the mouse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from adatad_ds.evaluation.plots.figures import PALETTE

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 250, 58, 24, 12, 42
MOST_POINTS = 400  # of a line; longer ones are thinned
DASHES = ("", "6 4", "2 3")

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str, lines: Mapping[str, Points], *, along: str, unit: str = "", scale: float = 1.0, log: bool = False
) -> str:
    """A figure with a caption; "" if there is no point.

    Args:
        title: caption, and description for screen readers.
        lines: points by name.
        along: name of the horizontal axis.
        unit: of the vertical axis.
        scale: factor from the values to that unit.
        log: a logarithmic vertical axis, where all values are above 0.
    """
    scaled = {
        name: [(x, y * scale) for x, y in thinned(points) if math.isfinite(x) and math.isfinite(y)]
        for name, points in lines.items()
    }
    scaled = {name: points for name, points in scaled.items() if points}
    if not scaled:
        return ""
    every = [point for points in scaled.values() for point in points]
    log = log and min(y for _, y in every) > 0
    x_ticks = ticks(min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = decades(every) if log else ticks(min(0.0, min(y for _, y in every)), max(y for _, y in every))

    def place(value: float, marks: Sequence[float], start: float, length: float, *, logarithmic: bool) -> float:
        of = math.log10 if logarithmic else float
        return start + length * (of(value) - of(marks[0])) / ((of(marks[-1]) - of(marks[0])) or 1.0)

    def x_of(x: float) -> float:
        return place(x, x_ticks, LEFT, WIDTH - LEFT - RIGHT, logarithmic=False)

    def y_of(y: float) -> float:
        return place(y, y_ticks, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM), logarithmic=log)

    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x = x_of(tick)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(along)}</text>')
    for index, (name, points) in enumerate(scaled.items()):
        color, dash = PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" stroke="{color}" stroke-dasharray="{dash}"/>')
        shown = points if len(points) <= 40 else points[-1:]
        parts += [
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="{3 if len(points) <= 40 else 2}" fill="{color}">'
            f"<title>{escape(name)}: {number(y)} {escape(unit)} at {escape(along)} {number(x)}</title></circle>"
            for x, y in shown
        ]
    keys = "".join(
        f'<span><i style="background:{PALETTE[index % len(PALETTE)]}"></i>{escape(name)}</span>'
        for index, name in enumerate(scaled)
    )
    caption = f"{title} ({unit})" if unit else title
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(caption)}">{"".join(parts)}</svg><div class="keys">{keys}</div></figure>'
    )


def thinned(points: Points) -> Points:
    """At most about MOST_POINTS of them, with the first and the last."""
    every = -(-len(points) // MOST_POINTS)
    return points if every <= 1 else [*points[: len(points) - 1 : every], points[-1]]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, 4 to 9 of them, from one at or below `low` to one at or above `high`."""
    span = high - low or abs(high) or 1.0
    exponent = 10.0 ** math.floor(math.log10(span / 4))
    step = next(exponent * factor for factor in (1, 2, 5, 10) if span / (exponent * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * at for at in range(first, max(last, first + 1) + 1)]


def decades(points: Points) -> list[float]:
    """Powers of ten around all values."""
    values = [y for _, y in points]
    first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    return [10.0**at for at in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number in at most 4 digits."""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.4g}"
