"""The report of one run: a page with its result, curves, errors, videos, settings, costs, and how to run it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from adatad_ds.errors import DataError
from adatad_ds.evaluation.detections_file import DETECTIONS_FILE
from adatad_ds.evaluation.diagnosis.diagnosis import MIN_PRECISION, Diagnosis
from adatad_ds.evaluation.diagnosis.inputs import Source, diagnose_files
from adatad_ds.evaluation.metrics_files import EVALUATED, HEADLINES, epoch_folder
from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.evaluation.run_report import page
from adatad_ds.evaluation.run_report.charts import line_chart
from adatad_ds.evaluation.run_report.facts import Run, read_run
from adatad_ds.evaluation.run_report.videos import (
    Moment,
    Score,
    longest_misses,
    score_videos,
    surest_mistakes,
    write_players,
)

REPORT_FILE = "report.html"
FOLDER = "report"  # in the run's
TIOU = 0.5  # of right detections
MOST_MOMENTS = 8  # mistakes, and misses


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the report shows.

    Attributes:
        folder: output folder.
        annotations: the annotation JSON; None: the run's.
        subset: of these, which the detections are of; None: the run's.
        videos: folder of the videos; None: the run's.
        best: how many of the surest videos, and of the worst.
        copy: copy the videos that are shown.
    """

    folder: Path
    annotations: Path | None = None
    subset: str | None = None
    videos: Path | None = None
    best: int = 4
    copy: bool = False


def write_report(folder: Path, *, wanted: Wanted, report: Callable[[str], None]) -> Path:
    """Write the report of a run's folder.

    Returns:
        The page.

    Raises:
        DataError: it is not a run's folder, or its files are damaged.
    """
    run = read_run(folder)
    parts = [*_head(run), *_curves(run)]
    if not run.settings.get("recognition.train_list"):
        try:
            diagnosis, source = _diagnosed(run, wanted)
        except DataError as error:
            report(f"without the sections on errors and videos: {error}")
            parts += [page.heading("Errors and videos"), page.paragraph(str(error))]
        else:
            parts += _errors(diagnosis, source.notes) + _videos(diagnosis, source, run, wanted, report)
    parts += _costs(run) + _settings(run)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    path = wanted.folder / REPORT_FILE
    page.write_html(path, f"{run.name}: report", parts)
    report(f"open in a browser: {path}")
    return path


def _diagnosed(run: Run, wanted: Wanted) -> tuple[Diagnosis, Source]:
    """The analysis of the run's final evaluation, or else of its best in training.

    Raises:
        DataError: there is none, or its files cannot be used.
    """
    best = run.best_epoch()
    places = [run.folder / EVALUATED]
    places += [] if best is None else [epoch_folder(run.folder, best)]
    detections = next((place / DETECTIONS_FILE for place in places if (place / DETECTIONS_FILE).is_file()), None)
    if detections is None:
        raise DataError(f"there are no detections yet: adatad-ds evaluate {run.folder}")
    annotations = wanted.annotations or Path(str(run.settings.get("data.annotations", "")))
    if not annotations.is_file():
        raise DataError(f"{annotations}, the annotations of the training, does not exist here: add --annotations FILE")
    return diagnose_files(
        detections,
        annotations,
        subset=wanted.subset or str(run.settings.get("data.test_subset", "")),
        tiou=TIOU,
        average_tiou=None,
        min_precision=MIN_PRECISION,
        exclude=run.settings.get("data.exclude") or (),
        exclude_file=str(run.settings.get("data.exclude_file") or ""),
    )


def _head(run: Run) -> list[str]:
    """Name, result, and mAP at each threshold by epoch."""
    name, costs = run.headline(), run.costs()
    words, best = HEADLINES.get(name, "metric"), run.best_epoch()
    numbers = [] if run.evaluated is None else [(f"{page.percent(run.evaluated[name])} %", f"{words}, evaluated")]
    if best is not None:
        numbers.append((f"{page.percent(run.evaluations[best][name])} %", f"{words}, best in training (epoch {best})"))
    if "epochs" in costs:
        numbers.append((f"{costs['epochs']:.4g}", "epochs"))
        numbers.append((page.duration(costs["sec_per_epoch"]), "per epoch"))
    if "memory_gb" in costs:
        numbers.append((f"{costs['memory_gb']:.3g} GB", "peak memory of a rank"))
    rows = [(f"epoch {epoch}{' (best)' if epoch == best else ''}", run.evaluations[epoch]) for epoch in run.evaluations]
    rows += [] if run.evaluated is None else [("adatad-ds evaluate", run.evaluated)]
    keys = list(dict.fromkeys(key for _, metrics in rows for key in metrics))
    cells = [[escape(of), *(page.percent(metrics.get(key)) for key in keys)] for of, metrics in rows]
    started = (
        f"{run.folder.resolve()}; recipe {run.recipe() or 'unknown'}, backbone {run.settings.get('backbone.name')}"
    )
    if (run.folder / "interrupted").exists():
        started += "; it was interrupted, and can be resumed"
    return [
        page.heading(run.name, 1),
        page.paragraph(started, grey=True),
        page.figures(numbers),
        page.paragraph("" if rows else "It was not evaluated yet."),
        page.heading("Metrics (%)") if rows else "",
        page.table(["", *(key.replace("_", " ") for key in keys)], cells),
    ]


def _curves(run: Run) -> list[str]:
    losses = {key.removeprefix("loss/"): run.curve(key) for key in _logged(run, "loss/") if key != "loss/normalizer"}
    rates = {key.removeprefix("lr/"): run.curve(key) for key in _logged(run, "lr/")}
    keys = [key for key in next(iter(run.evaluations.values()), {}) if key.startswith(("mAP@", "average_mAP", "top"))]
    metrics = {key.replace("_", " "): run.metric_curve(key) for key in keys if len(run.evaluations) > 1}
    memory = {key.removeprefix("memory/").removesuffix("_gb"): run.curve(key) for key in _logged(run, "memory/")}
    step_sec = {"step": run.curve("time/step_sec"), "waiting for data": run.curve("time/data_wait_sec")}
    drawn = [
        line_chart("Losses", losses, along="step"),
        line_chart("Metrics in training", metrics, along="epoch", unit="%", scale=100),
        line_chart("Learning rates", rates, along="step"),
        line_chart("Gradient norm", {"norm": run.curve("train/gradient_norm")}, along="step", log=True),
        line_chart("Time of a step", step_sec, along="step", unit="s"),
        line_chart("Peak memory of a rank", memory, along="step", unit="GB"),
    ]
    return [page.heading("Curves"), page.charts(drawn)] if any(drawn) else []


def _logged(run: Run, start: str) -> list[str]:
    return list(dict.fromkeys(key for line in run.log for key in line if key.startswith(start)))


def _errors(diagnosis: Diagnosis, notes: Sequence[str]) -> list[str]:
    rows = [
        [escape(gain.name), f"{gain.detections:,}", f"{100 * float(gain.fixed.mean()):+.2f}"]
        for gain in sorted(diagnosis.gains, key=lambda gain: -float(gain.fixed.mean()))
    ]
    counts = diagnosis.class_missed()
    measured = list(zip(diagnosis.metrics.per_class(), counts.tolist(), strict=True))
    measured.sort(key=lambda row: -float(row[0]["average_AP"]))
    classes = [
        [escape(str(of["class"])), f"{of['ground_truth']}", page.percent(float(of["average_AP"])), f"{missed}"]
        for of, missed in measured
    ]
    return [
        page.heading("Errors"),
        page.paragraph(
            f"Average mAP would rise by so many points if all errors of a kind were fixed (at tIoU {TIOU:g}; what the "
            "kinds are: docs/guides/errors.md; more: adatad-ds diagnose)."
        ),
        page.bullets(notes),
        page.table(["kind", "count", "mAP gained"], rows),
        page.heading("Classes", 3),
        page.table(["class", "segments", "average AP %", "missed"], classes),
    ]


def _videos(diagnosis: Diagnosis, source: Source, run: Run, wanted: Wanted, report: Callable[[str], None]) -> list[str]:
    members, shown = source.videos, ShownFrom.choose(None, diagnosis.metrics.operating_point)
    scores = score_videos(diagnosis, members, least=shown.score)
    surest = scores[: min(wanted.best, -(-len(scores) // 2))]
    worst = scores[len(surest) :][::-1][: wanted.best]
    mistakes = surest_mistakes(diagnosis, members, most=MOST_MOMENTS)
    misses = longest_misses(diagnosis, members, most=MOST_MOMENTS)
    addresses, notes = write_players(
        wanted.folder,
        [*(score.name for score in (*surest, *worst)), *(moment.video for moment in (*mistakes, *misses))],
        videos={video.name: video for video in members},
        results=source.results,
        files=wanted.videos or Path(str(run.settings.get("data.videos", ""))),
        shown=shown,
        copy=wanted.copy,
        back=REPORT_FILE,
    )
    for note in notes:
        report(f"without a player: {note}")
    return [
        page.heading("Videos"),
        page.paragraph(
            f"Detections of score {shown.score:.2g} or more ({shown.reason}), right at tIoU {TIOU:g}. "
            "The players show detections and annotations."
        ),
        page.bullets([f"without a player: {note}" for note in notes]),
        page.heading("The best", 3),
        _score_table(surest, addresses),
        page.heading("The worst", 3) if worst else "",
        _score_table(worst, addresses),
        page.heading("The most confident mistakes", 3) if mistakes else "",
        _moment_table(mistakes, addresses),
        page.heading("The longest missed segments", 3) if misses else "",
        _moment_table(misses, addresses),
    ]


def _score_table(scores: Sequence[Score], addresses: Mapping[str, str]) -> str:
    rows = [
        [
            page.link(score.name, addresses.get(score.name, "")),
            f"{100 * score.f1:.0f}",
            str(score.right),
            str(score.wrong),
            str(score.missed),
            f"{score.sureness:.2f}" if score.right else "-",
        ]
        for score in scores
    ]
    return page.table(["video", "F1 %", "right", "wrong", "missed", "mean score of the right"], rows)


def _moment_table(moments: Sequence[Moment], addresses: Mapping[str, str]) -> str:
    rows = []
    for moment in moments:
        address = addresses.get(moment.video, "")
        rows.append(
            [
                page.link(moment.video, address and f"{address}#t={moment.start_sec:.2f}"),
                page.clock(moment.start_sec),
                page.clock(moment.end_sec),
                escape(moment.label),
                escape(moment.what),
                "" if moment.score is None else f"{moment.score:.2f}",
            ]
        )
    return page.table(["video", "start", "end", "class", "what", "score"], rows, texts=(3, 4))


def _costs(run: Run) -> list[str]:
    costs = run.costs()
    if not costs:
        return []
    versions = run.versions
    ranks = (versions.get("environment") or {}).get("WORLD_SIZE", "1")
    gpu = versions.get("gpu") or {}
    rows = [
        ("ranks", f"{ranks}{', each on ' + str(gpu['name']) if gpu.get('name') else ''}"),
        ("steps", f"{costs['steps']:,.0f}"),
        ("a step (median)", page.duration(costs["sec_per_step"])),
    ]
    if "sec_per_epoch" in costs:
        every = f"{page.duration(costs['sec_per_epoch'])} ({costs['steps_per_epoch']:.0f} steps)"
        rows += [("epoch", every), ("all steps", page.duration(costs["sec_per_step"] * costs["steps"]))]
        rows.append(("epoch, all ranks together", page.duration(costs["sec_per_epoch"] * int(ranks))))
    if "waiting" in costs:
        rows.append(("of a step, waiting for data", f"{100 * costs['waiting']:.0f} %"))
    if "frames_per_sec" in costs:
        rows.append(("frames per second, all ranks", f"{costs['frames_per_sec']:,.0f}"))
    if "checkpoint_sec" in costs:
        rows.append(("a checkpoint", page.duration(costs["checkpoint_sec"])))
    if "memory_gb" in costs:
        rows.append(("peak memory of a rank", f"{costs['memory_gb']:.3g} GB"))
    return [
        page.heading("Time and memory"),
        page.paragraph("Of the logged steps; evaluations and start-up are not in them.", grey=True),
        page.table(["", ""], [[escape(name), escape(value)] for name, value in rows]),
    ]


def _settings(run: Run) -> list[str]:
    revision, changes = run.versions.get("git"), run.versions.get("git_changes")
    packages = ", ".join(f"{name} {version}" for name, version in (run.versions.get("packages") or {}).items())
    every = [[escape(key), escape(json.dumps(value))] for key, value in run.settings.items()]
    changed = [list(map(escape, pair)) for pair in run.changed_settings()]
    state = f"git revision {revision}{', with changes of its own' if changes else ''}; " if revision else ""
    return [
        page.heading("Settings"),
        page.table(["changed from the recipe", "value"], changed, texts=(1,)),
        page.folded("all settings", page.table(["setting", "value"], every, texts=(1,))),
        page.heading("To run it again"),
        page.code(run.command()),
        page.paragraph(f"{state}Python {run.versions.get('python', '?')}; {packages}", grey=True),
    ]
