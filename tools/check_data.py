"""Check a data set before training on it: decode every video, compare annotations with files, suggest a window.

    python tools/check_data.py --annotations FILE --videos FOLDER [--out FOLDER] [--recipe NAME]

OUT gets report.txt (all that is found), settings.txt (what to paste behind train.py), settings_small.txt (likewise, for a
small machine), excluded.txt (videos that training has to leave out, if any), distributions.png, and check_cache.json, by
which a second run decodes new and changed files only. Exit code: 0 all good, 1 problems found, 2 nothing to check.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing

import numpy as np

from adatad_ds.config import Config, ConfigError
from adatad_ds.data.annotations import DataError, Video, listed, load_annotations, subset_names
from adatad_ds.data.scan import Cache, Scan, scan_all
from adatad_ds.data.survey import (
    Lengths,
    Suggestion,
    choose_subsets,
    count_classes,
    disagreements,
    file_faults,
    fit,
    frame_rate,
    measure,
    section,
    suggest,
    uneven_rate,
)
from adatad_ds.data.video_files import present_videos
from adatad_ds.data.video_names import EXTENSIONS, read_names
from adatad_ds.evaluation.distributions import SubsetShape, draw_distributions
from adatad_ds.recipes import find_recipe
from tools.training_advice import (
    SMALL_EFFORT,
    SMALL_FRAMES,
    UserData,
    cost,
    small_machine,
    suggest_training,
    this_device,
)

DEFAULT_RECIPE = "thumos14_videomae_s"
EXCLUDED_FILE, SMALL_FILE = "excluded.txt", "settings_small.txt"
SHOWN = 20  # problems of a kind, and classes, on the screen; report.txt has all
QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


@dataclass(frozen=True)
class DataSet:
    """What an annotation file and a folder hold together.

    Attributes:
        videos: annotated ones, by subset.
        classes: all labels.
        scans: of the files that are there, by video name.
        missing: videos without a file.
        mended: lines about annotations that were mended or dropped.
        left_out: lines about videos that --exclude-file leaves out.
    """

    videos: Mapping[str, tuple[Video, ...]]
    classes: tuple[str, ...]
    scans: Mapping[str, Scan]
    missing: tuple[str, ...]
    mended: tuple[str, ...]
    left_out: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Check; what cannot be checked at all ends in one paragraph and exit code 2."""
    arguments = parse_arguments(argv)
    try:
        problems = check(arguments)
    except (ConfigError, DataError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    return 1 if problems else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="the community's JSON; see docs/own_data.md")
    parser.add_argument("--videos", type=Path, required=True, help="folder of VIDEO_NAME.mp4 (or .mkv, ...)")
    parser.add_argument("--out", type=Path, default=Path("runs/check_data"), help="default runs/check_data")
    parser.add_argument("--workers", type=int, default=cores(), help="decoding processes; default: the cores")
    parser.add_argument(
        "--recipe", help=f"also say how the data fit this one, and change it (default: change {DEFAULT_RECIPE})"
    )
    parser.add_argument("--train-subset", help="default: the one whose name begins with train, or the largest")
    parser.add_argument("--test-subset", help="default: another one, first of all val... or test...")
    parser.add_argument("--max-frames", type=int, default=768, help="most frames of a suggested window; default 768")
    parser.add_argument(
        "--exclude-file", default="", help="leave out the videos of this list, as data.exclude_file does"
    )
    return parser.parse_args(argv)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(arguments: argparse.Namespace) -> int:
    """Check, report, and write what is in OUT; the number of problems.

    Raises:
        ConfigError: no such recipe, or one that does not go with the suggestion.
        DataError: no annotations, videos or segments.
        OSError: OUT cannot be written.
    """
    recipe = find_recipe(arguments.recipe or DEFAULT_RECIPE)
    if recipe.config.recognition:
        raise ConfigError(f"--recipe {arguments.recipe} is one of recognition, whose videos have no segments")
    data = read(
        arguments.annotations,
        arguments.videos,
        out=arguments.out,
        workers=max(1, arguments.workers),
        exclude_file=arguments.exclude_file,
    )
    train, test = choose_subsets(
        {name: sum(len(video.actions) for video in videos) for name, videos in data.videos.items()},
        train=arguments.train_subset,
        test=arguments.test_subset,
    )
    rates = {
        video.name: rate
        for videos in data.videos.values()
        for video in videos
        if (rate := frame_rate(video, data.scans.get(video.name))) is not None
    }
    lengths = {subset: measure(videos, rates) for subset, videos in data.videos.items()}
    usual = float(np.median(list(rates.values()))) if rates else 25.0
    longest = max(video.duration_sec * rates.get(video.name, usual) for video in data.videos[train])
    suggestion = suggest(lengths[train], longest_video_frames=longest, max_frames=arguments.max_frames)
    settings = {
        "data.annotations": str(arguments.annotations),
        "data.videos": str(arguments.videos),
        "data.train_subset": train,
        "data.test_subset": test,
    }
    if excluded := exclude(data, arguments.exclude_file):
        settings["data.exclude_file"] = str(arguments.out / EXCLUDED_FILE)
        (arguments.out / EXCLUDED_FILE).write_text("\n".join(excluded) + "\n", encoding="utf-8")
    usable = [video for video in data.videos[train] if video.actions and video.name not in excluded]
    if not usable:
        raise DataError(f"no video of subset {train!r} that has an action can be used; the files are listed above")
    user = UserData(
        videos=len(usable),
        test_frames=[
            video.duration_sec * rates.get(video.name, usual)
            for video in data.videos[test]
            if video.name not in excluded
        ],
        classes=len(data.classes),
    )
    training = suggest_training(recipe, section(recipe.config, settings, suggestion), user)
    device = this_device()
    smaller = suggest(lengths[train], longest_video_frames=longest, max_frames=min(SMALL_FRAMES, arguments.max_frames))
    small = suggest_training(
        recipe,
        section(recipe.config, settings, smaller),
        user,
        more=small_machine(recipe, device=device),
        effort=SMALL_EFFORT,
    )

    problems = find_problems(data, train=train, test=test)
    advice = find_advice(data, train=train, test=test)
    lines = [
        *(describe_fit(f"recipe {arguments.recipe}", lengths[train], recipe.config) if arguments.recipe else ()),
        *describe_fit("suggestion", lengths[train], training.config),
        *(f"  {reason}" for reason in (*suggestion.reasons, *training.length.reasons)),
        *cost(training, user, device=device, cores=cores()),
        *describe_fit(f"for a small machine ({SMALL_FILE})", lengths[train], small.config),
        *cost(small, user, device=device, cores=cores()),
    ]
    step_sec = suggestion.feature_stride_frames / float(np.median(lengths[train].frames / lengths[train].sec))
    draw(arguments.out / "distributions.png", data, lengths, suggestion, step_sec=step_sec, first=(train, test))
    pasted = write_settings(arguments.out / "settings.txt", training.assignments)
    write_settings(arguments.out / SMALL_FILE, small.assignments)
    command = command_line(arguments.recipe or DEFAULT_RECIPE, pasted)
    about = [*describe(data, lengths, train=train, test=test), "", *describe_classes(data, train, limit=None)]
    report = [*about, *lines, "", *list_advice(advice, limit=None), *list_problems(problems, limit=None), "", command]
    (arguments.out / "report.txt").write_text("\n".join(report) + "\n", encoding="utf-8")
    about = [*describe(data, lengths, train=train, test=test), "", *describe_classes(data, train, limit=SHOWN)]
    found = [*list_advice(advice, limit=SHOWN), *list_problems(problems, limit=SHOWN)]
    print("\n".join([*about, *lines, "", *found, "", "to train:", command]))
    print(f"\nin {arguments.out}: report.txt, settings.txt, {SMALL_FILE}, distributions.png")
    return sum(map(len, problems.values()))


def write_settings(path: Path, assignments: Sequence[str]) -> list[str]:
    """Write what `--set` takes, an option a line, quoted for a shell; the lines."""
    lines = [f"--set {shlex.quote(assignment)}" for assignment in assignments]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def exclude(data: DataSet, exclude_file: str) -> list[str]:
    """Names that training has to leave out: those of the user's list, and those without a file that can be read."""
    unreadable = [name for name, result in data.scans.items() if result.error]
    return [*(read_names(exclude_file) if exclude_file else ()), *data.missing, *unreadable]


def read(annotations: Path, folder: Path, *, out: Path, workers: int, exclude_file: str) -> DataSet:
    """Read annotations and decode all annotated videos.

    Raises:
        DataError: no annotations, or no videos.
    """
    videos, mended, left_out, classes = {}, [], [], ()
    for subset in subset_names(annotations) or [""]:
        loaded, notes = load_annotations(annotations, subset=subset, exclude_file=exclude_file)
        videos[subset], classes = loaded.videos, loaded.classes
        if exclude_file:
            left_out.append(notes.pop())  # the last one says so
        mended += [f"{subset}: {note}" for note in notes]
    names = [video.name for members in videos.values() for video in members]
    paths = present_videos(folder, names)
    if not paths:
        raise DataError(f"none of the {len(names)} annotated videos is in {folder} (e.g. {names[0]}{EXTENSIONS[0]})")
    out.mkdir(parents=True, exist_ok=True)
    scans = scan_all(list(paths.values()), workers=workers, cache=Cache(out / "check_cache.json"))
    if all(result.error for result in scans.values()):
        first = next(iter(scans.values())).error
        raise DataError(f"none of the {len(scans)} videos in {folder} can be decoded, e.g. {first}")
    return DataSet(
        videos=videos,
        classes=classes,
        scans={name: scans[path] for name, path in paths.items()},
        missing=tuple(name for name in names if name not in paths),
        mended=tuple(mended),
        left_out=tuple(left_out),
    )


def find_problems(data: DataSet, *, train: str, test: str) -> dict[str, list[str]]:
    """Lines by kind of problem; kinds without any are left out."""
    videos = {video.name: video for members in data.videos.values() for video in members}
    readable = {name: result for name, result in data.scans.items() if result.error is None}
    errors = [result.error for result in data.scans.values() if result.error]
    without = [error for error in errors if "no video stream" in error]
    found = {
        "files missing": list(data.missing),
        "files that cannot be read": [error for error in errors if error not in without],
        "files without a video stream": without,
        "truncated or damaged files": [
            f"{name}: {fault}" for name, result in readable.items() for fault in file_faults(result)
        ],
        "annotations that contradict their file": [
            f"{name}: {text}" for name, result in readable.items() for text in disagreements(videos[name], result)
        ],
        "annotations mended or dropped": list(data.mended),
        "classes without a segment to learn from": absent_classes(data, train),
        "subsets": [f"{train} is the only one with actions: nothing to test on"] if train == test else [],
    }
    return {kind: lines for kind, lines in found.items() if lines}


def find_advice(data: DataSet, *, train: str, test: str) -> dict[str, list[str]]:
    """What is no problem, but worth knowing: lines by kind; kinds without any are left out."""
    uneven = {name: text for name, result in data.scans.items() if (text := uneven_rate(result)) is not None}
    found = {
        "videos left out by --exclude-file": list(data.left_out),
        "files whose frames are read by their own times": [f"{name}: {text}" for name, text in uneven.items()],
        "classes that cannot be measured": absent_classes(data, test) if test != train else [],
    }
    return {kind: lines for kind, lines in found.items() if lines}


def absent_classes(data: DataSet, subset: str) -> list[str]:
    """A line for each class without an instance in a subset."""
    counts = count_classes(data.videos, data.classes)[subset]
    return [f"{label}: no instance in {subset}" for label, count in counts.items() if count == 0]


def list_advice(advice: Mapping[str, Sequence[str]], *, limit: int | None) -> list[str]:
    """All advice, or the first few of each kind."""
    lines = []
    for kind, members in advice.items():
        shown = listed(members, limit=limit or len(members), separator="\n  ")
        lines.append(f"note: {kind} ({len(members)})\n  {shown}")
    return lines


def list_problems(problems: Mapping[str, Sequence[str]], *, limit: int | None) -> list[str]:
    """All problems, or the first few of each kind."""
    if not problems:
        return ["no problems found"]
    lines = []
    for kind, members in problems.items():
        shown = listed(members, limit=limit or len(members), separator="\n  ")
        lines += [f"PROBLEM: {kind} ({len(members)})", f"  {shown}"]
    return lines


def describe(data: DataSet, lengths: Mapping[str, Lengths], *, train: str, test: str) -> list[str]:
    """Subsets and lengths, for reading."""
    lines = []
    for subset, videos in data.videos.items():
        use = " (training)" * (subset == train) + " (test)" * (subset == test)
        hours = sum(video.duration_sec for video in videos) / 3600
        lines.append(f"{subset}{use}: {len(videos)} videos, {hours:.2f} h, {len(lengths[subset].sec)} segments")
        if len(lengths[subset].sec):
            marks = np.quantile(lengths[subset].sec, QUANTILES)
            row = "  ".join(f"{share:.0%} {mark:.2f}" for share, mark in zip(QUANTILES, marks, strict=True))
            lines.append(f"  lengths in seconds, by quantile: {row}")
    return lines


def describe_classes(data: DataSet, train: str, *, limit: int | None) -> list[str]:
    """Instances of the classes that training has most of, or of all."""
    counts = count_classes(data.videos, data.classes)
    width = max(map(len, data.classes), default=0)
    rows = [
        f"{label:<{width}}  " + "  ".join(f"{counts[subset][label]:>6}" for subset in counts)
        for label in sorted(data.classes, key=lambda name: -counts[train][name])
    ]
    return [
        f"{len(data.classes)} classes; instances in {', '.join(counts)}:",
        f"  {listed(rows, limit=limit or len(rows), separator=chr(10) + '  ')}",
    ]


def describe_fit(what: str, lengths: Lengths, config: Config) -> list[str]:
    """How a recipe's window and pyramid fit the training segments."""
    result = fit(lengths, config)
    levels = ", ".join(f"{share:.0%}" for share in result.per_level)
    return [
        "",
        f"{what}, on the training segments:",
        f"  {result.longer:.1%} longer than a window, {result.under_step:.1%} shorter than a feature step, "
        f"{result.outside:.1%} with a half-length outside of all regression ranges",
        f"  by pyramid level, from the finest: {levels}",
    ]


def draw(
    path: Path,
    data: DataSet,
    lengths: Mapping[str, Lengths],
    suggestion: Suggestion,
    *,
    step_sec: float,
    first: Sequence[str],
) -> None:
    """The picture of the data, training and test subset first, with the suggested pyramid."""
    counts = count_classes(data.videos, data.classes)
    shapes = {
        subset: SubsetShape(
            segments_sec=lengths[subset].sec,
            videos_sec=np.array([video.duration_sec for video in data.videos[subset]]),
            classes=counts[subset],
        )
        for subset in dict.fromkeys((*first, *data.videos))
    }
    draw_distributions(
        path,
        subsets=shapes,
        limits_sec=[2 * end * step_sec for _, end in suggestion.regression_range[:-1]],
        window_sec=suggestion.window_size * step_sec,
        title=f"{sum(map(len, data.videos.values()))} videos; dashed: where the suggested pyramid changes level",
    )


def command_line(recipe: str, pasted: Sequence[str]) -> str:
    """What starts a training, to be pasted into a shell."""
    head = f"deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero2.json --recipe {recipe}"
    return " \\\n    ".join([head, *pasted, "--run-dir runs/own_data"])


if __name__ == "__main__":
    sys.exit(main())
