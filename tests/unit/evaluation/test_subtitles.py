"""Subtitles and tables say what was detected, whatever the label, however long the video."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageColor

from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.plots.figures import PALETTE
from adatad_ds.evaluation.plots.timelines import draw_detections
from adatad_ds.evaluation.video.subtitles import clock, write_csv, write_srt, write_vtt
from tests.support.cues import cues

DETECTIONS = [
    {"segment": [3600.5, 3725.25], "label": "jump", "score": 0.9123},
    {"segment": [1.2, 3.0], "label": "run & <fall> -->\n\nagain", "score": 0.5},
    {"segment": [1.2, 2.5], "label": "跳", "score": 0.456},
    {"segment": [7.0, 7.0], "label": "blink", "score": 0.4},
]


@pytest.mark.parametrize(
    ("write", "escaped"),
    [
        (write_vtt, "run &amp; &lt;fall&gt; --&gt; again"),
        (write_srt, "run & \u2039fall\u203a --\u203a again"),
    ],
)
def test_cues(tmp_path: Path, write, escaped: str):
    write(tmp_path / "x", DETECTIONS)
    assert cues((tmp_path / "x").read_text(encoding="utf-8")) == [
        (1.2, 2.5, "跳 0.46"),
        (1.2, 3.0, f"{escaped} 0.50"),
        (7.0, 7.001, "blink 0.40"),
        (3600.5, 3725.25, "jump 0.91"),
    ]


@pytest.mark.parametrize(("write", "ending"), [(write_vtt, "vtt"), (write_srt, "srt")])
@pytest.mark.parametrize(
    "label",
    ["a <i>b</i> c", "<unknown> x", r"{\an8} x", "{note} x", r"a\Nb", "a --> b", "$x_{$", "<b", "1 < 2 & 3 &lt;"],
)
def test_players_take_no_label_for_markup(label, write, ending, tmp_path: Path):
    """As FFmpeg reads subtitles, which many players use: text, and codes of the ASS format for what is markup."""
    path = tmp_path / f"x.{ending}"
    write(path, [{"segment": [1, 2], "label": label, "score": 0.5}])
    with av.open(str(path)) as container:
        (subtitle,) = [each for packet in container.demux() for each in packet.decode()]
    written = subtitle.ass.decode().split(",", 8)[-1]
    text = written.replace("\\{{}", "").replace("\\\u2060", "")  # FFmpeg's own escapes of what WebVTT shows
    assert not re.search(r"[{\\]", text)
    shown = written.replace("\\{{}", "{").replace("\u2060", "")
    alike = str.maketrans({"\u2039": "<", "\u203a": ">", "(": "{", ")": "}", "\u2216": "\\"})
    assert shown.translate(alike) == f"{label} 0.50"


@pytest.mark.parametrize("label", ["=1+1", "+x", "-jump", "@me", "\t=1", "\uff1d1"])
def test_spreadsheets_take_no_label_for_a_formula(label, tmp_path: Path):
    write_csv(tmp_path / "x.csv", [{"segment": [-1.5, 2], "label": label, "score": 0.5}])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == ["-1.5", "2", f"'{label}", "0.5"]  # numbers stay numbers


def test_layouts(tmp_path: Path):
    write_vtt(tmp_path / "x.vtt", DETECTIONS[:1])
    assert (tmp_path / "x.vtt").read_text() == "WEBVTT\n\n01:00:00.500 --> 01:02:05.250\njump 0.91\n"
    write_srt(tmp_path / "x.srt", DETECTIONS[:1])
    assert (tmp_path / "x.srt").read_text() == "1\n01:00:00,500 --> 01:02:05,250\njump 0.91\n"
    write_vtt(tmp_path / "none.vtt", [])
    assert (tmp_path / "none.vtt").read_text() == "WEBVTT\n"
    write_srt(tmp_path / "none.srt", [])
    assert (tmp_path / "none.srt").read_text() == ""


@pytest.mark.parametrize(
    ("at", "shown"),
    [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (3599.999, "00:59:59.999"), (4e5, "111:06:40.000")],
)
def test_clock(at: float, shown: str):
    assert clock(at) == shown


def test_table(tmp_path: Path):
    write_csv(tmp_path / "x.csv", DETECTIONS)
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["start_sec", "end_sec", "label", "score"]
    assert [row[2] for row in rows[1:]] == ["跳", "run & <fall> -->\n\nagain", "blink", "jump"]
    assert rows[4] == ["3600.5", "3725.25", "jump", "0.9123"]


@pytest.mark.slow
def test_picture_of_nothing_and_of_many(tmp_path: Path):
    sizes = []
    for count in (0, 1, 300):
        records = [
            {"segment": [9.0 * i, 9.0 * i + 20], "label": f"class {i % 15}", "score": 0.99 * (i + 1) / 300}
            for i in range(count)
        ]
        path = tmp_path / f"{count}.png"
        draw_detections(path, name="match", duration_sec=2800, detections=records, shown=ShownFrom.choose(None, None))
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(content[20:24]))  # the picture's height
    assert sizes[0] == sizes[1] < sizes[2] < 1500  # twelve rows, no more


def test_what_is_shown_is_drawn_in_full_colour_and_the_rest_is_pale(tmp_path: Path):
    """A bar at the height of its score, over its segment."""
    detections = [{"segment": [2.0, 4.0], "label": "run", "score": 0.75}]
    for least, full in ((0.5, True), (0.9, False)):
        path = tmp_path / f"{least}.png"
        draw_detections(path, name="v", duration_sec=10.0, detections=detections, shown=ShownFrom.choose(least, None))
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        rows, columns = np.nonzero((pixels == ImageColor.getrgb(PALETTE[0])).all(axis=-1))
        assert (len(rows) > 0) == full
        if full:
            assert np.ptp(columns) == pytest.approx(0.2 * pixels.shape[1], rel=0.1)  # 2 of 10 s
            assert np.ptp(rows) < 8
