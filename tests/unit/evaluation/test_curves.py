from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adatad_ds.data.annotations import Action, Video
from adatad_ds.evaluation.accuracy import recognition_accuracy
from adatad_ds.evaluation.metrics import RECALL_LEVELS, Metrics, evaluate_detections
from adatad_ds.evaluation.plots.curves import (
    MOST_CONFUSED,
    MOST_CURVES,
    class_ap_figure,
    confusion_figure,
    precision_recall_figure,
)
from adatad_ds.evaluation.plots.figures import OTHER_COLOR, PALETTE
from adatad_ds.evaluation.plots.timelines import TimelineVideo, timeline_figure, timeline_videos
from adatad_ds.evaluation.run_report.facts import LOG_FILE
from adatad_ds.training.monitor import Monitor
from tests.support.detections import cases, record


def metrics_of(aps: list[float], *, tiou: tuple[float, ...] = (0.5,)) -> Metrics:
    """Classes of these AP, whose precision is as high up to full recall."""
    count = len(aps)
    return Metrics(
        tiou=tiou,
        classes=tuple(f"class{i}" for i in range(count)),
        truths=np.arange(1, count + 1),
        ap=np.tile(aps, (len(tiou), 1)),
        precision=np.tile(np.array(aps)[:, None], (len(tiou), 1, len(RECALL_LEVELS))),
        recall={},
    )


def test_precision_by_hand():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a"), (40.0, 50.0, "a"), (60.0, 70.0, "a")], "w": [(0.0, 1.0, "b")]}
    found = [record(0, 10, 0.9), record(80, 90, 0.8), record(20, 30, 0.7), record(40, 46, 0.6), record(90, 99, 0.5)]
    metrics = evaluate_detections({"v": found}, truth, tiou=(0.5, 0.7))
    assert metrics.precision.shape == (2, 2, 101)
    # hit, miss, hit, hit (at 0.5 only), miss: precision 1, 1/2, 2/3, 3/4, 3/5 at recall 1/4, 1/4, 2/4, 3/4, 3/4
    at = {round(level, 2): index for index, level in enumerate(RECALL_LEVELS)}
    expected = {0.0: 1.0, 0.25: 1.0, 0.26: 0.75, 0.5: 0.75, 0.75: 0.75, 0.76: 0.0, 1.0: 0.0}
    assert {level: metrics.precision[0, 0, at[level]] for level in expected} == pytest.approx(expected)
    expected = {0.0: 1.0, 0.25: 1.0, 0.26: 2 / 3, 0.5: 2 / 3, 0.51: 0.0}
    assert {level: metrics.precision[1, 0, at[level]] for level in expected} == pytest.approx(expected)
    assert not metrics.precision[:, 1].any()  # nothing of b was detected


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cases())
def test_area_under_the_curve_is_ap(case):
    """Of a class with G ground truths, AP is the mean of the precision at recall 1/G, 2/G ... 1."""
    results, truth = case
    metrics = evaluate_detections(results, truth, tiou=(0.25, 0.5))
    for column, total in enumerate(metrics.truths):
        levels = np.ceil(100 * np.arange(1, total + 1) / total - 1e-6).astype(int)
        exact = 100 % total == 0  # else those levels lie between the kept ones, which show a point later, or as much
        mean = metrics.precision[:, column, levels].mean(axis=1)
        assert np.allclose(mean, metrics.ap[:, column]) if exact else (mean <= metrics.ap[:, column] + 1e-9).all()
    assert (np.diff(metrics.precision, axis=-1) <= 1e-12).all()


def test_curves_show_the_numbers():
    truth = {"v": [(0.0, 10.0, "a"), (20.0, 30.0, "a")], "w": [(5.0, 6.0, "b")]}
    results = {"v": [record(0, 10, 0.9)], "w": [record(5, 6, 0.5, "b")]}
    metrics = evaluate_detections(results, truth, tiou=(0.3, 0.5))
    means, classes = precision_recall_figure(metrics, title="epoch 1").axes
    assert [line.get_label() for line in means.lines] == ["tIoU 0.30: 75.0", "tIoU 0.50: 75.0"]
    percent = np.asarray(means.lines[0].get_ydata())
    assert (percent[0], percent[50], percent[51], percent[100]) == (100, 100, 50, 50)
    assert [line.get_label() for line in classes.lines] == ["a (2): 50.0", "b (1): 100.0"]
    assert np.asarray(classes.lines[0].get_ydata())[[50, 51]].tolist() == [100, 0]
    for axis in (means, classes):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("recall (%)", "precision (%)")
        assert all(to_hex(line.get_color()).upper() in PALETTE for line in axis.lines)
    assert "0.50" in classes.get_title(loc="left")


def test_curves_of_many_and_of_one():
    tiou = tuple(0.5 + 0.05 * step for step in range(10))
    means, classes = precision_recall_figure(metrics_of([0.5] * 200, tiou=tiou), title="many").axes
    assert len(means.lines) == len(classes.lines) == MOST_CURVES
    labels = [str(line.get_label())[:9] for line in means.lines]
    assert labels[0] == "tIoU 0.50"
    assert labels[-1] == "tIoU 0.95"
    assert str(classes.lines[0].get_label()).startswith("class199 (200)")  # the most annotated
    (only,) = precision_recall_figure(metrics_of([0.25]), title="one").axes
    assert only.get_title(loc="left") == "class0"


@pytest.mark.parametrize("count", [1, 3, 40, 41, 300])
def test_bars(count):
    aps = [(i * 7 % count) / count for i in range(count)]
    figure = class_ap_figure(metrics_of(aps, tiou=(0.3, 0.7)), title="AP")
    (axis,) = figure.axes
    widths = [bar.get_width() for bar in axis.patches]
    ranked = sorted((100 * ap for ap in aps), reverse=True)
    cut = count > 40
    assert widths == pytest.approx(ranked[:20] + ranked[-20:] if cut else ranked)
    heights = [bar.get_y() for bar in axis.patches]
    assert heights == sorted(heights)  # the axis points down: the best on top
    assert axis.yaxis_inverted()
    best = aps.index(max(aps))
    assert axis.get_yticklabels()[0].get_text() == f"class{best} ({best + 1})"
    assert axis.get_xlabel() == "average precision (%), mean of tIoU 0.30 to 0.70"
    title = figure.get_suptitle()
    assert title == ("AP: the 20 best and the 20 worst of " * cut or "AP: ") + f"{count} class{'es' * (count > 1)}"
    assert any("260 classes between" in text.get_text() for text in axis.texts) == (count == 300)


def video(actions: int) -> Video:
    segments = tuple(Action(10.0 * i, 10.0 * i + 5, f"class{i % 3}") for i in range(actions))
    return Video("v", "validation", 400.0, None, None, segments)


@pytest.mark.parametrize(("actions", "found", "shown"), [(1, 0, 0), (1, 1, 1), (1, 300, 10), (30, 300, 60), (0, 5, 5)])
def test_the_surest_detections_are_shown(actions, found, shown):
    scores = np.random.default_rng(0).permutation(found) / 1000
    results = {"v": [record(i, i + 2, float(score)) for i, score in enumerate(scores)]}
    (drawn,) = timeline_videos(results, videos=[video(actions)])
    assert len(drawn.ground_truth) == actions
    assert [shown_one["score"] for shown_one in drawn.detections] == sorted(scores, reverse=True)[:shown]
    (axis,) = timeline_figure([drawn], title="t").axes
    assert len(axis.patches) == actions + shown


def test_colours_stay_whatever_is_detected():
    def colours(detections: list[dict]) -> dict[str, str]:
        drawn = TimelineVideo(
            name="v", duration_sec=9, ground_truth=[(0, 1, "b"), (2, 3, "a"), (4, 5, "c")], detections=detections
        )
        figure = timeline_figure([drawn], title="t")
        (legend,) = figure.legends
        pairs = zip(legend.get_texts(), legend.get_patches(), strict=True)
        return {text.get_text(): to_hex(patch.get_facecolor()).upper() for text, patch in pairs}

    none = colours([])
    assert list(none) == ["a", "b", "c"]
    assert set(none.values()) <= set(PALETTE)
    many = colours([record(0, 1, 0.5, "c")] * 9 + [record(0, 1, 0.5, f"wrong{i}") for i in range(30)])
    assert none.items() <= many.items()
    assert many["21 other classes"] == OTHER_COLOR  # 12 are told apart


def read(folder) -> EventAccumulator:
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0, "tensors": 0})
    board.Reload()
    return board


def write(folder, *, start: int, stop: int, value: float, active: bool = True) -> None:
    monitor = Monitor(folder=folder, active=active, start_step=start, total_steps=9)
    monitor.text("config", f"started at {start}")
    for step in range(start, stop):
        monitor.scalars(step, {"evaluation/mAP@0.5": value})
        figure = Figure(figsize=(2, 1), dpi=50)
        figure.set_facecolor("#0072B2")
        monitor.figure("evaluation/curves", lambda figure=figure: figure, step)
        monitor.histogram("adapters/gamma", [value, value + 1, float("nan")], step)
        monitor.histogram("adapters/nothing", [float("nan")], step)
    monitor.close()


def test_monitor_writes_figures_and_histograms_once_a_step(tmp_path):
    write(tmp_path, start=0, stop=5, value=1.0)
    write(tmp_path, start=3, stop=6, value=2.0)  # resumed from step 3
    board = read(tmp_path)
    tags = board.Tags()
    assert tags["images"] == ["evaluation/curves"]
    assert tags["histograms"] == ["adapters/gamma"]
    assert tags["tensors"] == ["config/text_summary"]
    scalars = board.Scalars("evaluation/mAP@0.5")
    assert [(event.step, event.value) for event in scalars] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    images, histograms = board.Images("evaluation/curves"), board.Histograms("adapters/gamma")
    assert [event.step for event in images] == [event.step for event in histograms] == list(range(6))
    assert [event.histogram_value.num for event in histograms] == [2] * 6
    assert [event.histogram_value.max for event in histograms] == [2, 2, 2, 3, 3, 3]
    picture = Image.open(io.BytesIO(images[0].encoded_image_string))
    assert picture.size == (100, 50)
    assert picture.getpixel((50, 25)) == (0x00, 0x72, 0xB2)
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("config/text_summary")]
    assert [text.splitlines()[1] for text in texts] == ["started at 0", "started at 3"]


def test_a_resume_logs_every_step_once(tmp_path):
    write(tmp_path, start=0, stop=5, value=1.0)
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 2, "evaluat')  # cut by a crash
    write(tmp_path, start=3, stop=6, value=2.0)
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [tuple(line.values()) for line in lines] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_a_picture_that_fails_ends_no_training(tmp_path, capsys):
    monitor = Monitor(folder=tmp_path, active=True, start_step=0, total_steps=9)

    def fail() -> Figure:
        raise RuntimeError("no memory")

    monitor.figure("pictures/curves", fail, 0)
    monitor.scalars(0, {"loss/total": 1.0})
    monitor.close()
    assert "warning: pictures/curves could not be drawn: RuntimeError: no memory" in capsys.readouterr().out
    assert [event.value for event in read(tmp_path).Scalars("loss/total")] == [1.0]


def test_no_text_ends_its_fence(tmp_path):
    monitor = Monitor(folder=tmp_path, active=True, start_step=0, total_steps=9)
    monitor.text("config", "a\n```\n<b>bold</b>")
    monitor.close()
    (event,) = read(tmp_path).Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "````\na\n```\n<b>bold</b>\n````"


def test_the_bar_shows_a_smoothed_loss(tmp_path):
    monitor = Monitor(folder=tmp_path, active=True, start_step=100, total_steps=400)
    shown = []
    for step, loss in enumerate([8.0, 4.0] + [1.0, 3.0] * 100, start=100):
        monitor.advance(step, loss=loss)
        shown.append(float(monitor._bar.postfix.split()[1]))
    monitor.close()
    assert shown[:3] == [8.0, 6.0, 4.3333]  # the mean so far
    assert all(abs(loss - 2) < 0.1 for loss in shown[-20:])  # of losses that jump between 1 and 3
    assert "(smoothed)" in monitor._bar.postfix


def test_a_run_started_over_leaves_no_steps_of_the_first(tmp_path):
    write(tmp_path, start=0, stop=5, value=1.0)
    write(tmp_path, start=0, stop=2, value=2.0)
    board = read(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("evaluation/mAP@0.5")] == [(0, 2), (1, 2)]
    assert len(board.Images("evaluation/curves")) == 2


def test_an_inactive_monitor_writes_nothing(tmp_path):
    write(tmp_path, start=0, stop=2, value=1.0, active=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 8, 30])
def test_confusion(count):
    classes = [f"class {index}" for index in range(count)]
    truth = {f"v{index}": index % count for index in range(3 * count)}
    wrong = {"v0": (0 + 1) % count}  # of class 0, one of three is taken for class 1
    logits = {name: np.eye(count)[[wrong.get(name, label)]] for name, label in truth.items()}
    figure = confusion_figure(recognition_accuracy(logits, truth, classes=classes), title="Epoch 1")
    axis = figure.axes[0]
    shares = axis.images[0].get_array()
    assert shares.shape == (min(count, MOST_CONFUSED),) * 2
    if count > 1:
        assert shares[0, :2].tolist() == pytest.approx([200 / 3, 100 / 3])
    assert ("most mistaken of 30" in figure.get_suptitle()) == (count == 30)
    assert axis.get_yticklabels()[0].get_text() == "class 0"
