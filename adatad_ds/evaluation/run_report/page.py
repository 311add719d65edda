"""Parts of report pages: a page's frame, tables that scroll on narrow screens, key figures, code."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from adatad_ds.system.atomic import write_text

STYLE = """
:root { color-scheme: light; --grey: #666; --line: #ddd; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; } h1 { font-size: 1.5rem; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-top: 1px solid #ccc; padding-top: .9rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { max-width: 60rem; } .grey, figcaption, .keys { color: var(--grey); }
.figures { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none; }
.figures li { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .8rem; min-width: 8rem; }
.figures b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figure svg { width: 100%; height: auto; display: block; }
figure text { font: 12px system-ui, sans-serif; fill: #333; } .grid { stroke: #ddd; }
polyline { fill: none; stroke-width: 1.8; }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: 13px; }
.keys span { min-width: 0; }
.keys i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; vertical-align: -1px; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; } td:first-child { min-width: 6rem; } td { overflow-wrap: normal; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: 13px; }
details { margin: .6rem 0; } summary { cursor: pointer; }
.better { color: #00603f; } .worse { color: #a03000; }
"""


def write_html(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page of these parts, which needs no network and no script."""
    write_text(
        path,
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n",
    )


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, grey: bool = False) -> str:
    """A paragraph; "" for no text."""
    return f"<p{' class=grey' if grey else ''}>{escape(text)}</p>" if text else ""


def bullets(lines: Sequence[str]) -> str:
    """A list of texts; "" for none."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def figures(values: Sequence[tuple[str, str]]) -> str:
    """Key figures: value and what it is."""
    items = "".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for value, name in values)
    return f'<ul class="figures">{items}</ul>' if values else ""


def link(text: str, address: str) -> str:
    """A link, or the text alone where there is no address; for `table`."""
    return f'<a href="{escape(address)}">{escape(text)}</a>' if address else escape(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = ()) -> str:
    """A table; "" without rows.

    Args:
        header: names of the columns.
        rows: cells, already HTML (`escape`, `link`).
        texts: columns besides the first that hold text.
    """
    if not rows:
        return ""
    kinds = ['class="text"' if column in texts else "" for column in range(len(header))]
    head = "".join(f"<th {kind}>{escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td {kind}>{cell}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def code(text: str) -> str:
    """A block to be copied; "" for no text."""
    return f"<pre>{escape(text)}</pre>" if text else ""


def folded(title: str, content: str) -> str:
    """Content that opens at a click; "" without content."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def charts(found: Sequence[str]) -> str:
    """Charts side by side, as many as the window holds; "" for none."""
    drawn = [chart for chart in found if chart]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def percent(value: float | None) -> str:
    """A share in %, with two digits."""
    return "-" if value is None else f"{100 * value:.2f}"


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def clock(seconds: float) -> str:
    """A time in a video: minutes:seconds, or with hours."""
    whole, rest = divmod(max(0.0, seconds), 60)
    hours, minutes = divmod(int(whole), 60)
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"
