"""Annotation files: the real one, every fault of structure, every fixed value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adatad_ds.data.annotations import Action, Video, load_annotations
from adatad_ds.errors import DataError
from adatad_ds.evaluation.metrics import evaluate_detections

THUMOS = Path(__file__).resolve().parents[4] / "shared/data/thumos14.json"


def write(path: Path, database: object) -> Path:
    path.write_text(json.dumps({"database": database}))
    return path


def entry(*actions: tuple[float, float, str], **fields: object) -> dict:
    annotations = [{"segment": [start, end], "label": label} for start, end, label in actions]
    return {"subset": "training", "duration": 10.0, "annotations": annotations} | fields


@pytest.mark.skipif(not THUMOS.exists(), reason="shared/data/thumos14.json is not beside the repository")
@pytest.mark.parametrize(("subset", "videos"), [("training", 200), ("validation", 210)])
def test_thumos14(subset: str, videos: int):
    found, reports = load_annotations(THUMOS, subset=subset)
    assert len(found.videos) == videos
    assert len(found.classes) == 20
    assert list(found.classes) == sorted(found.classes)
    raw = json.loads(THUMOS.read_text())["database"]
    in_file = sum(len(v["annotations"]) for v in raw.values() if v["subset"] == subset)
    kept = sum(len(video.actions) for video in found.videos)
    assert kept == in_file - 4  # four start beyond the end of their video
    assert len(reports) == 1
    assert reports[0].startswith("4 annotations dropped: start at or beyond the video's duration (video_")
    assert all(video.num_frames == raw[video.name]["frame"] for video in found.videos)
    for video in found.videos:
        assert all(0 <= a.start_sec < a.end_sec <= video.duration_sec for a in video.actions)


def test_fields(tmp_path: Path):
    database = {
        "a": entry((1, 2.5, "run"), frame=250, fps=25),
        "b": entry(num_frames=300),
        "c": entry(frames=100.0, fps=29.97),
        "d": entry(),
        "e": entry((0, 1, "jump"), subset="testing"),
    }
    found, reports = load_annotations(write(tmp_path / "a.json", database), subset="training", exclude=["d"])
    assert found.videos == (
        Video("a", "training", 10.0, 250, 25.0, (Action(1.0, 2.5, "run"),)),
        Video("b", "training", 10.0, 300, None, ()),
        Video("c", "training", 10.0, 100, 29.97, ()),
    )
    assert found.classes == ("jump", "run")  # also of the other subset
    assert reports == []


def test_class_order_is_kept(tmp_path: Path):
    path = write(tmp_path / "a.json", {"a": entry((1, 2, "run"))})
    assert load_annotations(path, subset="training", classes=["walk", "run"])[0].classes == ("walk", "run")


def test_values_are_fixed_and_reported(tmp_path: Path):
    nan, inf = float("nan"), float("inf")
    actions = [(2, 2, "x"), (3, 1, "x"), (10, 11, "x"), (nan, 3, "x"), (1, inf, "x"), (-3, -1, "x"), (-1, 4, "x")]
    actions += [(8, 12, "x"), (5, 6, "x"), (5, 6, "x"), (5, 6, "y")]
    found, reports = load_annotations(write(tmp_path / "a.json", {"v": entry(*actions)}), subset="training")
    assert found.videos[0].actions == (
        Action(0.0, 4.0, "x"),
        Action(8.0, 10.0, "x"),
        Action(5.0, 6.0, "x"),
        Action(5.0, 6.0, "y"),
    )
    assert reports == [
        "2 annotations dropped: end <= start (v #0, v #1)",
        "2 annotations dropped: a time is not a finite number (v #3, v #4)",
        "1 annotation dropped: start at or beyond the video's duration (v #2)",
        "1 annotation dropped: end before the video's start (v #5)",
        "1 annotation clipped: start before 0 (v #6)",
        "1 annotation clipped: end beyond the video's duration (v #7)",
        "1 annotation dropped: exact duplicates (v #9)",
    ]


def test_the_metric_counts_what_was_published(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry((2, 2, "x"), (8, 12, "x"), (20, 21, "x"), (5, 6, "x"), (5, 6, "x"))})
    found, reports = load_annotations(path, subset="training", as_published=True)
    assert [action.start_sec for action in found.videos[0].actions] == [8, 20, 5]
    assert reports == ["1 annotation dropped: end <= start (v #0)", "1 annotation counted once: duplicates (v #4)"]


def test_one_detection_of_an_action_annotated_twice_is_perfect(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry((1, 2, "x"), (1, 2, "x"))})
    found, _ = load_annotations(path, subset="training", as_published=True)
    truth = {video.name: [(a.start_sec, a.end_sec, a.label) for a in video.actions] for video in found.videos}
    detected = {"v": [{"segment": [1.0, 2.0], "label": "x", "score": 0.9}]}
    assert evaluate_detections(detected, truth, tiou=(0.5,)).ap.tolist() == [[1.0]]


def test_the_metric_counts_equals_to_a_millisecond_once(tmp_path: Path):
    actions = [(1, 2, "x"), (1.0009, 2, "x"), (1.0009, 2, "y"), (1, 2.002, "x")]
    path = write(tmp_path / "a.json", {"v": entry(*actions)})
    found, _ = load_annotations(path, subset="training", as_published=True)
    assert [(a.start_sec, a.end_sec, a.label) for a in found.videos[0].actions] == [
        (1, 2, "x"), (1.0009, 2, "y"), (1, 2.002, "x")
    ]  # fmt: skip


def test_actions_of_a_small_share_of_the_video(tmp_path: Path):
    """Of at most the share, as annotated: what reaches out of the video counts whole."""
    actions = [(1, 1.25, "x"), (2, 2.26, "x"), (24.9, 25.2, "x"), (3, 3.1, "x")]
    path = write(tmp_path / "a.json", {"v": {**entry(*actions), "duration": 25}, "w": entry((1, 1.05, "x"))})
    found, reports = load_annotations(path, subset="training", min_share=0.01)
    assert [action.start_sec for action in found.videos[0].actions] == [2, 24.9]
    assert found.videos[1].actions == ()
    said = "3 annotations dropped: at most 0.01 of the video (data.min_action_share) (v #0, v #3, w #0)"
    assert said in reports
    assert len(load_annotations(path, subset="training")[0].videos[0].actions) == 4


@pytest.mark.parametrize("as_published", [False, True])
def test_ambiguous_is_no_class_unless_named(tmp_path: Path, as_published: bool):
    path = write(tmp_path / "a.json", {"v": entry((1, 2, "x"), (3, 4, "Ambiguous"))})
    found, _ = load_annotations(path, subset="training", as_published=as_published)
    assert (found.classes, len(found.videos[0].actions)) == (("x",), 1)
    found, _ = load_annotations(path, subset="training", classes=("Ambiguous", "x"), as_published=as_published)
    assert len(found.videos[0].actions) == 2


def test_a_video_that_stands_twice_is_refused(tmp_path: Path):
    text = json.dumps({"database": {"v": entry((1, 2, "x"))}})
    path = tmp_path / "a.json"
    path.write_text(text.replace('{"v":', '{"v": {"subset": "training", "duration": 1, "annotations": []}, "v":'))
    with pytest.raises(DataError, match="'v' stands twice"):
        load_annotations(path, subset="training")


def test_a_byte_order_mark_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"database": {"v": entry((1, 2, "x"))}}).encode())
    assert load_annotations(path, subset="training")[0].classes == ("x",)


def test_labels_that_nobody_means_are_refused(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry((1, 2, "run"), (2, 3, "Run "), (3, 4, "run"), (4, 5, " "))})
    with pytest.raises(DataError, match=r"annotations with an empty label: 1; the labels 'Run ' \(1\), 'run' \(2\)"):
        load_annotations(path, subset="training")
    load_annotations(path, subset="training", classes=("run", "Run ", " "))  # whoever means them names them


def test_a_label_in_both_forms_of_unicode_is_one_class(tmp_path: Path):
    """They look the same: refused, unless the classes are named, whose form labels then have."""
    composed, decomposed = "h\u00f6her", "ho\u0308her"
    path = write(tmp_path / "a.json", {"v": entry((1, 2, composed), (2, 3, decomposed), (3, 4, "run"))})
    shown = r"the labels 'ho\\u0308her' \(1\), 'h\\xf6her' \(1\) differ only by Unicode form .* or name one in data"
    with pytest.raises(DataError, match=shown):
        load_annotations(path, subset="training")
    for name in (composed, decomposed):  # such as a checkpoint's
        found, _ = load_annotations(path, subset="training", classes=("run", name))
        assert found.classes == ("run", name)
        assert [action.label for action in found.videos[0].actions] == [name, name, "run"]
    found, _ = load_annotations(path, subset="training", classes=(composed, decomposed, "run"))
    assert [action.label for action in found.videos[0].actions] == [composed, decomposed, "run"]


def test_milliseconds_are_named(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry((1000, 2000, "x"), (3000, 4000, "x"))})
    with pytest.raises(DataError, match=r"2 of 2 actions begin beyond the end of their video.*divide them by 1000"):
        load_annotations(path, subset="training")


def test_equal_after_clipping_is_a_duplicate(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry((8, 12, "x"), (8, 13, "x"))})
    found, reports = load_annotations(path, subset="training")
    assert found.videos[0].actions == (Action(8.0, 10.0, "x"),)
    assert "1 annotation dropped: exact duplicates (v #1)" in reports


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "v: must be a mapping"),
        ({"duration": 3.0, "annotations": []}, "v.subset: missing"),
        ({"subset": "training", "annotations": []}, "v.duration: missing"),
        (entry(duration=0), "v.duration: 0, expected seconds > 0"),
        (entry(duration=float("nan")), "v.duration: nan"),
        (entry(duration="10"), "v.duration: '10'"),
        (entry(duration=True), "v.duration: True"),
        (entry(frame=-4), "v.frame: -4"),
        (entry(num_frames=2.5), "v.num_frames: 2.5"),
        (entry(frames="many"), "v.frames: 'many'"),
        (entry(fps=0), "v.fps: 0"),
        ({"subset": "training", "duration": 3.0}, "v.annotations: missing"),
        (entry(annotations={"label": "x"}), "v.annotations: {'label'"),
        (entry(annotations=[[1, 2]]), "v.annotations[0]: must be a mapping"),
        (entry(annotations=[{"label": "x"}]), "v.annotations[0].segment: missing"),
        (entry(annotations=[{"label": "x", "segment": [1]}]), "v.annotations[0].segment: [1]"),
        (entry(annotations=[{"label": "x", "segment": [1, "2"]}]), "v.annotations[0].segment: [1, '2']"),
        (entry(annotations=[{"segment": [1, 2]}]), "v.annotations[0].label: missing"),
        (entry((1, 2, "other")), "v.annotations[0].label: 'other' is not in data.classes"),
    ],
)
def test_faults_of_structure_name_video_and_field(tmp_path: Path, video: object, message: str):
    with pytest.raises(DataError) as caught:
        load_annotations(write(tmp_path / "a.json", {"v": video}), subset="training", classes=["x"])
    assert message in str(caught.value)
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_counted(tmp_path: Path):
    database = {f"v{i:02}": entry(duration=-1) for i in range(14)}
    with pytest.raises(DataError) as caught:
        load_annotations(write(tmp_path / "a.json", database), subset="training", exclude=["nobody"])
    text = str(caught.value)
    assert "'nobody'" in text
    assert text.count("duration: -1") == 9
    assert text.endswith("and 5 more")


def test_unknown_subset_lists_the_known(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry(), "w": entry(subset="testing")})
    with pytest.raises(DataError, match=r"subset 'train'.*testing, training"):
        load_annotations(path, subset="train")
    with pytest.raises(DataError, match="not excluded"):
        load_annotations(path, subset="testing", exclude=["w"])


def test_excluded_video_may_be_broken(tmp_path: Path):
    path = write(tmp_path / "a.json", {"v": entry(), "w": {"subset": 3}})
    assert [video.name for video in load_annotations(path, subset="training", exclude=["w"])[0].videos] == ["v"]
    with pytest.raises(DataError, match="expected a string"):
        load_annotations(path, subset="training")


def test_unreadable_files(tmp_path: Path):
    broken = tmp_path / "broken.json"
    for content in (b"{", b"\xff\xfe\x00", b"[]", b'{"database": []}', b""):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.json"):
            load_annotations(broken, subset="training")
    with pytest.raises(DataError, match="cannot read"):
        load_annotations(tmp_path / "absent.json", subset="training")
    with pytest.raises(DataError, match="cannot read"):
        load_annotations(tmp_path, subset="training")
