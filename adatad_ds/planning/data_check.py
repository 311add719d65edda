"""Check a data set before training on it: its faults, a window that fits it, length and cost of a training."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adatad_ds.data.decoding.prepared import manifest_of
from adatad_ds.data.decoding.video import ASSUMED_FPS
from adatad_ds.data.inspection.data_set import EXCLUDED_FILE, DataSet, exclude, frame_rates, read_data_set
from adatad_ds.data.inspection.report import (
    describe,
    describe_classes,
    describe_fit,
    find_advice,
    find_problems,
    list_advice,
    list_problems,
)
from adatad_ds.data.inspection.survey import (
    Lengths,
    Suggestion,
    choose_subsets,
    count_classes,
    frames_of,
    measure,
    section,
    suggest,
)
from adatad_ds.errors import ConfigError, DataError
from adatad_ds.evaluation.plots.attempt import try_to_draw
from adatad_ds.evaluation.plots.distributions import SubsetShape, draw_distributions
from adatad_ds.planning.reading import reading_advice
from adatad_ds.planning.training_advice import (
    SMALL_EFFORT,
    SMALL_FRAMES,
    Training,
    UserData,
    cost,
    small_machine,
    suggest_training,
    this_device,
)
from adatad_ds.recipes.catalog import Recipe, find_recipe
from adatad_ds.system.launch import cores

DEFAULT_RECIPE = "thumos14_videomae_s"
SMALL_FILE = "settings_small.txt"
SHOWN = 20  # problems of a kind, and classes, on the screen; report.txt has all


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A data set that was read, and what a training on it depends on.

    Attributes:
        data: annotations, and the results of decoding.
        train: name of the training subset.
        test: name of the test subset.
        settings: values of `data.*` that locate the data, by key.
        rates: frames a second, by video name.
        lengths: lengths of the actions, by subset.
        user: what the length and the cost of a training depend on.
    """

    data: DataSet
    train: str
    test: str
    settings: Mapping[str, str]
    rates: Mapping[str, float]
    lengths: Mapping[str, Lengths]
    user: UserData


def check_data(
    annotations: Path,
    videos: Path,
    *,
    out: Path,
    recipe_name: str | None,
    workers: int | None,
    train_subset: str | None,
    test_subset: str | None,
    max_frames: int,
    exclude_file: str,
    report: Callable[[str], None],
) -> int:
    """Check a data set, report on it, and write report, settings and a picture into OUT.

    Args:
        annotations: the annotation JSON.
        videos: folder of the videos.
        out: folder of report.txt, settings.txt, settings_small.txt, excluded.txt, distributions.png, check_cache.json.
        recipe_name: also describe how the data fit this recipe, and adapt it; None: adapt the default recipe.
        workers: decoding processes; None: one per core.
        train_subset: None: the one whose name begins with train, or the largest.
        test_subset: None: another one, preferably val... or test...
        max_frames: most frames of a suggested window.
        exclude_file: list of videos to leave out; "": none.
        report: called with text for the screen.

    Returns:
        The number of problems.

    Raises:
        ConfigError: no such recipe, or one that does not go with the suggestion.
        DataError: no annotations, videos or segments.
        OSError: OUT cannot be written.
    """
    recipe = find_recipe(recipe_name or DEFAULT_RECIPE)
    if recipe.config.recognition:
        raise ConfigError(f"--recipe {recipe_name} is for recognition, whose videos have no segments")
    checked = _read(
        annotations,
        videos,
        out=out,
        workers=workers or cores(),
        train_subset=train_subset,
        test_subset=test_subset,
        exclude_file=exclude_file,
    )
    device = this_device()
    window, training = _suggest(checked, recipe, max_frames=max_frames)
    _, small = _suggest(
        checked,
        recipe,
        max_frames=min(SMALL_FRAMES, max_frames),
        more=small_machine(recipe, device=device),
        effort=SMALL_EFFORT,
    )
    suggestions = [
        *(describe_fit(f"recipe {recipe_name}", checked.lengths[checked.train], recipe.config) if recipe_name else ()),
        *_describe_suggestions(checked, window, training, small, device=device),
    ]
    pasted = write_settings(out / "settings.txt", training.assignments)
    write_settings(out / SMALL_FILE, small.assignments)
    problems = find_problems(checked.data, train=checked.train, test=checked.test)
    command = command_line(recipe_name or DEFAULT_RECIPE, pasted)
    full, shown = (_text(checked, suggestions, problems, command, limit=limit) for limit in (None, SHOWN))
    (out / "report.txt").write_text(full + "\n", encoding="utf-8", errors="backslashreplace")
    report(shown)
    picture = out / "distributions.png"
    try_to_draw(str(picture), lambda: draw(picture, checked, window), report=report)
    report(f"\nin {out}: report.txt, settings.txt, {SMALL_FILE}, distributions.png")
    return sum(map(len, problems.values()))


def _read(
    annotations: Path,
    videos: Path,
    *,
    out: Path,
    workers: int,
    train_subset: str | None,
    test_subset: str | None,
    exclude_file: str,
) -> Checked:
    """Read and decode a data set, choose its subsets, and list what training has to leave out."""
    data = read_data_set(annotations, videos, out=out, workers=workers, exclude_file=exclude_file)
    actions = {name: sum(len(video.actions) for video in members) for name, members in data.videos.items()}
    train, test = choose_subsets(actions, train=train_subset, test=test_subset)
    excluded = exclude(data, exclude_file, out=out)
    settings = {
        "data.annotations": str(annotations),
        "data.videos": str(videos),
        "data.train_subset": train,
        "data.test_subset": test,
    } | ({"data.exclude_file": str(out / EXCLUDED_FILE)} if excluded else {})
    rates = frame_rates(data)
    return Checked(
        data=data,
        train=train,
        test=test,
        settings=settings,
        rates=rates,
        lengths={subset: measure(members, rates) for subset, members in data.videos.items()},
        user=user_data(data, rates, train=train, test=test, excluded=excluded),
    )


def _suggest(
    checked: Checked, recipe: Recipe, *, max_frames: int, more: Sequence[str] = (), effort: float = 1.0
) -> tuple[Suggestion, Training]:
    """A window of at most `max_frames` frames that fits the data, and a training with it."""
    longest = max(frames_of(checked.data.videos[checked.train], checked.rates))
    window = suggest(checked.lengths[checked.train], longest_video_frames=longest, max_frames=max_frames)
    assignments = section(recipe.config, checked.settings, window)
    return window, suggest_training(recipe, assignments, checked.user, more=more, effort=effort)


def _describe_suggestions(
    checked: Checked, window: Suggestion, training: Training, small: Training, *, device: torch.device
) -> list[str]:
    """How the data fit the suggested trainings, the reasons, and the cost."""
    lengths = checked.lengths[checked.train]
    return [
        *describe_fit("suggestion", lengths, training.config),
        *(f"  {reason}" for reason in (*window.reasons, *training.length.reasons)),
        *cost(training, checked.user, device=device, cores=cores()),
        *_reading(checked, training),
        *describe_fit(f"for a small machine ({SMALL_FILE})", lengths, small.config),
        *cost(small, checked.user, device=device, cores=cores()),
    ]


def _reading(checked: Checked, training: Training) -> list[str]:
    """Whether it pays to prepare the videos; nothing where they are."""
    if manifest_of(Path(checked.settings["data.videos"])) is not None:
        return []
    videos = checked.data.videos[checked.train]
    return reading_advice(
        training.config,
        train_frames=frames_of([video for video in videos if video.actions], checked.rates),
        test_frames=checked.user.test_frames,
        fps=float(np.median(list(checked.rates.values()))) if checked.rates else ASSUMED_FPS,
        evaluations=training.length.evaluations,
    )


def _text(
    checked: Checked,
    suggestions: Sequence[str],
    problems: Mapping[str, Sequence[str]],
    command: str,
    *,
    limit: int | None,
) -> str:
    """The report; `limit`: most problems of a kind, and classes."""
    data, train, test = checked.data, checked.train, checked.test
    return "\n".join(
        [
            *describe(data.videos, checked.lengths, train=train, test=test),
            "",
            *describe_classes(data.videos, data.classes, train, limit=limit),
            *suggestions,
            "",
            *list_advice(find_advice(data, train=train, test=test), limit=limit),
            *list_problems(problems, limit=limit),
            "",
            "to train:",
            command,
        ]
    )


def user_data(
    data: DataSet, rates: Mapping[str, float], *, train: str, test: str, excluded: Collection[str]
) -> UserData:
    """What the length and the cost of a training depend on.

    Raises:
        DataError: no training video is left.
    """
    usable = [video for video in data.videos[train] if video.actions and video.name not in excluded]
    if not usable:
        errors = [result.error for result in data.scans.values() if result.error]
        raise DataError(
            f"no video of subset {train!r} that has an action has a file that can be read"
            + (f", e.g. {errors[0]}" if errors else "")
        )
    tested = [video for video in data.videos[test] if video.name not in excluded]
    return UserData(videos=len(usable), test_frames=frames_of(tested, rates), classes=len(data.classes))


def write_settings(path: Path, assignments: Sequence[str]) -> list[str]:
    """Write `--set` options, one per line, quoted for a shell, and return the lines."""
    lines = [f"--set {shlex.quote(assignment)}" for assignment in assignments]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def draw(path: Path, checked: Checked, suggestion: Suggestion) -> None:
    """The picture of the data, training and test subset first, with the suggested pyramid."""
    videos, train = checked.data.videos, checked.lengths[checked.train]
    step_sec = suggestion.feature_stride_frames / float(np.median(train.frames / train.sec))
    counts = count_classes(videos, checked.data.classes)
    shapes = {
        subset: SubsetShape(
            segments_sec=checked.lengths[subset].sec,
            videos_sec=np.array([video.duration_sec for video in videos[subset]]),
            classes=counts[subset],
        )
        for subset in dict.fromkeys((checked.train, checked.test, *videos))
    }
    draw_distributions(
        path,
        subsets=shapes,
        limits_sec=[2 * end * step_sec for _, end in suggestion.regression_range[:-1]],
        window_sec=suggestion.window_size * step_sec,
        title=f"{sum(map(len, videos.values()))} videos; dashed: where the suggested pyramid changes level",
    )


def command_line(recipe: str, pasted: Sequence[str]) -> str:
    """The command that starts a training, to be pasted into a shell."""
    head = f"deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero2.json --recipe {recipe}"
    return " \\\n    ".join([head, *pasted, "--run-dir runs/own_data"])
