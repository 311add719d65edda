"""adatad-ds prepare-data on small files in each owner's layout, and on THUMOS14's real JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.data.annotations import load_annotations
from adatad_ds.data.sources.facts import DATASETS, Counts
from adatad_ds.data.sources.formats import SUBSETS, TRAINING, VALIDATION
from adatad_ds.data.sources.preparation import count_table
from tests.support.videos import write_video

DOCS = Path(__file__).resolve().parents[3] / "docs/reference/datasets.md"
THUMOS = Path(__file__).resolve().parents[4] / "shared/data/thumos14.json"

VERBS = "id,key,instances,category\n0,take,\"['take', 'get']\",retrieve\n3,open,\"['open']\",access\n"
NOUNS = "id,key,instances,category\n2,plate,\"['plate']\",crockery\n3,cupboard,\"['cupboard']\",furniture\n"
EPIC_COLUMNS = "narration_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class,all_nouns\n"
EPIC = {
    "EPIC_100_video_info.csv": "video_id,duration,fps,resolution\n"
    "P01_01,1652.152817,59.94,1920x1080\nP01_11,20.5,50.0,1920x1080\nP01_12,9.0,50.0,1920x1080\n",
    "EPIC_100_train.csv": EPIC_COLUMNS + "P01_01_0,P01_01,00:00:01.089,00:00:03.37,open door,3,3,['door']\n"
    "P01_01_1,P01_01,00:20:59.10,01:00:00.07,\"take plate, now\",0,2,\"['plate', 'door']\"\n",
    "EPIC_100_validation.csv": EPIC_COLUMNS + "P01_11_0,P01_11,00:00:00.00,00:00:01.89,take plate,0,2,['plate']\n",
    "EPIC_100_verb_classes.csv": VERBS,
    "EPIC_100_noun_classes.csv": NOUNS,
}
CHARADES_COLUMNS = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
CHARADES = {
    "Charades_v1_classes.txt": "c000 Holding some clothes\nc147 Closing a door\n",
    "Charades_v1_train.csv": CHARADES_COLUMNS
    + '46GP8,HR43,Kitchen,6,7,Yes,"A person, ""cooking"".",food;stove,"A man\nsits.",c000 11.90 21.20;c147 0.00 12.60,'
    + "24.83\n"
    + "N11GT,0KZ7,Stairs,6,7,No,Walks.,,Walks.,,18.33\n",
    "Charades_v1_test.csv": CHARADES_COLUMNS + "YSKX3,EWKA,Hallway,6,7,Yes,A.,door,A.,c147 1.20 7.10,9.0\n",
}
THUMOS_TEXTS = {
    "TH14_Temporal_annotations_validation/annotation/Diving_val.txt": "video_validation_0000011  2.5 3.75 \n"
    "video_validation_0000011  0.1 1.2 \n",
    "TH14_Temporal_annotations_validation/annotation/CliffDiving_val.txt": "video_validation_0000011  1.0 2.0\n",
    "TH14_Temporal_annotations_validation/annotation/Ambiguous_val.txt": "video_validation_0000012  1.0 2.0\n",
    "TH14_Temporal_Annotations_Test/annotations/annotation/Diving_test.txt": "video_test_0000004  0.2 1.1\n"
    "video_test_0000270  0.2 1.1\n",
}
MULTITHUMOS = {
    "multithumos/README": "read me",
    "multithumos/class_list.txt": "1 Fall\n2 Jump\n",
    "multithumos/annotations/Fall.txt": "video_validation_0000011 72.80 76.40  \n\nvideo_test_0000004 0.5 1.5\n",
    "multithumos/annotations/Jump.txt": "video_validation_0000011 44.00 50.90\n",
}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def run(dataset: str, *sources: Path, out: Path, options: Sequence[object] = ()) -> int:
    return main(["prepare-data", dataset, "--source", *map(str, sources), "--out", str(out), *map(str, options)])


def database(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())["database"]


def video(subset: str, duration: float | str, *actions: tuple[float, float, str], **fields: object) -> dict[str, Any]:
    annotations = [{"segment": [start, end], "label": label} for start, end, label in actions]
    return {"subset": subset, "duration": duration} | fields | {"annotations": annotations}


def community(folder: Path, name: str, videos: Mapping[str, Any]) -> Path:
    return write(folder, {name: json.dumps({"database": videos})}) / name


def moments(folder: Path, *, fps: float = 30.0) -> Path:
    """Two files as Ego4D's; clips begin at 5.0210286 seconds, where binary fractions would not subtract exactly."""

    def clip(name: str, *labels: tuple[float, float, str, bool], frames: float = 480 * fps) -> dict[str, Any]:
        items = [
            {"label": label, "primary": primary, "video_start_time": start, "video_end_time": end}
            for start, end, label, primary in labels
        ]
        edges = {"video_start_sec": 5.0210286, "video_end_sec": 485.0210286}
        edges |= {"video_start_frame": 150, "video_end_frame": 150 + int(frames)}
        return edges | {"clip_uid": name, "annotations": [{"annotator_uid": "x", "labels": items}]}

    wash, walk = (15.1210286, 25.3210286, "wash", True), (5.0210286, 6.0210286, "walk", False)
    for file, clips in {
        "moments_train.json": [clip("a", wash, walk), clip("b", walk), clip("slow", wash, frames=100)],
        "moments_val.json": [clip("c", wash)],
    }.items():
        tree = {"version": "1", "videos": [{"video_uid": "u", "split": "train", "clips": clips}]}
        write(folder, {file: json.dumps(tree)})
    return folder


@pytest.mark.skipif(not THUMOS.exists(), reason="shared/data/thumos14.json is not beside the repository")
def test_thumos14_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("thumos14", THUMOS, out=tmp_path / "out.json") == 0
    assert database(tmp_path / "out.json") == json.loads(THUMOS.read_text())["database"]
    printed = capsys.readouterr().out
    assert printed.count("as published") == 7  # every row of the table
    assert "differs" not in printed
    assert [line.split()[1:4] for line in printed.splitlines() if "videos  " in line] == [
        ["videos", "200", "200"],
        ["videos", "210", "210"],
    ]
    assert "video_test_0001496 (wrong annotations; not in these files)" in printed
    assert "videos: https://www.crcv.ucf.edu/THUMOS14" in printed
    assert not (tmp_path / "out.excluded.txt").exists()


def test_thumos14_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts, out = write(tmp_path / "texts", THUMOS_TEXTS), tmp_path / "out.json"
    durations = {"video_validation_0000011": video("training", 10.0, frame=300), "video_test_0000004": video("x", 4.0)}
    assert run("thumos14", texts, community(tmp_path, "d.json", durations), out=out) == 0
    assert database(out) == {
        "video_test_0000004": video(VALIDATION, 4.0, (0.2, 1.1, "Diving")),
        "video_validation_0000011": video(
            TRAINING, 10.0, (0.1, 1.2, "Diving"), (1.0, 2.0, "CliffDiving"), (2.5, 3.75, "Diving"), frame=300
        ),
    }
    printed = capsys.readouterr().out
    assert "left out: Ambiguous_val.txt" in printed
    assert "left out, as is customary: video_test_0000270 (wrong annotations)\n" in printed
    assert "differs by -199" in printed


def test_ambiguous_is_left_out_of_a_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos = {
        "video_validation_0000011": video("x", 10.0, (0.1, 1.2, "Diving"), (3.0, 4.0, "Ambiguous"), frame=300),
        "video_test_0000004": video("x", 4.0, (0.2, 1.1, "Diving"), frame=100),
    }
    assert run("thumos14", community(tmp_path, "a.json", videos), out=tmp_path / "out.json") == 0
    written = database(tmp_path / "out.json")["video_validation_0000011"]
    assert written["annotations"] == [{"segment": [0.1, 1.2], "label": "Diving"}]
    printed = capsys.readouterr().out
    assert "left out: actions labelled Ambiguous, which the owners do not evaluate: 1" in printed
    assert printed.count("differs by -19\n") == 3  # one class, in each subset and together


def test_durations_come_from_the_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts, out, videos = write(tmp_path / "texts", THUMOS_TEXTS), tmp_path / "out.json", tmp_path / "videos"
    assert run("thumos14", texts, out=out) == 1
    assert "Durations come from the videos: name their folder with --videos" in capsys.readouterr().out
    videos.mkdir()
    write_video(videos / "video_test_0000004.mp4", frames=20, fps=10)
    (videos / "video_validation_0000011.mp4").write_bytes(b"no video")
    assert run("thumos14", texts, out=out, options=["--videos", videos]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 videos cannot be used from" in printed
    assert "video_validation_0000011.mp4: " in printed
    shutil.copy(videos / "video_test_0000004.mp4", videos / "video_validation_0000011.mp4")
    assert run("thumos14", texts, out=out, options=["--videos", videos]) == 0
    assert {(v["duration"], v["frame"]) for v in database(out).values()} == {(2.0, 20)}


def test_subsets_of_thumos14_go_by_name(tmp_path: Path):
    videos = {
        "video_validation_0000011": video("Validation", 10.0, (1, 2, "Diving")),
        "video_test_0000004": video("Test", 4.0, (1, 2, "Diving")),
        "video_test_0001292": video("Test", 4.0),
    }
    assert run("thumos14", community(tmp_path, "a.json", videos), out=tmp_path / "out.json") == 0
    assert {name: v["subset"] for name, v in database(tmp_path / "out.json").items()} == {
        "video_validation_0000011": TRAINING,
        "video_test_0000004": VALIDATION,
    }


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("activitynet", "activity_net.v1-3.min.json"),
        ("hacs", "HACS_segments_v1.1.1.json"),
        ("fineaction", "annotations_gt.json"),
    ],
)
@pytest.mark.parametrize("by_folder", [False, True])
def test_activitynets_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, file: str, by_folder: bool
):
    videos = {
        "--0edUL8zmA": video("training", "92.166667", (5.4, 11.6, "Dodgeball"), url="https://"),
        "b": video("validation", 30.25, (0, 40.01, "Archery"), (3, 3, "Archery"), fps=25.0, resolution="320x240"),
        "c": video("testing", 20.0),
        "d": video("training", 10.0),
    }
    path = community(tmp_path / "files", file, videos)
    assert run(dataset, path.parent if by_folder else path, out=tmp_path / "files/out.json") == 0
    assert database(tmp_path / "files/out.json") == {
        "--0edUL8zmA": video(TRAINING, 92.166667, (5.4, 11.6, "Dodgeball")),
        "b": video(VALIDATION, 30.25, (0, 40.01, "Archery"), (3, 3, "Archery")),
        "d": video(TRAINING, 10.0),
    }
    printed = capsys.readouterr().out
    assert "left out: videos of subset 'testing': 1\n" in printed
    assert "in validation: 1 annotation clipped: end beyond the video's duration (b #0)\n" in printed
    assert "evaluation counts actions beyond a video's ends as they are written" in printed


@pytest.mark.parametrize(("dataset", "labels"), [("epic_verb", ("open", "take")), ("epic_noun", ("cupboard", "plate"))])
def test_epic(tmp_path: Path, dataset: str, labels: tuple[str, str]):
    assert run(dataset, write(tmp_path / "epic", EPIC), out=tmp_path / "out.json") == 0
    assert database(tmp_path / "out.json") == {
        "P01_01": video(TRAINING, 1652.152817, (1.089, 3.37, labels[0]), (1259.1, 3600.07, labels[1])),
        "P01_11": video(VALIDATION, 20.5, (0.0, 1.89, labels[1])),
    }


def test_epic_without_names_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = {name: text for name, text in EPIC.items() if "classes" not in name}
    assert run("epic_noun", write(tmp_path / "epic", files), out=tmp_path / "out.json") == 0
    assert database(tmp_path / "out.json")["P01_11"] == video(VALIDATION, 20.5, (0.0, 1.89, "noun_2"))
    assert "EPIC_100_noun_classes.csv is missing: labels are noun_0, noun_1, ... by class id" in capsys.readouterr().out


def test_ego4d(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("ego4d_mq", moments(tmp_path / "ego4d"), out=tmp_path / "out.json") == 0
    assert database(tmp_path / "out.json") == {
        "a": video(TRAINING, 480.0, (10.1, 20.3, "wash")),
        "c": video(VALIDATION, 480.0, (10.1, 20.3, "wash")),
    }
    printed = capsys.readouterr().out
    assert "left out: clips whose rate is not 10 to 100 frames per second: 1 (slow)" in printed
    assert "left out: clips without a primary label: 1 (b)" in printed
    assert printed.count("no published count known") == 6


EPIC_TEST = {
    "EPIC_100_test_timestamps.csv": "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,"
    "stop_timestamp,start_frame,stop_frame\nP01_12_0,P01,P01_12,00:00:02.851,00:00:02.86,00:00:03.87,143,193\n"
    "P01_12_1,P01,P01_12,00:00:05.102,00:00:04.97,00:00:05.75,248,287\n"
}


def test_ego4ds_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Clips of 10 and 100 frames a second count, those that begin before their video from its start; each once."""
    folder, out = moments(tmp_path / "ego4d"), tmp_path / "out.json"
    for rate in (10, 100):
        moments(folder, fps=rate)
        assert run("ego4d_mq", folder, out=out) == 0
        assert set(database(out)) == {"a", "c"}
    tree = json.loads((folder / "moments_val.json").read_text())
    clip = tree["videos"][0]["clips"][0]
    clip |= {"video_start_sec": -0.02, "video_end_sec": 20.0, "video_start_frame": -1, "video_end_frame": 2000}
    clip["annotations"][0]["labels"][0] |= {"video_start_time": 1.0, "video_end_time": 2.0}
    write(folder, {"moments_val.json": json.dumps(tree)})
    assert run("ego4d_mq", folder, out=out) == 0
    assert database(out)["c"] == video(VALIDATION, 20.0, (1.0, 2.0, "wash"))
    clip["clip_uid"] = "a"
    write(folder, {"moments_val.json": json.dumps(tree)})
    assert run("ego4d_mq", folder, out=out) == 2
    assert "the files list videos twice: a" in capsys.readouterr().err


def test_epics_test_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = write(tmp_path / "epic", EPIC | EPIC_TEST), tmp_path / "out.json"
    assert run("epic_verb", folder, out=out) == 0
    assert "P01_12" not in database(out)
    assert run("epic_verb", folder, out=out, options=["--with-test"]) == 0
    assert database(out)["P01_12"] == video("testing", 9.0)
    assert "testing     videos         1         67  differs by -66\n" in capsys.readouterr().out
    videos = load_annotations(out, subset="testing", as_published=True)[0].videos
    assert [(one.name, one.actions) for one in videos] == [("P01_12", ())]
    write(folder, {"EPIC_100_test_timestamps.csv": "video_id\nP99_01\n"})
    assert run("epic_verb", folder, out=out, options=["--with-test"]) == 2
    assert "gives no duration for P99_01" in capsys.readouterr().err
    assert run("thumos14", write(tmp_path / "t", THUMOS_TEXTS), out=out, options=["--with-test"]) == 2
    assert "--with-test: THUMOS14 has no challenge" in capsys.readouterr().err


def test_ego4ds_test_clips(tmp_path: Path):
    folder, out = moments(tmp_path / "ego4d"), tmp_path / "out.json"
    edges = {"video_start_sec": 10.5, "video_end_sec": 20.75, "video_start_frame": 315, "video_end_frame": 622}
    tree = {"version": "1", "videos": [{"video_uid": "u", "split": "test", "clips": [edges | {"clip_uid": "t"}]}]}
    write(folder, {"moments_test_unannotated.json": json.dumps(tree)})
    assert run("ego4d_mq", folder, out=out, options=["--with-test"]) == 0
    assert database(out)["t"] == video("testing", 10.25)
    assert set(database(out)) == {"a", "c", "t"}


def test_lists_of_videos_to_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A published list, and what another run has left out: fed back, it leaves out the same."""
    names = [f"v{index:02d}" for index in range(8)]
    videos = {name: video(SUBSETS[index % 2], 9.0, (1, 2, "x")) for index, name in enumerate(names)}
    source, out, listed = community(tmp_path, "a.json", videos), tmp_path / "out.json", tmp_path / "block.json"
    listed.write_text(json.dumps(["v_v06", "v07.mp4", "not_there"]))
    assert run("activitynet", source, out=out, options=["--exclude-file", listed]) == 0
    assert list(database(out)) == names[:6]
    assert f"left out by {listed}: 2 videos; 3 are listed there" in capsys.readouterr().out
    excluded = tmp_path / "out.excluded.txt"
    assert excluded.read_text().split() == ["v06", "v07"]
    for _ in range(2):  # into the same place, too
        assert run("activitynet", source, out=out, options=["--exclude-file", excluded]) == 0
        assert list(database(out)) == names[:6]
        assert excluded.read_text().split() == ["v06", "v07"]
    found, notes = load_annotations(source, subset=TRAINING, exclude_file=excluded)
    assert [one.name for one in found.videos] == ["v00", "v02", "v04"]
    assert notes == [f"1 videos of 'training' left out by {excluded}"]


def test_charades(tmp_path: Path):
    assert run("charades", write(tmp_path / "charades", CHARADES), out=tmp_path / "out.json") == 0
    clothes, door = "Holding some clothes", "Closing a door"
    assert database(tmp_path / "out.json") == {
        "46GP8": video(TRAINING, 24.83, (11.9, 21.2, clothes), (0.0, 12.6, door)),
        "N11GT": video(TRAINING, 18.33),
        "YSKX3": video(VALIDATION, 9.0, (1.2, 7.1, door)),
    }


def test_files_as_spreadsheets_and_archives_leave_them(tmp_path: Path):
    """With a byte order mark; beside macOS's "._" files; named twice."""
    folder, out = (
        write(tmp_path / "charades", {name: "\ufeff" + text for name, text in CHARADES.items()}),
        tmp_path / "o",
    )
    write(folder, {f"__MACOSX/._{name}": "\0" for name in CHARADES})
    assert run("charades", folder, folder, folder / "Charades_v1_test.csv", out=out) == 0
    assert set(database(out)) == {"46GP8", "N11GT", "YSKX3"}


def test_a_csv_file_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "charades", CHARADES)
    (folder / "Charades_v1_test.csv").write_bytes(b"id,actions,length\nA\xfc,,9\n")
    assert run("charades", folder, out=tmp_path / "out.json") == 2
    assert "test.csv cannot be read: 'utf-8' codec can't decode byte 0xfc" in capsys.readouterr().err


def test_a_duration_of_0_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    videos = {name: video(SUBSETS[name == "b"], 0.0 if name == "c" else 9.0, (1, 2, "x")) for name in "abc"}
    assert run("activitynet", community(tmp_path, "a.json", videos), out=tmp_path / "out.json") == 1
    assert "1 of 3 videos cannot be used:\n  c: no duration known\n" in capsys.readouterr().out


def test_multithumos(tmp_path: Path):
    durations = {
        "video_validation_0000011": video("training", 80.0, frame=2400),
        "video_test_0000004": video("validation", 4.0),
    }
    path = community(tmp_path, "thumos14.json", durations)
    assert run("multithumos", write(tmp_path / "files", MULTITHUMOS), path, out=tmp_path / "out.json") == 0
    assert database(tmp_path / "out.json") == {
        "video_validation_0000011": video(TRAINING, 80.0, (44.0, 50.9, "Jump"), (72.8, 76.4, "Fall"), frame=2400),
        "video_test_0000004": video(VALIDATION, 4.0, (0.5, 1.5, "Fall")),
    }


def test_counts_beside_published_ones():
    dataset = replace(
        DATASETS["charades"], num_classes=2, published={TRAINING: Counts(3, None, 1)}, counts_from="the paper"
    )
    assert count_table(dataset, []) == [
        "                       found  published",
        "training    videos         0          3  differs by -3",
        "            instances      0          -  no published count known",
        "            classes        0          1  differs by -1",
        "validation  videos         0          -  no published count known",
        "            instances      0          -  no published count known",
        "            classes        0          -  no published count known",
        "together    classes        0          2  differs by -2",
        "published: the paper",
    ]


def test_missing_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"v{index:02d}" for index in range(16)]
    videos = {name: video(SUBSETS[index % 2], 9.0, (1, 2, "x")) for index, name in enumerate(names)}
    source, folder, out = community(tmp_path, "a.json", videos), tmp_path / "videos", tmp_path / "out.json"
    folder.mkdir()
    for name in ("v00.mp4", "v_v01.MKV", "v02.mp4", "v02.avi", "v03.txt"):
        (folder / name).touch()
    assert run("activitynet", source, out=out, options=["--videos", folder]) == 1
    printed = capsys.readouterr().out
    assert f"13 of 16 videos cannot be used from {folder}:\n  v03: no file\n" in printed
    assert "  v12: no file\n  and 3 more\n" in printed
    assert "Nothing was written. To continue without these videos, add --exclude-missing." in printed
    assert not out.exists()

    assert run("activitynet", source, out=out, options=["--videos", folder, "--exclude-missing"]) == 0
    assert list(database(out)) == ["v00", "v01", "v02"]
    assert (tmp_path / "out.excluded.txt").read_text().split() == names[3:]
    assert "out.excluded.txt: the 13 videos that were left out: v03, v04" in capsys.readouterr().out

    for name in names[3:]:
        (folder / f"{name}.webm").touch()
    assert run("activitynet", source, out=out, options=["--videos", folder]) == 0
    assert list(database(out)) == names
    assert not (tmp_path / "out.excluded.txt").exists()  # no list that is out of date
    assert len(load_annotations(out, subset=TRAINING)[0].videos) == 8


def test_nothing_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = community(tmp_path, "a.json", {"a": video("training", 9.0, (1, 2, "x"))}), tmp_path / "out.json"
    assert run("activitynet", source, out=out) == 2
    assert "no video of subset 'validation' is left" in capsys.readouterr().err
    assert not out.exists()
    assert run("activitynet", source, out=out, options=["--videos", tmp_path / "nowhere"]) == 2
    assert "--videos: there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [
        ("charades", {"Charades_v1_test.csv": None}, "exactly one Charades_v1_test.csv is needed; "),
        ("charades", {"Charades_v1_test.csv": "id,actions\n"}, "test.csv, line 1: there is no column 'length'"),
        ("charades", {"Charades_v1_classes.txt": "c000\n"}, "classes.txt, line 1: 'c000', expected a class and its"),
        (
            "charades",
            {"Charades_v1_test.csv": "id,actions,length\nA,c147 1.0 2.0,9\nB,c148 1.0 2.0,9\n"},
            "test.csv, line 3, column 'actions': 'c148 1.0 2.0', expected class, start and end, the class one of",
        ),
        (
            "charades",
            {"Charades_v1_test.csv": "id,actions,length\nA,c147 1.0 x,9\n"},
            "test.csv, line 2, column 'actions': 'x', expected a number of seconds",
        ),
        (
            "charades",
            {"Charades_v1_test.csv": "id,actions,length\nA,,soon\n"},
            "test.csv, line 2, column 'length': 'soon', expected a number of seconds",
        ),
        (
            "charades",
            {"Charades_v1_test.csv": "id,actions,length\nA,\n"},
            "line 2: the line ends before column 'length'",
        ),
        ("charades", {"Charades_v1_test.csv": "id,actions,length\n46GP8,,9\n"}, "the files list videos twice: 46GP8"),
        (
            "charades",
            {"Charades_v1_test.csv": "id,actions,length\nA,c147 1.0 2.0 3.0,9\n"},
            "test.csv, line 2, column 'actions': 'c147 1.0 2.0 3.0', expected class, start and end",
        ),
        (
            "charades",
            {"Charades_v1_test.csv": "id,actions,length\nA,,inf\n"},
            "test.csv, line 2, column 'length': 'inf', expected a number of seconds",
        ),
        (
            "charades",
            {"Charades_v1_classes.txt": "c000 Holding\nc147 Closing a door\nc148 Holding\n"},
            "classes.txt, line 3: 'c148 Holding', expected a class and its name (c000 Holding some clothes), each once",
        ),
        ("charades", {"Charades_v1_test.csv": "id,actions,length\n" + "A" * 200_000}, "test.csv cannot be read: field"),
        (
            "epic_noun",
            {
                "EPIC_100_noun_classes.csv": None,
                "EPIC_100_train.csv": EPIC_COLUMNS + "x,P01_01,0:0,0:0,open,3,two,[]\n",
            },
            "train.csv, line 2, column 'noun_class': 'two', expected the id of a class",
        ),
        (
            "epic_verb",
            {"EPIC_100_validation.csv": EPIC["EPIC_100_train.csv"]},
            "the files list videos twice: P01_01",
        ),
        ("epic_verb", {"EPIC_100_video_info.csv": "video_id,fps\n"}, "info.csv, line 1: there is no column 'duration'"),
        (
            "epic_verb",
            {"EPIC_100_train.csv": EPIC_COLUMNS + "x,P01_01,1.5,00:00:03.37,open,3,3,[]\n"},
            "train.csv, line 2, column 'start_timestamp': '1.5', expected a time like 00:00:01.089",
        ),
        (
            "epic_verb",
            {"EPIC_100_train.csv": EPIC_COLUMNS + "x,P01_01,00:00:01.00,00:00:61.00,open,3,3,[]\n"},
            "train.csv, line 2, column 'stop_timestamp': '00:00:61.00', expected a time",
        ),
        (
            "epic_verb",
            {"EPIC_100_train.csv": EPIC_COLUMNS + "x,P09_01,00:00:01.00,00:00:02.00,open,3,3,[]\n"},
            "train.csv, line 2, column 'video_id': 'P09_01' is not in ",
        ),
        (
            "epic_noun",
            {"EPIC_100_train.csv": EPIC_COLUMNS + "x,P01_01,00:00:01.00,00:00:02.00,open,3,7,[]\n"},
            "train.csv, line 2, column 'noun_class': '7', expected an id of EPIC_100_noun_classes.csv",
        ),
        (
            "thumos14",
            {"a/Diving_val.txt": "video_validation_0000011  1.0\n"},
            "Diving_val.txt, line 1: 'video_validation_0000011  1.0', expected three columns: video, start and end",
        ),
        (
            "thumos14",
            {"a/Diving_val.txt": "\nvideo_validation_0000011  1.0 nan\n"},
            "Diving_val.txt, line 2, column 3: 'nan', expected a number of seconds",
        ),
        (
            "thumos14",
            {"a/Diving_val.txt": "v_Diving_g01  1.0 2.0\n"},
            "Diving_val.txt, line 1, column 1: 'v_Diving_g01' starts with none of video_validation_, video_test_",
        ),
        (
            "thumos14",
            {name: None for name in THUMOS_TEXTS if "Test" in name},
            "hold no *_test.txt: both of THUMOS14's annotation archives are needed",
        ),
        (
            "thumos14",
            dict.fromkeys(THUMOS_TEXTS),
            "exactly one *.json is needed, or the owners' CLASS_val.txt",
        ),
        (
            "multithumos",
            {"multithumos/annotations/Fall.txt": None, "multithumos/annotations/Jump.txt": None},
            "hold no annotations/CLASS.txt",
        ),
        ("hacs", {"HACS_segments_v1.1.1.json": "{"}, "HACS_segments_v1.1.1.json cannot be read: "),
        ("hacs", {"HACS_segments_v1.1.1.json": "[]"}, "HACS_segments_v1.1.1.json must hold an object"),
        ("hacs", {"HACS_segments_v1.1.1.json": '{"database": []}'}, '.json must hold {"database": '),
        (
            "hacs",
            {"HACS_segments_v1.1.1.json": '{"database": {"a": {"subset": "training", "duration": "x"}}}'},
            "HACS_segments_v1.1.1.json, a: annotations is None, expected a list of mappings",
        ),
        (
            "hacs",
            {
                "HACS_segments_v1.1.1.json": '{"database": {"a": {"subset": "training", "duration": "1 min", '
                '"annotations": []}}}'
            },
            "HACS_segments_v1.1.1.json, a.duration: '1 min', expected a number of seconds",
        ),
        (
            "hacs",
            {
                "HACS_segments_v1.1.1.json": '{"database": {"a": {"subset": "training", "duration": 1, '
                '"annotations": [{"label": "x", "segment": [1]}]}}}'
            },
            "a, annotations[0]: {'label': 'x', 'segment': [1]}, expected a label and a segment of [start, end]",
        ),
        (
            "ego4d_mq",
            {"moments_val.json": '{"videos": [{"clips": [{"clip_uid": "c", "video_start_sec": true}]}]}'},
            "moments_val.json, clip c: video_start_sec is True, expected a number",
        ),
        ("ego4d_mq", {"moments_val.json": None}, "exactly one moments_val.json is needed; "),
        ("ego4d_mq", {"moments_val.json": '{"videos": [{"clips": [{}]}]}'}, "clip None: clip_uid is None, expected a"),
        (
            "ego4d_mq",
            {"moments_val.json": '{"videos": [{"clips": [{"clip_uid": "c", "video_start_sec": "0"}]}]}'},
            "moments_val.json, clip c: video_start_sec is '0', expected a number",
        ),
    ],
)
def test_faults_name_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, files: dict[str, str | None], message: str
):
    folder = moments(tmp_path / "files")
    for layout in (CHARADES, EPIC, *([THUMOS_TEXTS] * (dataset == "thumos14")), MULTITHUMOS):
        write(folder, layout)
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            write(folder, {name: text})
    if dataset == "thumos14":
        for path in folder.glob("*.json"):
            path.unlink()
    assert run(dataset, folder, out=tmp_path / "out.json") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.json").exists()


def test_sources_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = community(tmp_path, "a.json", {})
    assert run("activitynet", source, out=tmp_path / "x" / ".." / "a.json") == 2
    assert "is one of the sources, which are not overwritten" in capsys.readouterr().err


def test_a_source_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("charades", tmp_path / "nowhere", out=tmp_path / "out.json") == 2
    assert f"--source: there is no '{tmp_path / 'nowhere'}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", DATASETS)
def test_documented(name: str):
    dataset, text = DATASETS[name], DOCS.read_text(encoding="utf-8")
    section = next(part for part in text.split("\n## ") if f"adatad-ds prepare-data {name} " in part)
    links = f"{dataset.annotations_from} {dataset.videos_from} {dataset.features_from}"
    for url in re.findall(r"https?://[^ ;:),]+", links):
        assert url in section
    for excluded in dataset.exclusions:
        assert excluded in section
    for counts in dataset.published.values():
        for count in (counts.videos, counts.instances):
            assert count is None or f"| {count:,} " in section
    assert f" {dataset.num_classes} classes" in section
