"""adatad-ds prepare-data on one's own videos: tables and exports in each tool's format, read as the tool means them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from adatad_ds.cli.commands import main
from adatad_ds.data.annotations import Action
from adatad_ds.data.sources.own import divided
from adatad_ds.data.video_files import find_videos
from tests.support.videos import write_late, write_video

Form = Literal["NFC", "NFD"]  # of Unicode
FPS = 10
UNEVEN = [0.05 * i + 0.1 * max(0, i - 20) for i in range(40)]  # 20 frames a second, then 6 2/3

ELAN_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-01T10:00:00+01:00" FORMAT="3.0" VERSION="3.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/Users/me/Match%201.mp4" MIME_TYPE="video/mp4"
            RELATIVE_MEDIA_URL="./Match%201.mp4" {origin}/>
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/Users/me/Match%201.wav" MIME_TYPE="audio/x-wav"/>
        <PROPERTY NAME="lastUsedAnnotationId">9</PROPERTY>
    </HEADER>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/>
        <TIME_SLOT TIME_SLOT_ID="ts2"/>
        <TIME_SLOT TIME_SLOT_ID="ts3"/>
        <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="2000"/>
        <TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="2100"/>
        <TIME_SLOT TIME_SLOT_ID="ts6" TIME_VALUE="2900"/>
    </TIME_ORDER>
"""
ELAN_TAIL = """
    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Symbolic_Subdivision" GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="part"
        CONTROLLED_VOCABULARY_REF="parts" TIME_ALIGNABLE="false"/>
    <CONSTRAINT DESCRIPTION="Symbolic subdivision of a parent annotation" STEREOTYPE="Symbolic_Subdivision"/>
    <CONTROLLED_VOCABULARY CV_ID="parts">
        <DESCRIPTION LANG_REF="und"/>
        <CV_ENTRY_ML CVE_ID="cveid0"><CVE_VALUE DESCRIPTION="" LANG_REF="und">up</CVE_VALUE></CV_ENTRY_ML>
    </CONTROLLED_VOCABULARY>
</ANNOTATION_DOCUMENT>
"""


def elan(*tiers: str, origin: str = "") -> str:
    return ELAN_HEAD.format(origin=origin) + "".join(tiers) + ELAN_TAIL


def elan_tier(name: str, *annotations: str, attributes: str = 'LINGUISTIC_TYPE_REF="default-lt"') -> str:
    inner = "".join(f"<ANNOTATION>{annotation}</ANNOTATION>" for annotation in annotations)
    return f'<TIER {attributes} TIER_ID="{name}">{inner}</TIER>'


def aligned(name: str, start: str, end: str, value: str) -> str:
    return (
        f'<ALIGNABLE_ANNOTATION ANNOTATION_ID="{name}" TIME_SLOT_REF1="{start}" TIME_SLOT_REF2="{end}">'
        f"<ANNOTATION_VALUE>{value}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION>"
    )


def referring(name: str, parent: str, value: str, *, after: str = "", attributes: str = "") -> str:
    previous = f'PREVIOUS_ANNOTATION="{after}"' if after else ""
    return (
        f'<REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="{parent}" {previous} {attributes}>'
        f"<ANNOTATION_VALUE>{value}</ANNOTATION_VALUE></REF_ANNOTATION>"
    )


def cvat(body: str, *, video: str = "Match 1.mp4", step: int = 1, start: int = 0, task: int = 7) -> str:
    frames = f"<frame_filter>step={step}</frame_filter>" if step > 1 else "<frame_filter></frame_filter>"
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>{task}</id>
      <name>a task</name>
      <size>40</size>
      <mode>interpolation</mode>
      <start_frame>{start}</start_frame>
      <stop_frame>39</stop_frame>
      {frames}
      <labels><label><name>person</name><color>#33ddff</color><type>any</type>
        <attributes><attribute><name>action</name><mutable>True</mutable><input_type>select</input_type>
        <default_value>none</default_value><values>none\nwalk\nrun</values></attribute></attributes></label></labels>
      <original_size><width>176</width><height>96</height></original_size>
      <source>{video}</source>
    </task>
    <dumped>2026-01-01 10:00:00.000000+00:00</dumped>
  </meta>
{body}
</annotations>
"""


def box(frame: int, *, outside: int = 0, **attributes: str) -> str:
    inner = "".join(f'<attribute name="{name}">{value}</attribute>' for name, value in attributes.items())
    corners = 'xtl="1.00" ytl="2.00" xbr="30.00" ybr="40.00" z_order="0"'
    return f'<box frame="{frame}" keyframe="1" outside="{outside}" occluded="0" {corners}>{inner}</box>'


def via(metadata: dict[str, Any], *, options: dict[str, str] | None = None, kind: int = 4) -> dict[str, Any]:
    """As via_video_annotator.html 3.0.11 saves a project."""
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "rev": "1", "pname": "P", "vid_list": ["1", "2"], "created": 1},
        "config": {
            "file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}},
            "ui": {"file_content_align": "center"},
        },
        "attribute": {
            "1": {
                "aname": "TEMPORAL-SEGMENTS",
                "anchor_id": "FILE1_Z2_XY0",
                "type": kind,
                "desc": "Temporal segment attribute added by default",
                "options": options or {"default": "Default"},
                "default_option_id": "",
            },
            "2": {"aname": "Object", "anchor_id": "FILE1_Z1_XY1", "type": 1, "desc": "", "options": {}},
        },
        "file": {
            "1": {"fid": "1", "fname": "Match 1.mp4", "type": 4, "loc": 1, "src": ""},
            "2": {"fid": "2", "fname": "uneven.mp4", "type": 4, "loc": 1, "src": ""},
        },
        "metadata": metadata,
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
    }


def segment(*times: float, view: str = "1", **values: str) -> dict[str, Any]:
    return {"vid": view, "flg": 0, "z": list(times), "xy": [], "av": {key[1:]: value for key, value in values.items()}}


def studio(*results: dict[str, Any], video: str = "/data/upload/1/1a2b3c4d-Match_1.mp4", **task: Any) -> dict[str, Any]:
    annotation = {"id": 3, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 12, "data": {"video": video, "fps": 20}, "annotations": [annotation], "predictions": []} | task


def ranged(start: int, end: int, *labels: str) -> dict[str, Any]:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": list(labels)}
    origin = {"origin": "manual", "to_name": "video", "from_name": "timelineLabels", "type": "timelinelabels"}
    return {"id": "aB3", "value": value} | origin


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "Match 1.mp4", frames=40, fps=FPS, width=48, height=32)
    write_video(folder / "Match_1.mp4", frames=40, fps=FPS, width=48, height=32)
    write_video(folder / "uneven.mp4", frames=40, times=UNEVEN, width=48, height=32)
    write_late(folder / "late.mp4", frames=20, late_sec=1.0)
    return folder


def write(path: Path, content: str | Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def run(tool: str, source: Path, videos: Path, out: Path, *options: str) -> int:
    arguments = ["--source", str(source), "--videos", str(videos), "--out", str(out), *options]
    return main(["prepare-data", tool, *arguments])


def read(out: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Segments that are there, by video."""
    database = json.loads(out.read_text(encoding="utf-8"))["database"]
    return {
        name: [(round(a["segment"][0], 3), round(a["segment"][1], 3), a["label"]) for a in entry["annotations"]]
        for name, entry in database.items()
        if entry["annotations"]
    }


def test_a_table(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    table = write(
        tmp_path / "t.csv",
        "\ufefffile;start;end;label;note\n"
        "Match 1.mp4;0:01.5;2.25;jump, high;x\nMatch 1.mp4;2;3;throw;\n\n"
        "uneven;0:00:00.5;1;jump, high;\nlate.mp4;;;;\n",
    )
    assert run("csv", table, videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {
        "Match 1": [(1.5, 2.25, "jump, high"), (2.0, 3.0, "throw")],
        "uneven": [(0.5, 1.0, "jump, high")],
    }
    database = json.loads((tmp_path / "a.json").read_text())["database"]
    assert database["Match 1"]["duration"] == 4.0
    assert "fps" not in database["Match 1"]  # measured by the trainer
    printed = capsys.readouterr().out
    assert f"not used: columns of {table}: note\n" in printed
    assert (
        "videos without a segment, kept as background, used for testing but not for training: 2 (Match_1.mp4, late"
        in printed
    )
    assert "4 videos, 3 instances" in printed
    assert "throw                  1 in 1 videos" in printed  # it stays for training, since there is no other
    assert "none for validation" in printed


def test_frames_of_a_table_are_those_of_the_file(tmp_path: Path, videos: Path):
    """Whatever its rate and beginning: the last frame belongs to the action."""
    table = write(
        tmp_path / "t.csv",
        "file,start,end,label\nMatch 1.mp4,5,14,a\nuneven.mp4,10,25,a\nuneven.mp4,38,39,a\nlate.mp4,0,3,a\n",
    )
    assert run("csv", table, videos, tmp_path / "a.json", "--unit", "frames") == 0
    found = read(tmp_path / "a.json")
    assert found["Match 1"] == [(0.5, 1.5, "a")]
    assert found["uneven"][0] == pytest.approx((UNEVEN[10], UNEVEN[26], "a"), abs=1e-3)
    assert found["uneven"][1][1] > UNEVEN[39]
    assert found["late"] == [(1.0, 1.4, "a")]  # seconds are those of a player


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Match 1.mp4,1,x,a", "line 2, column 'end': 'x', expected seconds (3.5) or a time (1:02.5, 0:01:02.5)"),
        (
            'Match 1.mp4,"1,5",2,a',
            "column 'start': '1,5', expected seconds (3.5) or a time (1:02.5, 0:01:02.5); decimals",
        ),
        ("Match 1.mp4,-1,2,a", "line 2, column 'start': '-1', expected seconds"),
        ("Match 1.mp4,3,2,a", "line 2, column 'end': '2' is not after the start, '3'"),
        ("Match 1.mp4,1,2,", "line 2, column 'label': it is empty; leave start and end empty, too"),
        (",1,2,a", "line 2, column 'file': it is empty"),
        ("Match 1.mp4,1,2,a,b", "line 2: 5 cells, but 4 columns"),
        ("x/late.mp4,1,2,a\ny/late.mp4,1,2,a", "names late.mp4 in two folders, 'x' and 'y': are they one video?"),
        ("x/late.mp4,1,2,a\ny/late,1,2,a", "names late.mp4 in two folders, 'x' and 'y'"),
        ("late.mp4,1,2,a\nlate.mp4,1,2,A", "the labels 'A' (1), 'a' (1) differ only by case or spaces"),
        ("late.mp4,1,1,a", "line 2, column 'end': '1' is not after the start, '1'"),
        ("late.mp4,0:75,2:00,a", "line 2, column 'start': '0:75', expected seconds"),
        ('late.mp4,1,2,"a', "t.csv cannot be read: unexpected end of data"),
        ("late.mp4,,,", "hold no segment"),
    ],
)
def test_a_wrong_line_is_named(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
):
    table = write(tmp_path / "t.csv", f"file,start,end,label\n{line}\n")
    assert run("csv", table, videos, tmp_path / "a.json") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "a.json").exists()


def test_tables_as_programs_write_them(tmp_path: Path, videos: Path):
    """With tabs; lines that end early, or in empty cells; empty lines."""
    table = write(tmp_path / "t.csv", "file\tstart\tend\tlabel\nlate.mp4\t1\t2\ta\t\t\n\t\t\t\nuneven.mp4\n")
    assert run("csv", table, videos, tmp_path / "a.json", "--validation", str(write(tmp_path / "v", "uneven"))) == 0
    assert read(tmp_path / "a.json") == {"late": [(1, 2, "a")]}


def test_a_table_that_is_not_utf8(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    for before in ("", "late.mp4,1,2,a\n" * 1000):  # at its head, and far behind
        (tmp_path / "t.csv").write_bytes(f"file,start,end,label\n{before}late.mp4,1,2,\u00fc\n".encode("latin-1"))
        assert run("csv", tmp_path / "t.csv", videos, tmp_path / "a.json") == 2
        assert "t.csv cannot be read: 'utf-8' codec can't decode byte 0xfc" in capsys.readouterr().err


def test_a_table_without_its_columns(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    table = write(tmp_path / "t.csv", "video,begin,end,label\na,1,2,b\n")
    assert run("csv", table, videos, tmp_path / "a.json") == 2
    assert "line 1: there is no column 'file'; the first line must name the columns" in capsys.readouterr().err


def test_names_are_those_of_files_or_in_addresses(tmp_path: Path, videos: Path):
    """With signs that mean something in addresses alone; of any operating system; as Label Studio renames uploads."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("Who? 100%20.mp4", "b c.mp4", "d.mp4", "e.mp4", "12345678-f.mp4", "f.mp4", "12345678-g.mp4"):
        (folder / name).symlink_to(videos / "late.mp4")
    named = {
        "in/Who? 100%20.mp4": "Who? 100%20",
        "file:///C:/b%20c.mp4?t=1": "b c",
        "C:\\Users\\me\\d.mp4": "d",
        "1a2b3c4d-e.mp4": "e",
        "12345678-f.mp4": "12345678-f",
        "1a2b3c4d-12345678-g.mp4": "12345678-g",
    }
    table = write(tmp_path / "t.csv", "file,start,end,label\n" + "".join(f"{name},0,1,a\n" for name in named))
    assert run("csv", table, folder, tmp_path / "a.json") == 0
    assert set(read(tmp_path / "a.json")) == set(named.values())


def test_files_whose_names_end_in_two_extensions(tmp_path: Path, videos: Path):
    """Each is found again, and is no other video."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("talk.mkv", "talk.mov.mp4", "plain.mp4"):
        (folder / name).symlink_to(videos / "late.mp4")
    table = write(tmp_path / "t.csv", "file,start,end,label\ntalk.mov,0,1,a\ntalk,1,2,a\nplain.mp4,0,2,a\n")
    assert run("csv", table, folder, tmp_path / "a.json") == 0
    found = read(tmp_path / "a.json")
    assert found == {"plain": [(0, 2, "a")], "talk": [(1, 2, "a")], "talk.mov.mp4": [(0, 1, "a")]}
    files = {name: path.name for name, path in find_videos(folder, list(found)).items()}
    assert files == {"plain": "plain.mp4", "talk": "talk.mkv", "talk.mov.mp4": "talk.mov.mp4"}


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_file_names_in_another_form_of_unicode(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str], on_disk: Form, in_table: Form
):
    folder, names = tmp_path / "videos", ["\u00dcbung", "H\u00f6he"]
    folder.mkdir()
    for name in names:
        (folder / unicodedata.normalize(on_disk, f"{name}.mp4")).symlink_to(videos / "late.mp4")
    lines = "".join(f"{unicodedata.normalize(in_table, name)}.mp4,0,1,a\n" for name in names)
    assert run("csv", write(tmp_path / "t.csv", f"file,start,end,label\n{lines}"), folder, tmp_path / "a.json") == 0
    assert set(read(tmp_path / "a.json")) == {unicodedata.normalize(on_disk, name) for name in names}
    (folder / unicodedata.normalize(in_table, f"{names[0]}.mp4")).symlink_to(videos / "late.mp4")
    assert run("csv", tmp_path / "t.csv", folder, tmp_path / "a.json") == 2
    assert "differ by their extension or Unicode form (NFC, NFD) alone: \u00dcbung" in capsys.readouterr().err


def test_labels_and_annotators_have_one_form_of_unicode(tmp_path: Path, videos: Path):
    one, several = (unicodedata.normalize(form, "h\u00f6her") for form in ("NFC", "NFD"))
    lines = f"late.mp4,1,2,{one},{one}\nlate.mp4,2,3,{several},{several}\nuneven.mp4,1,2,{several},{one}\n"
    table = write(tmp_path / "t.csv", f"file,start,end,label,annotator\n{lines}")
    for options in ((), ("--annotators", several)):
        assert run("csv", table, videos, tmp_path / "a.json", *options) == 0
        assert read(tmp_path / "a.json") == {"late": [(1, 2, one), (2, 3, one)], "uneven": [(1, 2, one)]}


def test_missing_videos(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    table = write(tmp_path / "t.csv", "file,start,end,label\nlate.mp4,1,2,a\nMatch 1.mp4,1,2,a\ngone.mp4,1,2,a\n")
    assert run("csv", table, videos, tmp_path / "a.json") == 1
    printed = capsys.readouterr().out
    assert "1 videos cannot be used" in printed
    assert "1 segments with them:\n  gone.mp4: no file\nNothing was written." in printed
    assert run("csv", table, videos, tmp_path / "a.json", "--exclude-missing", "--labelled-only") == 0
    assert set(json.loads((tmp_path / "a.json").read_text())["database"]) == {"late", "Match 1"}
    assert (tmp_path / "a.excluded.txt").read_text() == "gone.mp4\n"


def test_unreadable_videos(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).symlink_to(videos / "late.mp4")
    (folder / "c.mp4").write_text("no video")
    table = write(tmp_path / "t.csv", "file,start,end,label\na,1,2,x\nb,1,2,x\nc,1,2,x\n")
    assert run("csv", table, folder, tmp_path / "a.json") == 1
    assert f"1 segments with them:\n  c: {folder}/c.mp4: " in capsys.readouterr().out
    assert run("csv", table, folder, tmp_path / "a.json", "--exclude-missing") == 0
    assert set(read(tmp_path / "a.json")) == {"a", "b"}


def test_subsets(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """A column, a list, or a share; the list has the last word."""
    head, out = "file,start,end,label,subset\n", tmp_path / "a.json"
    told = write(
        tmp_path / "t.csv", head + "late.mp4,1,2,a,validation\nuneven.mp4,1,2,a,training\nMatch_1.mp4,1,2,a,\n"
    )

    def validation() -> set[str]:
        database = json.loads(out.read_text())["database"]
        return {name for name, entry in database.items() if entry["subset"] == "validation"}

    assert run("csv", told, videos, out) == 0
    assert validation() == {"late"}
    assert "videos without a subset, taken for training: 2 (Match 1.mp4, Match_1.mp4)" in capsys.readouterr().out
    assert run("csv", told, videos, out, "--validation", str(write(tmp_path / "v.txt", "uneven\nMatch 1.mp4\n"))) == 0
    assert validation() == {"uneven", "Match 1"}
    assert run("csv", told, videos, out, "--validation", str(write(tmp_path / "v.txt", "nobody\n"))) == 2
    assert "names videos that do not exist: nobody" in capsys.readouterr().err
    both = write(tmp_path / "b.csv", head + "late,1,2,a,validation\nuneven,1,2,a,training\nlate.mp4,2,3,a,training\n")
    assert run("csv", both, videos, out) == 2
    said = "the export puts late.mp4, which it names 'late' and 'late.mp4', into both training and validation"
    assert said in capsys.readouterr().err
    both = write(tmp_path / "b.csv", head + "late,1,2,a,training\nuneven,1,2,a,training\nlate,2,3,a,validation\n")
    assert run("csv", both, videos, out) == 2
    assert "b.csv, line 4, column 'subset': late is of training above" in capsys.readouterr().err
    wrong = write(tmp_path / "w.csv", head + "late.mp4,1,2,a,test\n")
    assert run("csv", wrong, videos, out) == 2
    assert "column 'subset': 'test', expected training or validation" in capsys.readouterr().err


def test_a_share_is_seeded_and_leaves_each_class_to_train_on():
    actions = {f"v{i}": [Action(0, 1, "rare" if i == 3 else "often")] for i in range(20)}
    chosen = [divided(actions, share=0.25, seed=seed) for seed in range(30)]
    assert all(len(names) == 5 and "v3" not in names for names in chosen)
    assert divided(actions, share=0.25, seed=1) == chosen[1] != chosen[2]
    assert len(set().union(*chosen)) == 19
    of_macos = {unicodedata.normalize("NFD", f"\u00e4{name}"): found for name, found in actions.items()}
    elsewhere = {unicodedata.normalize("NFC", name): found for name, found in of_macos.items()}
    same = {unicodedata.normalize("NFC", name) for name in divided(of_macos, share=0.25, seed=1)}
    assert same == divided(elsewhere, share=0.25, seed=1)
    more = actions | {"new": [Action(0, 1, "often")]}
    assert len(divided(more, share=0.25, seed=1) - chosen[1]) <= 1  # others stay where they were


def test_elan(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Milliseconds; slots without a time between two with one; parts of a parent; a vocabulary's entries."""
    document = elan(
        elan_tier("Action", aligned("a1", "ts1", "ts4", "jump"), aligned("a2", "ts5", "ts6", "throw")),
        elan_tier(
            "Phase", aligned("p1", "ts1", "ts2", "a"), aligned("p2", "ts2", "ts3", "b"), aligned("p3", "ts3", "ts4", "")
        ),
        elan_tier(
            "Part",
            referring("r3", "a1", "c", after="r2"),
            referring("r2", "a1", "b", after="r1"),
            referring("r1", "a1", "", attributes='CVE_REF="cveid0"'),
            referring("r4", "a2", "whole"),
            attributes='LINGUISTIC_TYPE_REF="part" PARENT_REF="Action"',
        ),
        elan_tier("Note", referring("n1", "r2", "fine"), attributes='LINGUISTIC_TYPE_REF="part" PARENT_REF="Part"'),
    )
    source, out = write(tmp_path / "x.eaf", document), tmp_path / "a.json"
    assert run("elan", source, videos, out) == 2
    error = capsys.readouterr().err
    assert "there are several tiers: Action (2), Phase (2), Part (4), Note (1). Choose: --tiers NAME ... (all)" in error
    assert run("elan", source, videos, out, "--tiers", "Action") == 0
    assert read(out) == {"Match 1": [(0.5, 2.0, "jump"), (2.1, 2.9, "throw")]}
    printed = capsys.readouterr().out
    assert "not chosen by --tiers: Phase (2), Part (4), Note (1)" in printed
    assert f"not used: annotations without a value: 1 ({source}, annotation p3)" in printed
    assert run("elan", source, videos, out, "--tiers", "Phase", "Part", "Note") == 0
    assert read(out) == {
        "Match 1": [
            *[(0.5, 1.0, "a"), (0.5, 1.0, "up"), (1.0, 1.5, "b"), (1.0, 1.5, "b"), (1.0, 1.5, "fine")],
            *[(1.5, 2.0, "c"), (2.1, 2.9, "whole")],
        ]
    }
    assert run("elan", source, videos, out, "--tiers", "Actions") == 2
    assert "--tiers: there is no 'Actions'; tiers and their segments: Action (2), Phase" in capsys.readouterr().err


def test_elan_shares_the_time_of_parts_without_times_tier_by_tier(tmp_path: Path, videos: Path):
    """Whatever the slots of other tiers that lie between theirs in the file."""
    document = elan(
        elan_tier(
            "A", aligned("a1", "ts1", "ts2", "x"), aligned("a2", "ts2", "ts3", "y"), aligned("a3", "ts3", "ts4", "z")
        ),
        elan_tier("B", aligned("b1", "ts1", "ts7", "v"), aligned("b2", "ts7", "ts4", "w")),
    ).replace('<TIME_SLOT TIME_SLOT_ID="ts3"/>', '<TIME_SLOT TIME_SLOT_ID="ts7"/><TIME_SLOT TIME_SLOT_ID="ts3"/>')
    assert run("elan", write(tmp_path / "x.eaf", document), videos, tmp_path / "a.json", "--tiers", "all") == 0
    assert {label: (start, end) for start, end, label in read(tmp_path / "a.json")["Match 1"]} == {
        **{"x": (0.5, 1.0), "y": (1.0, 1.5), "z": (1.5, 2.0)},
        **{"v": (0.5, 1.25), "w": (1.25, 2.0)},
    }


def test_elan_skips_the_beginning_of_a_video(tmp_path: Path, videos: Path):
    document = elan(elan_tier("A", aligned("a1", "ts1", "ts4", "jump")), origin='TIME_ORIGIN="1200"')
    assert run("elan", write(tmp_path / "x.eaf", document), videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(1.7, 3.2, "jump")]}


def test_elan_finds_its_video(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """By a link of whatever type, absolute or not; the first of several; without any, by its own name."""
    tier, out = elan_tier("A", aligned("a1", "ts1", "ts4", "jump")), tmp_path / "a.json"
    link = '<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/Users/me/Match%201.wav" MIME_TYPE="audio/x-wav"/>'
    assert link in elan(tier)
    relative = elan(tier).replace("file:///C:/Users/me/Match%201.mp4", "").replace("Match%201.mp4", "uneven.mp4")
    upper = elan(tier).replace("Match%201.mp4", "uneven.MP4").replace('"video/mp4"', '"unknown"')
    second = elan(tier).replace(link, link.replace("Match%201.wav", "uneven.mp4"))
    alone = elan(tier).replace("video/mp4", "audio/mp4").replace("Match%201.mp4", "x.wav")
    for document, file, found in (
        (relative, "x.eaf", "uneven"),
        (upper, "x.eaf", "uneven"),
        (second, "x.eaf", "Match 1"),
        (alone, "uneven.eaf", "uneven"),
    ):
        assert run("elan", write(tmp_path / file, document), videos, out) == 0
        assert read(out) == {found: [(0.5, 2.0, "jump")]}
        noted = "not used: further videos that a file links: 1 (uneven.mp4)" in capsys.readouterr().out
        assert noted == (document is second)


def test_elan_slots_without_times(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """At the end: when the last one is; between two chains of parts that touch: within its own."""
    parts = [aligned(f"p{i}", f"ts{i}", f"ts{i + 1}", str(i)) for i in (1, 2, 3)]
    document = elan(
        elan_tier("A", aligned("a1", "ts5", "ts7", "end"), aligned("a2", "ts4", "ts4", "nothing")),
        elan_tier("B", *parts, aligned("p4", "ts4", "ts8", "4"), aligned("p5", "ts8", "ts6", "5")),
    ).replace("</TIME_ORDER>", '<TIME_SLOT TIME_SLOT_ID="ts7"/></TIME_ORDER>')
    later = '<TIME_SLOT TIME_SLOT_ID="ts5"'
    document = document.replace(later, f'<TIME_SLOT TIME_SLOT_ID="ts8"/>{later}')
    assert run("elan", write(tmp_path / "x.eaf", document), videos, tmp_path / "a.json", "--tiers", "all") == 0
    assert {label: (start, end) for start, end, label in read(tmp_path / "a.json")["Match 1"]} == {
        **{"1": (0.5, 1.0), "2": (1.0, 1.5), "3": (1.5, 2.0), "4": (2.0, 2.45), "5": (2.45, 2.9)},
        "end": (2.1, 2.9),
    }
    assert "not used: annotations that end where they start: 1 (" in capsys.readouterr().out


def test_elan_parts_whose_order_is_not_whole(tmp_path: Path, videos: Path):
    """They are in that of the file."""
    document = elan(
        elan_tier("Action", aligned("a1", "ts1", "ts4", "jump")),
        elan_tier("Part", referring("r1", "a1", "b"), referring("r2", "a1", "c", after="r9")),
    )
    assert run("elan", write(tmp_path / "x.eaf", document), videos, tmp_path / "a.json", "--tiers", "Part") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(0.5, 1.25, "b"), (1.25, 2.0, "c")]}


def test_several_annotators(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    def by(who: str, end: str) -> str:
        attributes = f'LINGUISTIC_TYPE_REF="default-lt" ANNOTATOR="{who}"'
        return elan(elan_tier("A", aligned("a1", "ts1", end, "jump"), attributes=attributes))

    write(tmp_path / "in/ann.eaf", by("Ann", "ts4"))
    write(tmp_path / "in/bob.eaf", by("Bob", "ts5"))
    out = tmp_path / "a.json"
    assert run("elan", tmp_path / "in", videos, out) == 2
    error = capsys.readouterr().err
    assert "videos that several have annotated: Match 1.mp4; annotators" in error
    assert "annotators and their segments: Ann (1), Bob (1). Choose: --annotators NAME ..." in error
    assert run("elan", tmp_path / "in", videos, out, "--annotators", "Bob") == 0
    assert read(out) == {"Match 1": [(0.5, 2.1, "jump")]}
    assert "not chosen by --annotators: Ann (1)" in capsys.readouterr().out
    assert run("elan", tmp_path / "in", videos, out, "--annotators", "all") == 0
    assert read(out) == {"Match 1": [(0.5, 2.0, "jump"), (0.5, 2.1, "jump")]}


def test_annotators_that_spell_a_video_in_two_ways(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    table = write(tmp_path / "t.csv", "file,start,end,label,annotator\nlate,1,2,a,Ann\nlate.mp4,1,2.1,a,Bob\n")
    assert run("csv", table, videos, tmp_path / "a.json") == 2
    assert "videos that several have annotated: late.mp4; annotators" in capsys.readouterr().err


def test_cvat_tracks(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Visible until the first frame outside, or through the last one; in frames of the file, by its times."""
    body = (
        f'<track id="0" label="jump" source="manual">{box(5)}{box(6)}{box(15, outside=1)}{box(20)}{box(39)}</track>'
        f'<track id="1" label="throw" source="manual"><points frame="8" outside="0" points="1,2"/>'
        f'{box(9, outside=1)}</track><job id="3"/>'
    )
    assert run("cvat", write(tmp_path / "annotations.xml", cvat(body)), videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(0.5, 1.5, "jump"), (0.8, 0.9, "throw"), (2.0, 4.0, "jump")]}
    assert "not used: unknown elements: 1 (<job> in annotations.xml)" in capsys.readouterr().out
    body = f'<track id="0" label="jump" source="manual">{box(5)}{box(25, outside=1)}</track>'
    write(tmp_path / "annotations.xml", cvat(body, video="uneven.mp4"))
    assert run("cvat", tmp_path, videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json")["uneven"] == [(round(UNEVEN[5], 3), pytest.approx(UNEVEN[25], abs=1e-3), "jump")]


def test_cvat_leaves_frames_out(tmp_path: Path, videos: Path):
    """With step=5 from frame 2, each frame stands for 5 of the file, and keeps its number there."""
    body = f'<track id="0" label="jump" source="manual">{box(7)}{box(12)}{box(17)}</track>'
    assert run("cvat", write(tmp_path / "x.xml", cvat(body, step=5, start=2)), videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(0.7, 2.2, "jump")]}


def test_cvat_attributes_as_labels(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    states = [(3, "walk"), (4, "walk"), (9, "run"), (12, "walk")]
    boxes = "".join(box(frame, action=action) for frame, action in states)
    body = f'<track id="0" label="person" source="manual">{boxes}{box(20, outside=1, action="walk")}</track>'
    body += f'<track id="1" label="ball" source="manual">{box(1)}</track>'
    source = write(tmp_path / "x.xml", cvat(body))
    assert run("cvat", source, videos, tmp_path / "a.json", "--label-from", "action") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(0.3, 0.9, "walk"), (0.9, 1.2, "run"), (1.2, 2.0, "walk")]}
    assert "not used: what has no attribute 'action': 1 (ball in " in capsys.readouterr().out


def test_cvat_tags(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Successive tagged frames are one segment; one frame between two ends it."""

    def image(frame: int, *labels: str) -> str:
        tags = "".join(f'<tag label="{label}" source="manual"></tag>' for label in labels)
        return f'<image id="{frame}" name="frame_{frame:06}" width="176" height="96">{tags}</image>'

    body = image(3, "jump") + image(4, "jump", "throw") + image(5, "jump") + image(6) + image(7, "jump")
    source = write(tmp_path / "x.xml", cvat(body + '<image id="9" name="n"><box label="a" xtl="1"/></image>'))
    assert run("cvat", source, videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(0.3, 0.6, "jump"), (0.4, 0.5, "throw"), (0.7, 0.8, "jump")]}
    assert "not used: shapes of single frames, without a track: 1 (<box> in" in capsys.readouterr().out


def test_cvat_jobs_of_frames_left_out(tmp_path: Path, videos: Path):
    """Shapes in any order; tags that stand for as many frames as the step; a job's export, named by its task."""
    tags = "".join(f'<image id="{frame}"><tag label="throw"></tag></image>' for frame in (2, 7, 17))
    body = f'<track id="0" label="jump">{box(22, outside=1)}{box(7)}{box(12)}</track>{tags}'
    document = cvat(body, step=5).replace("<source>Match 1.mp4</source>", "").replace("a task", "Match 1.mp4")
    document = document.replace("<task>", "<job>").replace("</task>", "</job>").replace("step=5", "step = 5")
    assert run("cvat", write(tmp_path / "x.xml", document), videos, tmp_path / "a.json", "--tiers", "all") == 0
    assert read(tmp_path / "a.json") == {
        "Match 1": [(0.2, 1.2, "throw"), (0.7, 2.2, "jump"), (1.7, 2.2, "throw")],
    }


@pytest.mark.parametrize(("frame", "code"), [(72, 0), (73, 2)])
def test_tools_may_count_some_frames_more(tmp_path: Path, videos: Path, frame: int, code: int):
    """30 and a twentieth: of 40 frames, up to 72."""
    body = f'<track id="3" label="a">{box(30)}{box(frame, outside=1)}</track>'
    assert run("cvat", write(tmp_path / "x.xml", cvat(body)), videos, tmp_path / "a.json") == code
    assert code or read(tmp_path / "a.json") == {"Match 1": [(3.0, 4.0, "a")]}


def test_cvat_projects_have_several_tasks(tmp_path: Path, videos: Path):
    tasks = [
        f"<task><id>{number}</id><name>n</name><frame_filter></frame_filter><source>{name}</source></task>"
        for number, name in ((7, "Match 1.mp4"), (8, "Match_1.mp4"))
    ]
    tracks = [
        f'<track id="{number}" label="jump" source="manual" task_id="{task}" subset="default">{box(10)}</track>'
        for number, task in enumerate((7, 8, 8))
    ]
    meta = f"<project><id>1</id><tasks>{''.join(tasks)}</tasks></project>"
    document = f"<annotations><version>1.1</version><meta>{meta}</meta>{''.join(tracks)}</annotations>"
    assert run("cvat", write(tmp_path / "x.xml", document), videos, tmp_path / "a.json") == 0
    assert {name: len(found) for name, found in read(tmp_path / "a.json").items()} == {"Match 1": 1, "Match_1": 2}


def test_via(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Seconds; an option's text where the attribute has options, else the value, as its timeline stores groups."""
    project = via(
        {
            "1_aB3": segment(0.5, 1.25, _1="4"),
            "1_aB4": segment(1.5, 2.5, _1="jump"),
            "2_aB5": segment(0.25, 0.75, view="2", _1="4", _2="x"),
            "1_aB6": segment(1.0, _2="ball"),
            "1_aB7": segment(2.0, 3.0, _1="_DEFAULT"),
            "1_aB8": segment(_1="4"),
        },
        options={"default": "Default", "4": "throw"},
    )
    assert run("via", write(tmp_path / "p.json", project | {"extra": 1}), videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {
        "Match 1": [(0.5, 1.25, "throw"), (1.5, 2.5, "jump")],
        "uneven": [(0.25, 0.75, "throw")],
    }
    printed = capsys.readouterr().out
    for what in ("regions of single frames: 1", "attributes of whole files: 1", "segments without a value: 1"):
        assert f"not used: {what} (" in printed
    assert "not used: unknown fields: 1 ('extra' in p.json)" in printed
    assert "not used: values of attributes that are not those of segments: 1 (2='x' in" in printed


def test_via_views_and_values(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Of a view's files the one video, by its address where it has no name; a comma in a text ends no label."""
    project = via({"1_a": segment(0.5, 1.0, _1="jump, high"), "1_b": segment(1.0, 1.0, _1="x")})
    picture = {"fid": "3", "fname": "a.jpg", "type": 2, "loc": 1, "src": ""}
    project["file"] |= {"1": project["file"]["1"] | {"fname": "", "src": "http://host/late.mp4?v=2"}, "3": picture}
    project["view"]["1"] = {"fid_list": ["3", 1]}
    assert run("via", write(tmp_path / "p.json", project), videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {"late": [(0.5, 1.0, "jump, high")]}
    assert "not used: segments that end where they start: 1 (" in capsys.readouterr().out
    project["view"]["1"] = {"fid_list": ["1", "2"]}
    assert run("via", write(tmp_path / "p.json", project), videos, tmp_path / "a.json") == 2
    assert "view 1 shows 2 videos, and a segment must be of one" in capsys.readouterr().err


def test_via_boxes_to_tick(tmp_path: Path, videos: Path):
    project = via({"1_a": segment(0.5, 1.0, _1="0,2")}, options={"0": "jump", "1": "b", "2": "run"}, kind=2)
    assert run("via", write(tmp_path / "p.json", project), videos, tmp_path / "a.json") == 0
    assert read(tmp_path / "a.json") == {"Match 1": [(0.5, 1.0, "jump"), (0.5, 1.0, "run")]}


def test_via_2_has_no_times(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """As VIA 2 exports: the annotations alone, or its project."""
    pictures = {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": [], "file_attributes": {}}}
    for content in (pictures, {"_via_settings": {}, "_via_img_metadata": pictures, "_via_attributes": {}}):
        assert run("via", write(tmp_path / "p.json", content), videos, tmp_path / "a.json") == 2
        assert "was saved by VIA 2, which annotates images and has no times" in capsys.readouterr().err


def test_label_studio(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Frames from 1, the last one included, at the tag's rate; tracks until they are switched off; sound in seconds."""
    tracked = {"labels": ["ball"], "framesCount": 96, "duration": 4.0}
    tracked["sequence"] = [
        {"frame": frame, "enabled": on, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0, "rotation": 0, "time": 0.1}
        for frame, on in ((25, True), (30, True), (48, False), (73, True))
    ]
    sound = {"start": 1.5, "end": 2.75, "channel": 0, "labels": ["speech"]}
    results = [
        ranged(1, 24, "jump"),
        {"id": "b", "value": tracked, "from_name": "box", "to_name": "video", "type": "videorectangle"},
        {"id": "c", "value": sound, "from_name": "audio", "type": "labels", "original_length": 4.0},
        {"id": "d", "value": {"choices": ["good"]}, "from_name": "q", "to_name": "video", "type": "choices"},
    ]
    source = write(tmp_path / "p.json", [studio(*results)])
    out = tmp_path / "a.json"
    assert run("label-studio", source, videos, out, "--tiers", "all") == 2
    assert "give it as --frame-rate (24 if the tag has none; '$NAME' for a field" in capsys.readouterr().err
    assert run("label-studio", source, videos, out, "--tiers", "all", "--frame-rate", "24") == 0
    assert read(out) == {"Match_1": [(0.0, 1.0, "jump"), (1.0, 2.0, "ball"), (1.5, 2.75, "speech"), (3.0, 4.0, "ball")]}
    assert "not used: results of type 'choices': 1" in capsys.readouterr().out
    assert run("label-studio", source, videos, out, "--frame-rate", "24") == 2
    assert "there are several controls: timelineLabels (1), box (2), audio (1)" in capsys.readouterr().err


def test_label_studio_edges(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """Ranges of a frame, or from 0; key frames in any order, beyond the counted ones, enabled or silent."""

    def tracked(*frames: int, off: int) -> dict[str, Any]:
        keys = [{"frame": frame} | ({"enabled": False} if frame == off else {}) for frame in frames]
        return {"type": "videorectangle", "value": {"labels": ["ball"], "framesCount": 30, "sequence": keys}}

    named = {"type": "labels", "value": {"start": 3, "end": 9, "text": "a word", "labels": ["noun"]}}
    source, out = tmp_path / "p.json", tmp_path / "a.json"
    write(source, [studio(ranged(0, 10, "a"), ranged(12, 12, "b"), tracked(20, 15, off=20), tracked(40, off=0), named)])
    assert run("label-studio", source, videos, out, "--frame-rate", "10", "--tiers", "all") == 0
    assert read(out) == {"Match_1": [(0.0, 1.0, "a"), (1.1, 1.2, "b"), (1.4, 2.0, "ball"), (3.9, 4.0, "ball")]}
    assert "not used: results of type 'labels': 1" in capsys.readouterr().out
    both = [{"result": [ranged(1, 9, "a")], "completed_by": {"email": who, "id": 5}} for who in ("a@b.c", "d@e.f")]
    write(source, [studio(annotations=both)])
    assert run("label-studio", source, videos, out, "--frame-rate", "10") == 2
    assert "annotators and their segments: a@b.c (1), d@e.f (1)" in capsys.readouterr().err


def test_label_studio_rates(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    """From the tasks' data, or the file's own."""
    source, out = write(tmp_path / "p.json", [studio(ranged(11, 20, "a", "b"))]), tmp_path / "a.json"
    for rate, end in (("$fps", 1.0), ("video", 2.0)):
        assert run("label-studio", source, videos, out, "--frame-rate", rate) == 0
        assert read(out) == {"Match_1": [(end / 2, end, "a"), (end / 2, end, "b")]}
    assert run("label-studio", source, videos, out, "--frame-rate", "$rate") == 2
    assert "task 12: its data's rate is 'missing', expected frames per second" in capsys.readouterr().err


def test_label_studio_min_and_annotators(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    lines = [
        {
            "video": "/data/local-files/?d=day%2FMatch_1.mp4",
            "id": 4,
            "actions": [{"ranges": [{"start": 1, "end": end}], "timelinelabels": ["jump"]}],
            "annotator": who,
            "annotation_id": who,
            "lead_time": 3.1,
        }
        for who, end in ((1, 10), (2, 20))
    ]
    source, out = write(tmp_path / "p.json", lines), tmp_path / "a.json"
    assert run("label-studio", source, videos, out, "--frame-rate", "10") == 2
    assert "annotators and their segments: 1 (1), 2 (1)" in capsys.readouterr().err
    assert run("label-studio", source, videos, out, "--frame-rate", "10", "--annotators", "2") == 0
    assert read(out) == {"Match_1": [(0.0, 2.0, "jump")]}


def test_what_is_written_is_not_read_again(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]):
    source = write(tmp_path / "in/p.json", via({"1_a": segment(0.5, 1.0, _1="jump")}))
    for out, message in (
        (tmp_path / "in/../in/p.json", "is one of the sources"),
        (tmp_path / "in/x/out.json", "would lie in a folder of"),
    ):
        for tool in ("via", "label-studio"):
            assert run(tool, source.parent if "x" in out.parts else source, videos, out) == 2
            assert message in capsys.readouterr().err
        assert json.loads(source.read_text())["project"]


SKIPPED = {"annotations": [{"was_cancelled": True, "result": [ranged(1, 2, "x")], "completed_by": {"email": "a@b.c"}}]}


@pytest.mark.parametrize(
    ("tool", "name", "content", "options", "message"),
    [
        ("elan", "x.eaf", "<a/>", (), "its outermost element is <a>; ELAN writes <ANNOTATION_DOCUMENT>"),
        ("elan", "x.eaf", "<a", (), "x.eaf cannot be read: unclosed token"),
        ("elan", "x.eaf", elan(origin='TIME_ORIGIN="x"'), (), "has TIME_ORIGIN='x', expected milliseconds"),
        ("elan", "x.eaf", elan().replace('="500"', '="x"'), (), "TIME_ORDER: could not convert string to float: 'x'"),
        ("elan", "x.xml", "<a/>", (), "hold no *.eaf, as ELAN saves"),
        (
            "elan",
            "x.eaf",
            elan(elan_tier("A", aligned("a1", "ts1", "ts9", "jump"))),
            (),
            "annotation a1: TIME_ORDER has no time slot 'ts9'",
        ),
        (
            "elan",
            "x.eaf",
            elan(elan_tier("A", referring("a1", "a2", "x"), referring("a2", "a1", "x"))),
            (),
            "annotation a1: ANNOTATION_REF='a2' leads to no annotation with a time",
        ),
        ("elan", "x.eaf", elan().replace('="milliseconds"', '="PAL-frames"'), (), "TIME_UNITS='PAL-frames'; open and"),
        ("cvat", "x.xml", "<annotations/>", (), "<meta> holds no <task>, so that the video is unknown"),
        (
            "cvat",
            "x.xml",
            cvat("").replace("_filter></", "_filter>odd</"),
            (),
            "<frame_filter> is 'odd', expected step=N",
        ),
        ("cvat", "x.xml", cvat(f'<track id="3">{box(1)}</track>'), (), "track 3, frame 1: it has no label"),
        (
            "cvat",
            "x.xml",
            cvat('<track id="3" label="a"><box frame="x"/></track>'),
            (),
            "track 3: frame is 'x', expected a frame, counted from 0",
        ),
        (
            "cvat",
            "x.xml",
            cvat(f'<track id="3" label="a">{box(90)}</track>'),
            (),
            "track 3: frame 90 of Match 1.mp4, which has 40; is it the file that was annotated?",
        ),
        (
            "cvat",
            "x.xml",
            cvat(f'<track id="3" label="a">{box(30)}{box(80, outside=1)}</track>'),
            (),
            "track 3: frame 80 of Match 1.mp4, which has 40; is it the file that was annotated?",
        ),
        (
            "csv",
            "t.csv",
            "file,start,end,label\nlate.mp4,1,2,a\n",
            ("--labelled-only",),
            "too few videos (1) to divide",
        ),
        ("via", "p.json", {"project": {}, "file": []}, (), "p.json: attribute is missing, expected an object"),
        (
            "via",
            "p.json",
            via({"m": segment(1, 2, view="9", _1="a")}),
            (),
            "metadata m: vid is '9', expected the id of",
        ),
        ("via", "p.json", via({"m": segment(1, "x", _1="a")}), (), "metadata m, z: 'x', expected a number of seconds"),
        ("label-studio", "p.json", {"a": 1}, (), "must hold a list of tasks: export from Label Studio as JSON or"),
        (
            "label-studio",
            "p.json",
            [{"id": 5, "text": "x"}],
            (),
            "task 5: exactly one field of its data must name a video",
        ),
        ("label-studio", "p.json", [studio(ranged(9, 3, "a"))], ("--frame-rate", "24"), "a range is from frame 9 to 3"),
        (
            "label-studio",
            "p.json",
            [studio({"type": "labels", "value": {"start": 2, "end": 2.0, "labels": ["a"]}})],
            (),
            "task 12: a region of the sound is from 2 to 2.0, expected seconds",
        ),
        (
            "label-studio",
            "p.json",
            [studio(data={"video": "a.mp4", "other": "b.mp4"})],
            (),
            "exactly one field of its data must name a video file (.mp4, ...): video, other",
        ),
        ("label-studio", "p.json", [studio(annotations=[7])], (), "task 12: annotations is [7], expected a list of"),
        ("label-studio", "p.json", [studio(7)], (), "task 12: result is [7], expected a list of"),
        *(
            ("label-studio", "p.json", [studio(odd | {"type": kind})], (), f"task 12: {key} is [7], expected a list")
            for kind, key in (("timelinelabels", "ranges"), ("videorectangle", "sequence"))
            for odd in [{"value": {key: [7], "labels": ["a"], "timelinelabels": ["a"]}}]
        ),
        ("label-studio", "p.json", [studio(**SKIPPED)], ("--frame-rate", "24"), "hold no segment"),
        ("label-studio", "p.json", [studio()], ("--frame-rate", "0"), "hold no segment"),
        (
            "label-studio",
            "p.json",
            [studio(ranged(1, 3, "a"))],
            ("--frame-rate", "0"),
            "--frame-rate 0 is '0', expected",
        ),
        (
            "via",
            "p.json",
            via({}),
            ("--frame-rate", "9"),
            "--frame-rate cannot be used with via; it is for label-studio",
        ),
        ("csv", "t.csv", "", ("--validation-share", "1"), "--validation-share 1: expected a share above 0 and below 1"),
    ],
)
def test_what_contradicts_a_format_is_named(
    tmp_path: Path,
    videos: Path,
    capsys: pytest.CaptureFixture[str],
    tool: str,
    name: str,
    content: Any,
    options: Sequence[str],
    message: str,
):
    source = write(tmp_path / "in" / name, content).parent
    assert run(tool, source, videos, tmp_path / "a.json", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "a.json").exists()
