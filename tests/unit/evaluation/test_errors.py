from __future__ import annotations

import base64
import csv
import json
import random
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from adatad_ds.cli.commands import main
from adatad_ds.data.annotations import ANY_ACTION, Action, Video
from adatad_ds.errors import DataError
from adatad_ds.evaluation.diagnosis.diagnosis import BINS, MIN_PRECISION, Diagnosis, diagnose, suitable_bins
from adatad_ds.evaluation.diagnosis.inputs import diagnose_files
from adatad_ds.evaluation.diagnosis.matching import Kind
from adatad_ds.evaluation.diagnosis.plots import MOST_CLASSES, draw_classes, draw_gains, draw_missed, draw_profile
from adatad_ds.evaluation.metrics import evaluate_detections
from adatad_ds.evaluation.metrics_files import METRICS_FILE
from tests.support import oracles
from tests.support.browser import loaded, opened
from tests.support.detections import cases, record

REPOSITORY = Path(__file__).resolve().parents[3]


def video(name: str, *actions: tuple[float, float, str], duration: float = 100.0) -> Video:
    return Video(name, "validation", duration, None, None, tuple(Action(*action) for action in actions))


def kinds_of(diagnosis: Diagnosis) -> list[Kind]:
    """In the order of the file."""
    order = np.argsort(diagnosis.detections.position)
    return [Kind(kind) for kind in diagnosis.kinds[order]]


def diagnose_one(records: Sequence[dict], *actions: tuple[float, float, str], **arguments) -> Diagnosis:
    return diagnose({"v": list(records)}, [video("v", *actions)], average_tiou=(0.5,), **arguments)


@pytest.mark.parametrize(
    ("segment", "label", "kind"),
    [
        ((10, 20), "a", Kind.TRUE_POSITIVE),
        ((10, 15), "a", Kind.TRUE_POSITIVE),  # half: the threshold belongs to the better kind
        ((10, 14.9), "a", Kind.LOCALISATION),
        ((10, 11), "a", Kind.LOCALISATION),  # a tenth
        ((10, 10.9), "a", Kind.BACKGROUND),
        ((40, 50), "a", Kind.WRONG_LABEL),
        ((40, 45), "a", Kind.WRONG_LABEL),
        ((40, 44.9), "a", Kind.CONFUSION),
        ((40, 41), "a", Kind.CONFUSION),
        ((40, 40.9), "a", Kind.BACKGROUND),
        ((60, 70), "a", Kind.BACKGROUND),
        ((20, 10), "a", Kind.BACKGROUND),  # end before start
        ((40, 50), "b", Kind.TRUE_POSITIVE),
    ],
)
def test_each_kind(segment, label, kind):
    truth = ((10.0, 20.0, "a"), (40.0, 50.0, "b"))
    assert kinds_of(diagnose_one([record(*segment, 0.9, label)], *truth)) == [kind]


def test_double_detections_and_equal_scores():
    records = [record(10, 19, 0.5), record(10, 20, 0.5), record(10, 18, 0.9)]
    kinds = kinds_of(diagnose_one(records, (10.0, 20.0, "a")))
    assert kinds == [Kind.DOUBLE_DETECTION, Kind.DOUBLE_DETECTION, Kind.TRUE_POSITIVE]
    kinds = kinds_of(diagnose_one(records[:2], (10.0, 20.0, "a")))
    assert kinds == [Kind.TRUE_POSITIVE, Kind.DOUBLE_DETECTION]  # of equal scores the first of the file


def test_the_nearest_segment_decides_and_of_equals_the_own_label():
    first, second = record(10, 20, 0.9), record(10, 18, 0.8)
    kinds = kinds_of(diagnose_one([first, second], (10.0, 20.0, "a"), (10.0, 18.0, "b")))
    assert kinds == [Kind.TRUE_POSITIVE, Kind.WRONG_LABEL]  # overlaps b entirely
    for truth in ((10.0, 20.0, "a"), (10.0, 20.0, "b")), ((10.0, 20.0, "b"), (10.0, 20.0, "a")):
        assert kinds_of(diagnose_one([first, second], *truth)) == [Kind.TRUE_POSITIVE, Kind.DOUBLE_DETECTION]
    only = kinds_of(diagnose_one([second], (10.0, 20.0, "a"), (10.0, 18.0, "b")))
    assert only == [Kind.TRUE_POSITIVE]  # though b is nearer


def test_another_threshold():
    found = diagnose_one([record(10, 17, 0.9)], (10.0, 20.0, "a"), tiou=0.75)
    assert kinds_of(found) == [Kind.LOCALISATION]
    assert found.missed.tolist() == [True]
    assert found.metrics.average_map == 1  # at 0.5


def test_unannotated_videos_and_unknown_ones():
    videos = [video("v", (10.0, 20.0, "a")), video("empty")]
    results = {"empty": [record(1, 2, 0.9)], "not annotated": [record(1, 2, 0.9)], "v": [record(10, 20, 0.1, "never")]}
    found = diagnose(results, videos, average_tiou=(0.5,))
    assert kinds_of(found) == [Kind.BACKGROUND]
    with pytest.raises(DataError, match="no annotated action"):
        diagnose(results, videos[1:], average_tiou=(0.5,))


def test_profile_goes_in_steps_of_the_class():
    truth = ((0.0, 10.0, "a"), (20.0, 30.0, "a"), (40.0, 50.0, "b"))
    hits = [record(0, 10, 0.9), record(20, 30, 0.8)]
    misses = [record(60, 70, 0.5 - n / 100) for n in range(19)]
    others = [record(40, 50, 0.3, "b"), record(0, 10, 0.2, "b"), record(20, 25, 0.25, "b")]
    found = diagnose_one([*misses, *hits, *others], *truth)
    profile = found.profile()
    assert profile[0].tolist() == [3, 0, 0, 0, 0, 0]  # 2 of a, 1 of b
    assert profile[1].tolist() == [0, 0, 1, 0, 0, 2]
    assert profile[2].tolist() == [0, 0, 1, 0, 0, 2]
    assert profile[3:, Kind.BACKGROUND].tolist() == [2] * 7
    assert profile.sum() == 23  # the 21st of a is beyond its 10 G
    assert found.class_kinds().tolist() == [[2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert found.mistaken() == [("b", "a", 0, 2)]
    found = diagnose_one([record(40, 50, 0.9), record(0, 4, 0.8, "b"), *hits, *others], *truth)
    assert found.class_kinds().tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert found.mistaken() == [("b", "a", 1, 3), ("a", "b", 1, 1)]


def test_missed_where_precision_is_low():
    def missed(wrong: int, **arguments) -> list[bool]:
        records = [record(50 + n, 50.5 + n, 0.9) for n in range(wrong)] + [record(10, 20, 0.1)]
        return diagnose_one(records, (10.0, 20.0, "a"), **arguments).missed.tolist()

    assert missed(18) == [False]
    assert missed(19) == [True]  # a precision of 1 in 20 is not above 0.05
    assert missed(19, min_precision=0.0) == [False]
    truth = ((10.0, 20.0, "a"), *((60.0 + n, 60.5 + n, "b") for n in range(3)))
    for wrong, lost in ((37, False), (38, True)):  # with 2 segments a class: 2 in 40
        records = [record(30 + n / 10, 30.1 + n / 10, 0.9) for n in range(wrong)] + [record(10, 20, 0.1)]
        assert diagnose_one(records, *truth).missed.tolist() == [lost, True, True, True]


@pytest.mark.parametrize("name", list(BINS))
@pytest.mark.parametrize("characteristic", ["coverage", "length", "instances"])
def test_each_bin(name, characteristic):
    bins, sizes = BINS[name], ["XS", "S", "M", "L", "XL"]
    edges = {"coverage": bins.coverage, "length": bins.length_sec, "instances": bins.instances}[characteristic]
    for value, size in [
        *((edge, place) for place, edge in enumerate(edges)),  # the edge itself is in the smaller one
        *((edge * 1.001 if characteristic != "instances" else edge + 1, place + 1) for place, edge in enumerate(edges)),
    ]:
        if characteristic == "instances":
            actions = [(float(n), n + 0.5, "a") for n in range(int(value))]
            of_video = video("v", *actions)
        elif characteristic == "length":
            of_video = video("v", (10.4, 10.4 + value, "a"), duration=1000.0)  # 10.4 + 3 - 10.4 is not 3
        else:
            of_video = video("v", (0.0, 70 * value, "a"), duration=70.0)
        found = diagnose({}, [of_video], average_tiou=(0.5,))
        rows = [row for row in found.missed_by(bins) if row.characteristic == characteristic]
        assert [row.size for row in rows] == sizes[: len(edges) + 1]
        assert [row.size for row in rows if row.missed] == [sizes[size]], value
        assert [row.ground_truth for row in rows] == [row.missed for row in rows]


def test_ranges_of_bins_in_words():
    found = diagnose_one([], (10.0, 12.0, "a"))
    ranges = [row.range for row in found.missed_by(BINS["thumos14"])]
    assert ranges[:5] == ["up to 2 %", "2 to 4 %", "4 to 6 %", "6 to 8 %", "over 8 %"]
    assert ranges[5:] == [
        "up to 3 s",
        "3 to 6 s",
        "6 to 12 s",
        "12 to 18 s",
        "over 18 s",
        "1",
        "2 to 40",
        "41 to 80",
        "over 80",
    ]
    assert suitable_bins(found.truths) == "thumos14"
    assert suitable_bins(diagnose_one([], (10.0, 41.0, "a")).truths) == "activitynet"


def gains_of(diagnosis: Diagnosis) -> dict[str, tuple[float, float]]:
    """name -> points by removal and by fixing."""
    return {
        gain.name: (0.0 if gain.removed is None else gain.removed.mean(), gain.fixed.mean()) for gain in diagnosis.gains
    }


def test_gains_by_hand():
    truth = ((0.0, 10.0, "a"), (20.0, 30.0, "a"))
    found = diagnose_one([record(0, 10, 0.9), record(0, 9, 0.8), record(20, 30, 0.7)], *truth)
    assert found.metrics.average_map == pytest.approx(0.5 + 0.5 * 2 / 3)
    gains = gains_of(found)
    assert gains.pop("double detection") == pytest.approx((1 / 6, 1 / 6))
    assert gains.pop("all false positives") == pytest.approx((1 / 6, 1 / 6))
    assert set(gains.values()) == {(0.0, 0.0)}

    found = diagnose_one([record(60, 70, 0.9), record(0, 10, 0.8), record(20, 24, 0.7)], *truth)
    assert found.metrics.average_map == pytest.approx(0.25)
    gains = gains_of(found)
    assert gains["background"] == pytest.approx((0.25, 0.25))
    assert gains["localisation"] == pytest.approx((0.0, 0.5 * 2 / 3 + 0.5 * 2 / 3 - 0.25))
    assert gains["missed segments"] == pytest.approx((0.0, 0.5 + 0.5 * 2 / 3 - 0.25))
    assert gains["all false positives"] == pytest.approx((0.25, 0.75))


def test_a_fixed_label_moves_to_its_class_with_its_score():
    truth = ((0.0, 10.0, "a"), (20.0, 30.0, "b"))
    found = diagnose_one([record(0, 10, 0.8), record(20, 30, 0.9), record(60, 70, 0.95, "b")], *truth)
    assert found.metrics.average_map == pytest.approx((0.5 + 0) / 2)
    assert gains_of(found)["wrong label"] == pytest.approx((0.25, 0.25 + 0.25))  # b: second of two, 1/2
    found = diagnose_one([record(0, 10, 0.8), record(20, 24, 0.9)], *truth)
    assert gains_of(found)["confusion"] == pytest.approx((0.25, 0.25 + 0.5))


def test_only_the_best_of_several_on_a_segment_is_fixed():
    records = [record(0, 4, 0.7), record(0, 4, 0.9), record(0, 4, 0.8), record(60, 70, 0.95)]
    assert gains_of(diagnose_one(records, (0.0, 10.0, "a")))["localisation"] == pytest.approx((0.0, 0.5))
    found = diagnose_one([record(0, 10, 0.1), *records], (0.0, 10.0, "a"))  # it has one already
    assert found.metrics.average_map == pytest.approx(1 / 5)
    assert gains_of(found)["localisation"] == pytest.approx((1 / 2 - 1 / 5, 1 / 2 - 1 / 5))


def test_a_segment_found_too_late_is_found_once_when_fixed():
    records = [record(50 + n, 50.5 + n, 0.9) for n in range(19)] + [record(10, 20, 0.1)]
    found = diagnose_one(records, (10.0, 20.0, "a"))
    assert found.metrics.average_map == pytest.approx(1 / 20)
    assert gains_of(found)["missed segments"] == pytest.approx((0.0, 1 - 1 / 20))  # the late one is then a double


def test_classes_without_detections_and_perfect_ones():
    truth = ((0.0, 10.0, "a"), (20.0, 30.0, "b"))
    found = diagnose_one([record(0, 10, 0.5)], *truth)
    assert found.class_missed().tolist() == [0, 1]
    assert found.class_kinds().sum(axis=1).tolist() == [1, 0]
    assert gains_of(found)["missed segments"] == (0.0, 0.5)
    nothing = gains_of(diagnose({}, [video("v", *truth)], average_tiou=(0.3, 0.5)))
    assert nothing.pop("missed segments") == (0.0, 1.0)
    assert set(nothing.values()) == {(0.0, 0.0)}


def plain_analysis(results: dict, truth: dict, threshold: float) -> list[dict]:
    """Kind and target of each detection of an annotated class, one after the other."""
    classes = {label for segments in truth.values() for *_, label in segments}
    rows = [
        {"video": name, "record": one}
        for name, records in results.items()
        if name in truth
        for one in records
        if one["label"] in classes
    ]
    taken = set()
    for row in sorted(rows, key=lambda row: -row["record"]["score"]):
        label, segments = row["record"]["label"], truth[row["video"]]
        overlaps = [oracles.tiou(row["record"]["segment"], segment) for segment in segments]
        top = max(overlaps, default=0.0)
        equals = [i for i, overlap in enumerate(overlaps) if overlap == top]
        nearest = next((i for i in equals if segments[i][2] == label), equals[0] if equals else -1)
        free = [i for i, s in enumerate(segments) if s[2] == label and (row["video"], i) not in taken]
        best = max(free, key=lambda i: (overlaps[i], i), default=-1)
        own = bool(segments) and segments[nearest][2] == label
        row["target"] = (row["video"], nearest)
        if best >= 0 and overlaps[best] >= threshold:
            taken.add((row["video"], best))
            row["kind"] = Kind.TRUE_POSITIVE
        elif top >= threshold:
            row["kind"] = Kind.DOUBLE_DETECTION if own else Kind.WRONG_LABEL
        elif top >= 0.1:
            row["kind"] = Kind.LOCALISATION if own else Kind.CONFUSION
        else:
            row["kind"] = Kind.BACKGROUND
    for row in rows:
        row["free"] = row["target"] not in taken
    return rows


def fixed_results(rows: list[dict], truth: dict, kinds: set[Kind], *, fix: bool) -> dict:
    """The file that the analysis speaks of, written out."""
    fixable = {Kind.WRONG_LABEL, Kind.LOCALISATION, Kind.CONFUSION} & kinds if fix else set()
    chosen: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda row: -row["record"]["score"]):
        if row["kind"] in fixable and row["free"]:
            chosen.setdefault(row["target"], row)
    results: dict[str, list] = {}
    for row in rows:
        name, index = row["target"]
        of_video = results.setdefault(name, [])
        if row["kind"] not in kinds:
            of_video.append(row["record"])
        elif chosen.get(row["target"]) is row:
            start, end, label = truth[name][index]
            of_video.append(record(start, end, row["record"]["score"], label))
    return results


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(cases())
def test_as_if_the_fixed_file_were_evaluated(case):
    results, truth = case
    videos = [video(name, *segments) for name, segments in truth.items()]
    for threshold in (0.25, 0.5):
        found = diagnose(results, videos, average_tiou=(threshold,), tiou=threshold, min_precision=0.0)
        before = evaluate_detections(results, truth, tiou=(threshold,))
        assert found.metrics.average_map == before.average_map
        rows = plain_analysis(results, truth, threshold)
        assert kinds_of(found) == [row["kind"] for row in rows]
        every = set(Kind) - {Kind.TRUE_POSITIVE}
        for gain in found.gains[:-1]:
            kinds = every if gain.name == "all false positives" else {Kind[gain.name.upper().replace(" ", "_")]}
            assert gain.detections == sum(row["kind"] in kinds for row in rows)
            for fix, value in ((False, gain.removed), (True, gain.fixed)):
                after = evaluate_detections(fixed_results(rows, truth, kinds, fix=fix), truth, tiou=(threshold,))
                assert value.mean() == pytest.approx(after.average_map - before.average_map), (gain.name, fix)
                assert value.mean() >= 0
        finds: dict[str, list] = {name: [] for name in truth}
        for index in np.flatnonzero(found.missed):
            name, label = videos[found.truths.video[index]].name, before.classes[found.truths.label[index]]
            finds[name].append(record(*found.truths.segments_sec[index], 2.0, label))
        if all(one["segment"][1] > one["segment"][0] for of in finds.values() for one in of):
            both = {name: finds.get(name, []) + results.get(name, []) for name in [*results, *truth]}
            after = evaluate_detections(both, truth, tiou=(threshold,))
            assert found.gains[-1].fixed.mean() == pytest.approx(after.average_map - before.average_map)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(cases())
def test_mending_everything_leaves_nothing_to_gain(case):
    results, truth = case
    videos = [video(name, *segments) for name, segments in truth.items()]
    found = diagnose(results, videos, average_tiou=(0.5,), min_precision=0.0)
    gains = gains_of(found)
    share_found = np.mean([1 - m / total for m, total in zip(found.class_missed(), found.metrics.truths, strict=True)])
    assert found.metrics.average_map + gains["all false positives"][0] == pytest.approx(share_found)
    if not found.missed.any():
        assert found.metrics.average_map + gains["all false positives"][1] == pytest.approx(1)


def thumos_like(videos: int, *, classes: int, detections: int) -> tuple[dict, list[Video]]:
    chance = random.Random(3)
    results, annotated = {}, []
    for number in range(videos):
        labels = [f"class {chance.randrange(classes)}" for _ in range(12)]
        actions = [
            (start := 20.0 * n + chance.random(), start + 1 + 9 * chance.random(), label)
            for n, label in enumerate(labels)
        ]
        annotated.append(video(f"v{number}", *actions, duration=260.0))
        results[f"v{number}"] = [
            record(start + chance.gauss(0, 2), end + chance.gauss(0, 2), chance.random(), label)
            for start, end, label in chance.choices(actions, k=detections)
        ]
    return results, annotated


@pytest.mark.slow
def test_many_detections_are_quick_and_measured_as_in_evaluation():
    results, videos = thumos_like(100, classes=20, detections=500)
    truth = {v.name: [(action.start_sec, action.end_sec, action.label) for action in v.actions] for v in videos}
    tiou = (0.3, 0.4, 0.5, 0.6, 0.7)
    begin = time.process_time()  # not the wall's: other processes may be at work
    found = diagnose(results, videos, average_tiou=tiou)
    assert time.process_time() - begin < 5  # 0.4 s
    assert len(found.kinds) == 50_000
    assert found.metrics.to_dict() == evaluate_detections(results, truth, tiou=tiou).to_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "detections"), [(1, 0), (1, 1), (200, 30)])
def test_pictures_of_few_and_many(tmp_path, classes, detections):
    results, videos = thumos_like(1 if classes == 1 else 40, classes=classes, detections=detections)
    found = diagnose(results, videos, average_tiou=(0.5,))
    draw_profile(tmp_path / "profile.png", found)
    draw_gains(tmp_path / "gains.png", found)
    draw_missed(tmp_path / "missed.png", found, BINS["thumos14"])
    draw_classes(tmp_path / "classes.png", found)
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.getcolors(10) is None, f"{path} has no more than 10 colours"
    with Image.open(tmp_path / "classes.png") as picture:
        assert picture.height < 1000  # only some of 200 classes
    assert (len(found.metrics.classes) > MOST_CLASSES) == (classes == 200)


def write_case(folder: Path) -> tuple[Path, Path]:
    """Detections and annotations with one error of each kind; labels that HTML and Markdown must mask."""
    dive, jump = "dive & <roll>", "jump | hop"
    truth = [[0, 10, dive], [20, 30, dive], [40, 50, jump], [60, 90, jump]]
    database = {
        "v": {
            "subset": "validation",
            "duration": 100,
            "annotations": [{"segment": segment, "label": label} for *segment, label in truth],
        },
        "w": {"subset": "validation", "duration": 50, "annotations": []},
        "t": {"subset": "training", "duration": 50, "annotations": [{"segment": [1, 2], "label": dive}]},
        "u": {"subset": "unannotated", "duration": 50, "annotations": []},
    }
    records = [
        record(0, 10, 0.9, dive),  # true positive
        record(1, 10, 0.8, dive),  # double detection
        record(40, 50, 0.7, dive),  # wrong label
        record(20, 24, 0.6, dive),  # localisation
        record(60, 70, 0.5, dive),  # confusion
        record(40, 49, 0.4, jump),  # true positive
        record(94, 99, 0.3, jump),  # background
        record(94, 99, 0.3, "unheard of"),
    ]
    results = {"v": records, "w": [], "elsewhere": [record(1, 2, 0.5, dive)]}
    annotations, detections = folder / "annotations.json", folder / "detections.json"
    annotations.write_text(json.dumps({"database": database}))
    detections.write_text(json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}}))
    return detections, annotations


def html_tables(root: ET.Element) -> dict[str, list[list[str]]]:
    return {
        table.get("id", ""): [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        for table in root.iter("table")
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a report made from the command line, and what was printed."""
    detections, annotations = write_case(tmp_path_factory.mktemp("case"))
    command = [sys.executable, "-m", "adatad_ds", "diagnose", detections, annotations]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return detections.parent / "errors", done.stdout


@pytest.mark.slow
def test_report_from_the_command_line(reported):
    folder, printed = reported
    # dive: 1, then 4 wrong; 0.5. jump: 1, then 1 wrong; 0.5. At 0.3 and 0.4 the localisation (tIoU 0.4) and the
    # confusion (1/3) are seen otherwise: dive 0.5 + 0.5 * 2/4 at both.
    assert "average mAP 55.00 %" in printed
    gains = {row["error"]: row for row in read_csv(folder / "gains.csv")}
    assert [int(row["count"]) for row in gains.values()] == [1, 1, 1, 1, 1, 5, 2]
    assert float(gains["background"]["fixed@0.5"]) == 0
    assert float(gains["localisation"]["fixed@0.5"]) == pytest.approx(0.5 * (0.5 + 0.5 * 2 / 4) - 0.25)
    assert float(gains["missed segments"]["fixed@0.5"]) == pytest.approx(0.5)
    assert gains["missed segments"]["removed"] == ""
    mean = np.mean([float(gains["confusion"][f"fixed@{tiou}"]) for tiou in (0.3, 0.4, 0.5, 0.6, 0.7)])
    assert float(gains["confusion"]["fixed"]) == pytest.approx(mean)

    text = (folder / "report.html").read_text()
    root = ET.fromstring(text.replace("<!DOCTYPE html>", ""))
    tables = html_tables(root)
    assert tables["profile"][1] == ["1 G", "4", "50.00", "25.00", "0.00", "0.00", "0.00", "25.00"]
    assert tables["gains"][3][:2] == ["localisation", "1"]
    assert tables["gains"][3][3] == f"{100 * float(gains['localisation']['fixed']):.2f}"
    assert ["length", "M", "6 to 12 s", "3", "1", "33.33"] in tables["missed"]
    assert ["length", "XL", "over 18 s", "1", "1", "100.00"] in tables["missed"]
    assert tables["mistaken"][1:] == [["dive & <roll>", "jump | hop", "0", "2"]]
    assert [row[0] for row in tables["per_class"][1:]] == ["dive & <roll>", "jump | hop"]
    assert tables["per_class"][1][1:] == ["2", "60.00", "1", "1", "0", "0", "0", "0", "1", "50.00"]
    for image in root.iter("img"):
        kind, _, data = image.get("src", "").partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) in {path.read_bytes() for path in folder.glob("*.png")}
    assert len(list(root.iter("img"))) == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing from elsewhere

    notes = "".join(root.find("body/ul").itertext())
    assert "; such detections are not counted: 'unheard of' (1)" in notes
    assert re.search("videos of the detections that are not in subset 'validation' .* are not counted: 1", notes)
    markdown = (folder / "report.md").read_text()
    assert "| dive \\& \\<roll\\> | jump \\| hop | 0 | 2 |" in markdown
    for row in tables["missed"]:
        assert "| " + " | ".join(row) + " |" in markdown


def analysed(
    detections: Path, annotations: Path, *, average_tiou: Sequence[float] | None = None, exclude: Sequence[str] = ()
) -> tuple[Diagnosis, str]:
    diagnosis, source = diagnose_files(
        detections,
        annotations,
        subset="validation",
        tiou=0.5,
        average_tiou=average_tiou,
        min_precision=MIN_PRECISION,
        exclude=exclude,
    )
    return diagnosis, "".join(source.notes)


def test_thresholds_are_those_of_the_evaluation_beside(tmp_path):
    case = write_case(tmp_path)
    assert analysed(*case)[0].metrics.tiou == (0.3, 0.4, 0.5, 0.6, 0.7)
    beside = tmp_path / METRICS_FILE
    beside.write_text(json.dumps({"average_mAP": 0.5, "mAP@0.5": 0.5, "mAP@0.75": 0.5, "recall@0.5@1": 0.1}))
    diagnosis, notes = analysed(*case)
    assert diagnosis.metrics.tiou == (0.5, 0.75)
    assert "metrics.json" not in notes
    beside.write_text(json.dumps({"average_mAP": 0.4, "mAP@0.5": 0.4}))
    assert "metrics.json beside the detections says average mAP 40.00 %" in analysed(*case)[1]
    diagnosis, notes = analysed(*case, average_tiou=(0.3, 0.6))
    assert diagnosis.metrics.tiou == (0.3, 0.6)
    assert "metrics.json" not in notes
    beside.write_text("{")
    assert analysed(*case)[0].metrics.tiou == (0.3, 0.4, 0.5, 0.6, 0.7)


def test_left_out_videos(tmp_path):
    detections, annotations = write_case(tmp_path)
    content = json.loads(detections.read_text())
    del content["results"]["w"]
    detections.write_text(json.dumps(content))
    assert "that are not in the detections: 1;" in analysed(detections, annotations)[1]
    assert "not in the detections" not in analysed(detections, annotations, exclude=["w"])[1]


def test_detections_of_any_action(tmp_path):
    """All are labelled alike, and so are then the annotations, unless that is the name of a class."""
    detections, annotations = write_case(tmp_path)
    content = json.loads(detections.read_text())
    alike = {name: [found | {"label": ANY_ACTION} for found in records] for name, records in content["results"].items()}
    detections.write_text(json.dumps({"results": alike}))
    diagnosis, notes = analysed(detections, annotations)
    assert diagnosis.metrics.classes == (ANY_ACTION,)
    assert diagnosis.metrics.truths.tolist() == [4]
    truth = {"v": [(0, 10, ANY_ACTION), (20, 30, ANY_ACTION), (40, 50, ANY_ACTION), (60, 90, ANY_ACTION)], "w": []}
    expected = evaluate_detections({"v": alike["v"], "w": []}, truth, tiou=(0.3, 0.4, 0.5, 0.6, 0.7))
    assert diagnosis.metrics.average_map == expected.average_map > 0
    assert "they are held against any action, whatever its class (2 are annotated)" in notes
    annotations.write_text(annotations.read_text().replace("jump | hop", ANY_ACTION))
    diagnosis, notes = analysed(detections, annotations)
    assert diagnosis.metrics.classes == (ANY_ACTION, "dive & <roll>")
    assert "whatever its class" not in notes


@pytest.mark.parametrize(
    ("content", "subset", "message"),
    [
        (
            {"results": {"elsewhere": []}},
            "validation",
            "no video in common: detections are of elsewhere, annotations of v, w",
        ),
        ({"results": {}}, "validation", "detections are of no video"),
        ({"results": {"v": [], "w": []}}, "validation", "holds no detection in any of the 2 videos"),
        ({"results": {"v": [record(1, 2, 0.5, "odd")]}}, "validation", "label that subset .* annotates: 'odd' [(]1[)]"),
        ({"results": {"v": [record(1, 2, 0.5)], "u": []}}, "unannotated", "no annotated action"),
        ({"results": {"v": []}}, "test", "no video of subset 'test'; its subsets: validation, training, unannotated"),
        ({"results": {"v": [{"segment": [1], "label": "a", "score": 1}]}}, "validation", "v #0: segment must be"),
        ({"database": {}}, "validation", "is not a detection file"),
        ("{", "validation", "cannot read the detections"),
        (None, "validation", "cannot read the detections .*No such file"),
    ],
)
def test_bad_input_is_one_paragraph(tmp_path, capsys, content, subset, message):
    detections, annotations = write_case(tmp_path)
    if content is None:
        detections.unlink()
    else:
        detections.write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["diagnose", str(detections), str(annotations), "--subset", subset]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "errors").exists()


@pytest.mark.parametrize("annotations", ["{", '{"results": {}}', '{"database": {"v": {"subset": "validation"}}}'])
def test_bad_annotations(tmp_path, capsys, annotations):
    detections, path = write_case(tmp_path)
    path.write_text(annotations)
    assert main(["diagnose", str(detections), str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_report(reported, tmp_path):
    page = loaded(reported[0] / "report.html")
    assert page.count("<img ") == 4
    assert "dive &amp; &lt;roll&gt;" in page
    broken = tmp_path / "broken.html"
    broken.write_text("<script>throw new Error('seen')</script>")
    assert "seen" in "".join(opened(broken)[1])  # such a fault would have been noticed
