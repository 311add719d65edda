"""The page at many bars, in Chromium: every bar can be told apart; what it begins with is said."""

from __future__ import annotations

import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from adatad_ds.evaluation.operating_point import OperatingPoint, ShownFrom
from adatad_ds.evaluation.video.page import write_page
from tests.support.browser import loaded

POINT = OperatingPoint(score=0.04, f1=0.453, precision=0.5, recall=0.4, tiou=0.5)

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


def page(path: Path, *, count: int, shown: ShownFrom, classes: int = 12) -> str:
    rng = np.random.default_rng(0)
    starts, lengths = rng.uniform(0, 100, count), rng.uniform(2, 25, count)
    labels = [f"class {index % classes} <b>$x$" for index in range(count)]
    records = [
        {"segment": [round(start, 2), round(start + length, 2)], "label": label, "score": round(score, 4)}
        for start, length, label, score in zip(starts, lengths, labels, rng.uniform(0.05, 0.2, count), strict=True)
    ]
    write_page(path, name="match", video="none.mp4", duration_sec=130.0, detections=records, shown=shown)
    return loaded(path)


def bars(dom: str) -> list[tuple[float, ...]]:
    """x, y, width, height of each bar that shows."""
    rects = [tag for tag in re.findall("<rect[^>]*>", dom) if "fill-opacity" in tag and 'class="hidden"' not in tag]
    sides = ("x", "y", "width", "height")
    return [tuple(float(tag.split(f' {side}="')[1].split('"')[0]) for side in sides) for tag in rects]


@pytest.mark.slow
def test_114_bars_are_told_apart(tmp_path):
    dom = page(tmp_path / "p.html", count=114, shown=ShownFrom.choose(None, POINT))
    drawn = bars(dom)
    assert len(drawn) == 114
    for (x, y, width, height), (x2, y2, width2, height2) in combinations(drawn, 2):
        beside = x + width <= x2 + 2.01 or x2 + width2 <= x + 2.01  # the narrowest bar is 2 wide
        assert beside or y + height <= y2 or y2 + height2 <= y
    assert min(height for *_, height in drawn) >= 2.5
    assert max(y + height for _, y, _, height in drawn) < 600  # on one screen
    patterns = re.findall(r'<pattern id="look\d+".*?</pattern>', dom)
    assert len({re.sub('id="[^"]*"', "", pattern) for pattern in patterns}) == 12
    assert "begins at 0.040 (the best F1 in its evaluation, 45 %)<" in dom
    assert "<b>" not in dom[dom.index("<body>") : dom.index('<script type="application/json"')]


@pytest.mark.slow
def test_where_nothing_passes_the_best_score_is_named(tmp_path):
    dom = page(tmp_path / "p.html", count=9, shown=ShownFrom.choose(None, None))
    assert ">0 of 9 detections<" in dom
    assert re.search(r"no evaluation has found a better one\): none is that sure, the best has 0\.\d+<", dom)
