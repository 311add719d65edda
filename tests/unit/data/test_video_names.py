"""Which names mean the same video, in annotations, lists, files, scores and detections; lists of names."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.config.schema import Config
from adatad_ds.data.annotations import load_annotations
from adatad_ds.data.labelled_videos import read_folders, read_list
from adatad_ds.data.video_files import find_videos, present_videos
from adatad_ds.data.video_names import VideoNames, read_names, without_extension
from adatad_ds.errors import DataError
from adatad_ds.evaluation.detections_file import read_results
from adatad_ds.evaluation.external_classifier import read_video_scores
from adatad_ds.system.json_text import read_json


def entry(subset: str = "training", label: str = "x") -> dict:
    return {"subset": subset, "duration": 10.0, "annotations": [{"segment": [1, 2], "label": label}]}


def annotate(path: Path, **videos: dict) -> Path:
    path.write_text(json.dumps({"database": videos}))
    return path


@pytest.mark.parametrize(
    ("name", "stem"),
    [("clip_01.mp4", "clip_01"), ("a.b.MKV", "a.b"), ("match.01", "match.01"), ("x", "x"), (".mp4", ".mp4"), ("", "")],
)
def test_only_the_extension_of_a_video_is_none_of_its_name(name: str, stem: str):
    assert without_extension(name) == stem


def test_the_closest_name_is_found():
    names = VideoNames(["v_a", "a.mp4", "b", "b.mkv", "v_c.webm", "e.1"])
    found = {
        name: names.find(name) for name in ("a", "v_a", "v_a.mp4", "b", "b.mkv", "b.avi", "c", "c.mp4", "e.1", "e")
    }
    assert found == {
        "a": "a.mp4",
        "v_a": "v_a",
        "v_a.mp4": "v_a",
        "b": "b",
        "b.mkv": "b.mkv",
        "b.avi": "b",
        "c": "v_c.webm",
        "c.mp4": "v_c.webm",
        "e.1": "e.1",
        "e": None,
    }


def test_letters_with_accents_may_be_one_character_or_several(tmp_path: Path):
    """macOS writes file names in the latter form; the file is opened by the name that it has on the disk."""
    one, several = (unicodedata.normalize(form, "v_\u00dcbung") for form in ("NFC", "NFD"))
    assert one != several
    for theirs, ours in ((one, several), (several, one)):
        (tmp_path / theirs).mkdir()
        (tmp_path / theirs / f"{theirs}.mp4").touch()
        found = find_videos(tmp_path / theirs, [ours])
        assert [path.name for path in found.values()] == [f"{theirs}.mp4"]
        assert VideoNames([theirs]).find(ours.removeprefix("v_")) == theirs
        (tmp_path / "list").write_text(f"{ours}/{ours} jump\n", encoding="utf-8")
        assert read_list(tmp_path / "list", root=tmp_path).videos[0].path.samefile(found[ours])
        shutil.rmtree(tmp_path / theirs)
    both = VideoNames([one, several])
    assert [both.find(name) for name in (one, several)] == [one, several]
    path = annotate(tmp_path / "a.json", **{one: entry(), several: entry()})
    with pytest.raises(DataError, match=r"also listed .* in another Unicode form"):
        load_annotations(path, subset="training")


def test_a_name_may_end_in_two_extensions():
    """Whichever of the two is left out on either side; a file of the shorter name is another video."""
    files = VideoNames(["talk.mkv", "talk.mov.mp4", "v_walk.mov.mp4"])
    found = [files.find(name) for name in ("talk.mov", "talk.mov.mp4", "talk.mov.webm", "talk", "talk.avi")]
    assert found == ["talk.mov.mp4"] * 3 + ["talk.mkv"] * 2
    assert [files.find(name) for name in ("walk.mov", "walk.mov.mkv", "walk")] == ["v_walk.mov.mp4"] * 2 + [None]
    annotated = VideoNames(["talk.mov", "v_walk.mov"])
    assert [annotated.find(name) for name in ("talk.mov.mp4", "walk.mov.mp4")] == ["talk.mov", "v_walk.mov"]
    assert VideoNames(["talk.mov.mp4"]).find("talk") is None
    assert VideoNames(["talk.mov.mp4", "talk.mov"]).find("talk.mov") == "talk.mov"
    assert VideoNames(["talk.mkv"]).find("talk.mov") == "talk.mkv"


@pytest.mark.parametrize(
    "content",
    [
        b"a\nb c\n\n  v_d.mp4  \n",
        b"\xef\xbb\xbfa\r\nb c\r\nv_d.mp4",
        b'["a", "b c", "v_d.mp4"]',
        b'\xef\xbb\xbf["a", "b c", "v_d.mp4"]',
    ],
)
def test_lists_of_videos(tmp_path: Path, content: bytes):
    (tmp_path / "list").write_bytes(content)
    assert read_names(tmp_path / "list") == ["a", "b c", "v_d.mp4"]


@pytest.mark.parametrize("content", [b"[1]", b'{"a": 1}', b"[", b"\xff\xfe\x00"])
def test_what_is_no_list_of_videos(tmp_path: Path, content: bytes):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match="list of videos"):
        read_names(tmp_path / "list")
    with pytest.raises(DataError, match="cannot read the list"):
        read_names(tmp_path / "absent")


def test_files_are_found_whichever_way_they_are_named(tmp_path: Path):
    for name in ("a.mp4", "a.avi", "v_b.MKV", "c.webm"):
        (tmp_path / name).touch()
    names = ["a.mp4", "a.avi", "b.mp4", "v_c"]
    found = {name: path.name for name, path in find_videos(tmp_path, names).items()}
    assert found == {"a.mp4": "a.mp4", "a.avi": "a.avi", "b.mp4": "v_b.MKV", "v_c": "c.webm"}
    assert list(present_videos(tmp_path, ["a", "gone"])) == ["a"]
    with pytest.raises(DataError, match=r"'c' and 'c.webm' \(c.webm\)"):
        find_videos(tmp_path, ["c", "c.webm"])


def test_a_video_that_stands_twice_by_its_extension_is_refused(tmp_path: Path):
    path = annotate(tmp_path / "a.json", **{"clip": entry(), "clip.MP4": entry("validation"), "other.mp4": entry()})
    with pytest.raises(DataError, match=r"'clip.MP4' is also listed without its extension"):
        load_annotations(path, subset="training")


def test_videos_are_left_out_by_name_and_by_list(tmp_path: Path):
    path = annotate(tmp_path / "a.json", a=entry(), **{"b.mp4": entry(), "v_c": entry(), "d": entry("validation")})
    (tmp_path / "list.txt").write_text("c\nd.mkv\nnot_annotated\n")
    found, notes = load_annotations(path, subset="training", exclude=["b"], exclude_file=tmp_path / "list.txt")
    assert [video.name for video in found.videos] == ["a"]
    assert notes == [f"1 videos of 'training' left out by {tmp_path / 'list.txt'}"]
    with pytest.raises(DataError, match="not excluded"):
        load_annotations(path, subset="validation", exclude_file=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("other\n")
    _, notes = load_annotations(path, subset="training", exclude_file=tmp_path / "list.txt")
    assert notes == [
        f"0 videos of 'training' left out by {tmp_path / 'list.txt'}: it names none of the annotated videos"
    ]
    assert Config().data.exclude_file == ""


def test_lists_of_labelled_videos(tmp_path: Path):
    for name in ("a.mp4", "v_b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list").write_text("a jump\nb run\n")
    assert [video.path.name for video in read_list(tmp_path / "list", root=tmp_path).videos] == ["a.mp4", "v_b.mp4"]
    (tmp_path / "list").write_text("a jump\na.mp4 run\n")
    with pytest.raises(DataError, match=r"'a' and 'a.mp4' \(a.mp4\)"):
        read_list(tmp_path / "list", root=tmp_path)
    (tmp_path / "list").write_text("a jump\nb Jump\n")
    with pytest.raises(DataError, match="differ only by case"):
        read_list(tmp_path / "list", root=tmp_path)
    read_list(tmp_path / "list", root=tmp_path, classes=("jump", "Jump"))
    for label in ("jump", "Jump"):
        (tmp_path / "folders" / label).mkdir(parents=True)
        (tmp_path / "folders" / label / "a.mp4").touch()
    with pytest.raises(DataError, match="differ only by case"):
        read_folders(tmp_path / "folders")


def test_scores_of_a_classifier(tmp_path: Path):
    path = tmp_path / "scores.json"
    path.write_text('{"results": {"a": [1, 2], "v_b.mp4": [3, 4]}, "class": ["x", "y"]}')

    def read() -> dict:
        found = read_video_scores(path, layout="cuhk", topk=1, videos=["v_a.mp4", "b"], labels=["x"])
        return {name: scores.tolist() for name, scores in found.scores.items()}

    assert read() == {"v_a.mp4": [1, 2], "b": [3, 4]}
    path.write_text('{"results": {"a": [1, 2], "b": [3, 4]}, "class": ["x", "x"]}')
    with pytest.raises(DataError, match="names classes twice: x"):
        read()
    path.write_text('{"results": {"a": [1, 2], "b": [3, 4], "a": [5, 6]}, "class": ["x", "y"]}')
    with pytest.raises(DataError, match="'a' stands twice"):
        read()


def test_keys_that_stand_twice(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"results": {"a": [], "b": [], "a": []}}')
    with pytest.raises(ValueError, match="'a' stands twice"):
        read_json(path)
    with pytest.raises(DataError, match=r"cannot read the detections .*'a' stands twice"):
        read_results(path)


@pytest.mark.slow
def test_detections_under_other_names_are_analysed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    annotations = annotate(tmp_path / "a.json", **{"clip.mp4": entry("validation"), "gone": entry("validation")})
    record = {"segment": [1.0, 2.0], "label": "x", "score": 0.9}
    detections = tmp_path / "detections.json"
    detections.write_text(json.dumps({"results": {"clip": [record]}}))
    (tmp_path / "list.txt").write_text("gone.avi\n")
    assert main(["diagnose", str(detections), str(annotations), "--exclude-file", str(tmp_path / "list.txt")]) == 0
    printed = capsys.readouterr().out
    assert "average mAP 100.00 %" in printed
    assert "not in the detections" not in printed
    detections.write_text(json.dumps({"results": {"clip": [record], "v_clip": [record]}}))
    assert main(["diagnose", str(detections), str(annotations)]) == 2
    assert "in two ways: clip.mp4" in capsys.readouterr().err
