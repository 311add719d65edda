"""Pictures show names as they are, in any script and whatever signs; one that fails is a warning."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from adatad_ds.data.annotations import Action, Video
from adatad_ds.evaluation.accuracy import recognition_accuracy
from adatad_ds.evaluation.diagnosis.diagnosis import diagnose
from adatad_ds.evaluation.diagnosis.plots import draw_classes
from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.plots import fonts
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.plots.curves import class_ap_figure, confusion_figure, precision_recall_figure
from adatad_ds.evaluation.plots.distributions import SubsetShape, draw_distributions
from adatad_ds.evaluation.plots.figures import HATCHES, OTHER_COLOR, PALETTE, PlainFigure, class_looks
from adatad_ds.evaluation.plots.timelines import TimelineVideo, draw_detections, draw_timeline
from tests.support.detections import record

LABEL = "$run_{x^ $"  # no formula that matplotlib could set
NAME = "_$a_{ \\frac $"  # and one that legends would leave out
TRUTH = {NAME: [(0.0, 9.0, LABEL)], "w": [(0.0, 9.0, NAME)]}
RESULTS = {NAME: [record(0, 9, 0.9, LABEL)], "w": [record(0, 9, 0.6, NAME)]}


def pictures(folder: Path) -> dict[str, object]:
    """Each kind of picture, of these labels, drawn by calling it."""
    metrics = evaluate_detections(RESULTS, TRUTH, tiou=(0.5,))
    recognition = recognition_accuracy({"v": [[1.0, 0.0]]}, {"v": 0}, classes=(LABEL, NAME))
    videos = [Video(name, "s", 9.0, None, None, (Action(*actions[0]),)) for name, actions in TRUTH.items()]
    diagnosis = diagnose(RESULTS, videos, average_tiou=(0.5,), tiou=0.5, min_precision=0.05)
    line = TimelineVideo(name=NAME, duration_sec=9.0, ground_truth=TRUTH[NAME], detections=RESULTS["w"])
    shape = SubsetShape(segments_sec=np.ones(2), videos_sec=np.ones(2), classes={LABEL: 1, NAME: 1})
    path = folder / "x.png"
    return {
        "detections": lambda: draw_detections(
            path, name=NAME, duration_sec=9.0, detections=RESULTS[NAME], shown=ShownFrom(0.3, "$x_{ $")
        ),
        "timeline": lambda: draw_timeline(path, videos=[line], title=LABEL),
        "curves": lambda: precision_recall_figure(metrics, title=LABEL).savefig(path),
        "ap": lambda: class_ap_figure(metrics, title=LABEL).savefig(path),
        "confusion": lambda: confusion_figure(recognition, title=LABEL).savefig(path),
        "classes": lambda: draw_classes(path, diagnosis),
        "distributions": lambda: draw_distributions(
            path, subsets={NAME: shape, LABEL: shape}, limits_sec=[1.0], window_sec=4.0, title=LABEL
        ),
    }


@pytest.mark.parametrize("kind", ["detections", "timeline", "curves", "ap", "confusion", "classes", "distributions"])
def test_labels_are_no_formulas(kind, tmp_path):
    draw = pictures(tmp_path)[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw()  # pyright: ignore[reportCallIssue]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def drawn(text: str, *, figure: Figure | None = None) -> np.ndarray:
    """What a text in the middle of a small figure looks like, (H, W)."""
    figure = figure or PlainFigure(3, 1)
    figure.text(0.1, 0.3, text, fontsize=30)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., 0]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_formula_is_shown_letter_by_letter():
    assert not (drawn("$x^2$") == drawn("x^2")).all()  # the dollars are there
    dark = (drawn("$x^2$") < 128).any(axis=0)
    signs = sum(second and not first for first, second in pairwise(dark.tolist()))
    assert signs == 5
    figure = PlainFigure(3, 1)
    axis = figure.subplots()
    axis.set_xscale("log")  # whose numbers are formulas
    axis.set_yticks([0, 1], ["$a$", "_b"])
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert not any(text.get_parse_math() for text in texts)


def test_every_curve_has_its_name():
    _, classes = precision_recall_figure(evaluate_detections(RESULTS, TRUTH, tiou=(0.5,)), title="x").axes
    legend = classes.get_legend()
    assert legend is not None
    assert sorted(text.get_text()[0] for text in legend.get_texts()) == ["$", "_"]


def test_no_two_classes_look_alike():
    labels = [f"class {index}" for index in range(100)]
    looks = class_looks(labels)
    own = [look for look in looks.values() if look.color != OTHER_COLOR]
    assert len(own) == len(set(own)) == len(PALETTE) * len(HATCHES)
    assert len(class_looks(labels, most=12).keys()) == 100
    assert sum(look.color != OTHER_COLOR for look in class_looks(labels, most=12).values()) == 12
    truth = [(float(i), i + 1.0, label) for i, label in enumerate(labels)]
    video = TimelineVideo(name="v", duration_sec=100.0, ground_truth=truth, detections=[])
    from adatad_ds.evaluation.plots.timelines import timeline_figure

    (axis,) = timeline_figure([video], title="t").axes
    seen = {(patch.get_facecolor(), patch.get_hatch()) for patch in axis.patches}
    assert len(seen) == len(own) + 1  # grey


@pytest.fixture
def square_font(tmp_path):
    """A font in which one Chinese character is a black square, installed."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord("跳"): "square"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": "Aa Square Sans", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path = tmp_path / "square.ttf"
    font.save(path)
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(path)
    fonts._fonts_for.cache_clear()
    yield str(path)
    font_manager.fontManager.ttflist[:] = before
    fonts._fonts_for.cache_clear()


def test_a_font_that_has_the_character_is_taken(square_font):
    assert fonts.families_for(["run 跳", "é"]) == [fonts.DEFAULT, "Aa Square Sans"]
    assert fonts.families_for(["run é"]) == [fonts.DEFAULT]
    assert fonts.file_for("跳") == square_font
    assert "DejaVuSans" in fonts.file_for("run é")
    dark = drawn("跳") < 128
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert len(rows) > 20
    assert dark[rows[0] : rows[-1], columns[0] : columns[-1]].mean() > 0.95  # full: the square


def test_a_character_without_a_font_is_no_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (drawn("\U0001e6c0") < 128).any()  # of a script that hardly any font has: a box


def test_a_picture_that_fails_is_a_warning():
    said: list[str] = []

    def fail() -> None:
        raise ValueError("\nno such glyph\nand more")

    assert not try_to_draw("the picture", fail, report=said.append)
    assert said == ["warning: the picture could not be drawn: ValueError: no such glyph"]
    assert try_to_draw("the picture", lambda: None, report=said.append)
    assert len(said) == 1
