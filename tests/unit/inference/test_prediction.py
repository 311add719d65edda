"""Which files of an output folder are predictions' own, so that they may be overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adatad_ds.errors import ConfigError
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.inference.prediction import RESULTS_FILE, Results, Wanted

FILES = [RESULTS_FILE, *(f"a.{kind}" for kind in ("csv", "vtt", "srt", "json", "png"))]


def claimed(folder: Path, *names: str, html: bool = False) -> Results:
    shown = ShownFrom(0.3, "as requested")
    wanted = Wanted(folder=folder, shown=shown, annotated=False, html=html, embedded_mb=1.0)
    return Results(folder, wanted.files(names))


def predicted(folder: Path, *names: str) -> None:
    """As a prediction that comes to its end."""
    results = claimed(folder, *names)
    for name in names:
        for ending in ("csv", "vtt", "srt", "json", "png"):
            (folder / f"{name}.{ending}").write_text("ours")
        results.add(name, [], damage=None)
    results.close()


def test_a_folder_is_predicted_into_again(tmp_path: Path):
    predicted(tmp_path / "out", "a")
    predicted(tmp_path / "out", "b")
    predicted(tmp_path / "out", "a", "b")  # a's are known although b's came after it
    tree = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert set(tree["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert list(tree["results"]) == ["a", "b"]


def test_what_no_prediction_wrote_is_refused_before_anything_is_changed(tmp_path: Path):
    predicted(tmp_path, "a")
    before = (tmp_path / RESULTS_FILE).read_bytes()
    (tmp_path / "b.srt").write_text("by hand")
    (tmp_path / "a.html").symlink_to("nowhere")
    for wanted, refused in ((["a", "b"], "b.srt"), (["a"], "a.html")):
        with pytest.raises(ConfigError, match=rf"would be overwritten: {refused}\. Give another -o FOLDER"):
            claimed(tmp_path, *wanted, html=refused == "a.html")
    assert (tmp_path / RESULTS_FILE).read_bytes() == before
    claimed(tmp_path, "a")


def test_a_killed_prediction_owns_what_it_began(tmp_path: Path):
    claimed(tmp_path, "a", "b")
    (tmp_path / "a.csv").write_text("ours")
    claimed(tmp_path, "a", "b").close()  # and this one fails at both
    (tmp_path / "b.csv").write_text("by hand")
    with pytest.raises(ConfigError, match=r"overwritten: b\.csv\."):
        claimed(tmp_path, "a", "b")


def test_results_of_older_versions_and_of_others(tmp_path: Path):
    predicted(tmp_path, "a")
    tree = json.loads((tmp_path / RESULTS_FILE).read_text())
    del tree["files"]
    (tmp_path / RESULTS_FILE).write_text(json.dumps(tree))
    predicted(tmp_path, "a")
    for other in (tree | {"version": "theirs"}, tree | {"results": {"elsewhere": []}}, [], {"files": FILES}):
        (tmp_path / RESULTS_FILE).write_text(json.dumps(other))
        with pytest.raises(ConfigError, match=f"overwritten: {RESULTS_FILE}, a.csv, "):
            claimed(tmp_path, "a")
