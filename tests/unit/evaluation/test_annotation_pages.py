"""Pages that show annotations on their videos, in Chromium: what training reads, and what it does not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from adatad_ds.data.decoding.video import probe
from adatad_ds.errors import DataError
from adatad_ds.evaluation.video.annotation_pages import page_names, write_annotation_pages
from tests.support.browser import loaded
from tests.support.videos import write_video

chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


def entry(subset: str, *actions: tuple[float, float, str]) -> dict[str, object]:
    listed = [{"segment": [start, end], "label": label} for start, end, label in actions]
    return {"subset": subset, "duration": 4.0, "annotations": listed}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of pages, and what was said."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "videos").mkdir()
    for name in ("a <b>$x$ ä.mp4", "none.mp4"):
        write_video(folder / "videos" / name, frames=40, width=48, height=32)
    write_video(folder / "videos/old.avi", frames=20, codec="mpeg4", width=48, height=32)
    (folder / "videos/broken.mp4").write_bytes(b"no video")
    write_video(folder / "videos/wide.mkv", frames=2, codec="ffv1", width=17000, height=16)  # H.264 ends at 16384
    database = {
        "a <b>$x$ ä": entry("training", (0.5, 1.5, "</script>jump"), (1.0, 2.0, "run"), (3.0, 9.0, "run")),
        "none": entry("validation"),
        "old": entry("validation", (0.5, 1.0, "run")),
        "broken": entry("validation"),
        "wide": entry("validation"),
        "gone": entry("training", (0.5, 1.0, "run")),
    }
    (folder / "annotations.json").write_text(json.dumps({"database": database}), encoding="utf-8")
    said: list[str] = []
    count = write_annotation_pages(
        folder / "out", annotations=folder / "annotations.json", videos=folder / "videos", report=said.append
    )
    assert count == 3
    return folder, said


@pytest.mark.slow
@chromium
def test_the_overview(pages):
    folder, said = pages
    dom = loaded(folder / "out/index.html")
    assert "6 videos of " in dom
    assert ", 5 segments, as training reads them" in dom
    assert ">6 of 6 videos<" in dom
    assert "1 annotation clipped: end beyond the video's duration" in dom
    assert "gone: its file is missing" in dom
    assert re.search(r"broken: \S*broken.mp4: ", dom)
    bars = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)"[^>]* data-label="([^"]*)"', dom)
    assert [(float(x), float(width)) for x, width, _ in bars] == [
        *[(125, 250), (250, 250), (750, 250)],  # the last one ends with the video, as for training
        *[(125, 125), (125, 125)],
    ]
    assert 'href="a_b_x_.html#t=0.5"' in dom
    assert "<b>$x$" not in dom[dom.index("<body>") : dom.index('<script type="application/json"')]
    assert len(re.findall('href="gone', dom)) == 0
    assert said[0].startswith("open in a browser: ")
    assert [line.split(": ")[1] for line in said[1:]] == ["gone", "broken", "wide"]


@pytest.mark.slow
@chromium
def test_a_videos_page(pages):
    folder, _ = pages
    dom = loaded(folder / "out/a_b_x_.html", "#t=1.2")
    assert ">3 of 3 segments<" in dom
    assert "annotated for training; " in dom
    assert '<body class="unscored">' in dom
    assert re.search(r'<td>0:03\.00</td><td>0:04\.00</td><td>.*?run</td><td class="scored">', dom)
    assert "time (min:s)<" in dom
    assert 'href="index.html">all videos</a>' in dom
    overview = (folder / "out/index.html").read_text(encoding="utf-8")
    for label in ("run", "jump"):  # a class looks alike on all pages
        look = re.compile(rf'{label}", "color": "(#\w+)"')
        assert set(look.findall(overview)) == set(look.findall(dom)) != set()
    assert 'href="none.html">next</a>' in dom
    assert ">previous<" not in dom
    assert re.search(r'<tr tabindex="0" class="playing"><td>0:00.50</td>', dom)  # the video has been wound to 1.2 s
    assert ">0 of 0 segments<" in loaded(folder / "out/none.html")


@pytest.mark.slow
@chromium
def test_what_browsers_do_not_play_is_copied(pages):
    folder, _ = pages
    assert 'src="copies/old.avi.mp4"' in loaded(folder / "out/old.html")
    assert probe(folder / "out/copies/old.avi.mp4").num_frames == 20


def test_what_cannot_be_copied_is_named(pages):
    folder, said = pages
    assert any(line.startswith(f"cannot be shown: wide: {folder / 'videos/wide.mkv'}: ") for line in said)
    assert not (folder / "out/wide.html").exists()
    assert [path.name for path in (folder / "out/copies").iterdir()] == ["old.avi.mp4"]


def test_names_of_pages_differ():
    names = page_names(["a b", "a_b", "A_B", "index", "ä", "ö", "c"])
    assert len({name.lower() for name in names.values()}) == 7
    assert "index.html" not in names.values()
    assert names["c"] == "c.html"
    for several in (["A", "a", "A.0"], ["a.1", "A", "A.1", "a", "a.1_"], [251 * "x", 250 * "x", f"{200 * 'x'}.0"]):
        pages = [name.lower() for name in page_names(several).values()]
        assert len(set(pages)) == len(several)
        assert max(map(len, pages)) < 255


def test_nothing_to_show(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"database": {}}')
    with pytest.raises(DataError, match="lists no videos"):
        write_annotation_pages(tmp_path, annotations=tmp_path / "a.json", videos=tmp_path, report=print)
