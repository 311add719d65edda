"""Check a data set before training on it: its faults, a window that fits it, how long to train and what that takes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from adatad_ds.data.inspection.data_set import EXCLUDED_FILE, DataSet, exclude, frame_rates, read_data_set
from adatad_ds.data.inspection.report import (
    Videos,
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
from adatad_ds.planning.training_advice import (
    SMALL_EFFORT,
    SMALL_FRAMES,
    UserData,
    cost,
    small_machine,
    suggest_training,
    this_device,
)
from adatad_ds.recipes.catalog import find_recipe

DEFAULT_RECIPE = "thumos14_videomae_s"
SMALL_FILE = "settings_small.txt"
SHOWN = 20  # problems of a kind, and classes, on the screen; report.txt has all


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
    """Check, report, and write what is in OUT.

    Args:
        annotations: the annotation JSON.
        videos: folder of the videos.
        out: folder of report.txt, settings.txt, settings_small.txt, excluded.txt, distributions.png, check_cache.json.
        recipe_name: also say how the data fit this one, and change it; None: change the default one.
        workers: decoding processes; None: the cores.
        train_subset: None: the one whose name begins with train, or the largest.
        test_subset: None: another one, first of all val... or test...
        max_frames: most frames of a suggested window.
        exclude_file: list of videos to leave out; "": none.
        report: is given what is for the screen.

    Returns:
        The number of problems.

    Raises:
        ConfigError: no such recipe, or one that does not go with the suggestion.
        DataError: no annotations, videos or segments.
        OSError: OUT cannot be written.
    """
    recipe = find_recipe(recipe_name or DEFAULT_RECIPE)
    if recipe.config.recognition:
        raise ConfigError(f"--recipe {recipe_name} is one of recognition, whose videos have no segments")
    data = read_data_set(
        annotations, videos, out=out, workers=cores() if workers is None else max(1, workers), exclude_file=exclude_file
    )
    train, test = choose_subsets(
        {name: sum(len(video.actions) for video in members) for name, members in data.videos.items()},
        train=train_subset,
        test=test_subset,
    )
    excluded = exclude(data, exclude_file, out=out)
    settings = {
        "data.annotations": str(annotations),
        "data.videos": str(videos),
        "data.train_subset": train,
        "data.test_subset": test,
    } | ({"data.exclude_file": str(out / EXCLUDED_FILE)} if excluded else {})
    rates = frame_rates(data)
    lengths = {subset: measure(members, rates) for subset, members in data.videos.items()}
    user = user_data(data, rates, train=train, test=test, excluded=excluded)
    longest = max(frames_of(data.videos[train], rates))
    window = suggest(lengths[train], longest_video_frames=longest, max_frames=max_frames)
    training = suggest_training(recipe, section(recipe.config, settings, window), user)
    device = this_device()
    small_window = suggest(lengths[train], longest_video_frames=longest, max_frames=min(SMALL_FRAMES, max_frames))
    small = suggest_training(
        recipe,
        section(recipe.config, settings, small_window),
        user,
        more=small_machine(recipe, device=device),
        effort=SMALL_EFFORT,
    )
    lines = [
        *(describe_fit(f"recipe {recipe_name}", lengths[train], recipe.config) if recipe_name else ()),
        *describe_fit("suggestion", lengths[train], training.config),
        *(f"  {reason}" for reason in (*window.reasons, *training.length.reasons)),
        *cost(training, user, device=device, cores=cores()),
        *describe_fit(f"for a small machine ({SMALL_FILE})", lengths[train], small.config),
        *cost(small, user, device=device, cores=cores()),
    ]
    pasted = write_settings(out / "settings.txt", training.assignments)
    write_settings(out / SMALL_FILE, small.assignments)
    problems = find_problems(data, train=train, test=test)

    def text(limit: int | None) -> list[str]:
        return [
            *describe(data.videos, lengths, train=train, test=test),
            "",
            *describe_classes(data.videos, data.classes, train, limit=limit),
            *lines,
            "",
            *list_advice(find_advice(data, train=train, test=test), limit=limit),
            *list_problems(problems, limit=limit),
            "",
            "to train:",
            command_line(recipe_name or DEFAULT_RECIPE, pasted),
        ]

    (out / "report.txt").write_text("\n".join(text(None)) + "\n", encoding="utf-8")
    report("\n".join(text(SHOWN)))
    picture = out / "distributions.png"
    try_to_draw(
        str(picture),
        lambda: draw(picture, data.videos, data.classes, lengths, window, first=(train, test)),
        report=report,
    )
    report(f"\nin {out}: report.txt, settings.txt, {SMALL_FILE}, distributions.png")
    return sum(map(len, problems.values()))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """Write what `--set` takes, an option a line, quoted for a shell; the lines."""
    lines = [f"--set {shlex.quote(assignment)}" for assignment in assignments]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def draw(
    path: Path,
    videos: Videos,
    classes: Sequence[str],
    lengths: Mapping[str, Lengths],
    suggestion: Suggestion,
    *,
    first: tuple[str, str],
) -> None:
    """The picture of the data, training and test subset first, with the suggested pyramid."""
    train = lengths[first[0]]
    step_sec = suggestion.feature_stride_frames / float(np.median(train.frames / train.sec))
    counts = count_classes(videos, classes)
    shapes = {
        subset: SubsetShape(
            segments_sec=lengths[subset].sec,
            videos_sec=np.array([video.duration_sec for video in videos[subset]]),
            classes=counts[subset],
        )
        for subset in dict.fromkeys((*first, *videos))
    }
    draw_distributions(
        path,
        subsets=shapes,
        limits_sec=[2 * end * step_sec for _, end in suggestion.regression_range[:-1]],
        window_sec=suggestion.window_size * step_sec,
        title=f"{sum(map(len, videos.values()))} videos; dashed: where the suggested pyramid changes level",
    )


def command_line(recipe: str, pasted: Sequence[str]) -> str:
    """What starts a training, to be pasted into a shell."""
    head = f"deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero2.json --recipe {recipe}"
    return " \\\n    ".join([head, *pasted, "--run-dir runs/own_data"])
