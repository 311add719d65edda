"""Check a data set before training on it: decode every video, compare annotations with files, suggest a window.

    python tools/check_data.py --annotations FILE --videos FOLDER [--out FOLDER] [--recipe NAME]

OUT gets report.txt (all that is found), settings.txt (what to paste behind train.py), distributions.png, and
check_cache.json, by which a second run decodes new and changed files only. Exit code: 0 all good, 1 problems found,
2 nothing to check.
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

from adatad_ds.config import Config, ConfigError, override
from adatad_ds.data.annotations import DataError, Video, listed, load_annotations, subset_names
from adatad_ds.data.scan import Cache, Scan, scan_all
from adatad_ds.data.survey import (
    Lengths,
    Suggestion,
    choose_subsets,
    count_classes,
    disagreements,
    fit,
    frame_rate,
    measure,
    section,
    suggest,
    uneven_rate,
)
from adatad_ds.data.video import EXTENSIONS
from adatad_ds.data.video_files import find_videos
from adatad_ds.evaluation.distributions import SubsetShape, draw_distributions
from adatad_ds.recipes import find_recipe

DEFAULT_RECIPE = "thumos14_videomae_s"
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
    """

    videos: Mapping[str, tuple[Video, ...]]
    classes: tuple[str, ...]
    scans: Mapping[str, Scan]
    missing: tuple[str, ...]
    mended: tuple[str, ...]


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
    recipe = find_recipe(arguments.recipe or DEFAULT_RECIPE).config
    data = read(arguments.annotations, arguments.videos, out=arguments.out, workers=max(1, arguments.workers))
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
    assignments = section(recipe, settings, suggestion, exclude=unusable(data))
    suggested = override(recipe, assignments)

    problems = find_problems(data, train=train, test=test)
    lines = [
        *(describe_fit(f"recipe {arguments.recipe}", lengths[train], recipe) if arguments.recipe else ()),
        *describe_fit("suggestion", lengths[train], suggested),
        *(f"  {reason}" for reason in suggestion.reasons),
    ]
    step_sec = suggestion.feature_stride_frames / float(np.median(lengths[train].frames / lengths[train].sec))
    draw(arguments.out / "distributions.png", data, lengths, suggestion, step_sec=step_sec, first=(train, test))
    pasted = [f"--set {shlex.quote(assignment)}" for assignment in assignments]
    (arguments.out / "settings.txt").write_text("\n".join(pasted) + "\n", encoding="utf-8")
    command = command_line(arguments.recipe or DEFAULT_RECIPE, pasted)
    about = [*describe(data, lengths, train=train, test=test), "", *describe_classes(data, train, limit=None)]
    report = [*about, *lines, "", *list_uneven(data, limit=None), *list_problems(problems, limit=None), "", command]
    (arguments.out / "report.txt").write_text("\n".join(report) + "\n", encoding="utf-8")
    about = [*describe(data, lengths, train=train, test=test), "", *describe_classes(data, train, limit=SHOWN)]
    found = [*list_uneven(data, limit=SHOWN), *list_problems(problems, limit=SHOWN)]
    print("\n".join([*about, *lines, "", *found, "", "to train:", command]))
    print(f"\nin {arguments.out}: report.txt, settings.txt, distributions.png")
    return sum(map(len, problems.values()))


def read(annotations: Path, folder: Path, *, out: Path, workers: int) -> DataSet:
    """Read annotations and decode all annotated videos.

    Raises:
        DataError: no annotations, or no videos.
    """
    videos, mended, classes = {}, [], ()
    for subset in subset_names(annotations) or [""]:
        loaded, notes = load_annotations(annotations, subset=subset)
        videos[subset], classes = loaded.videos, loaded.classes
        mended += [f"{subset}: {note}" for note in notes]
    names = [video.name for members in videos.values() for video in members]
    find_videos(folder, [])  # the folder itself
    stems = {path.stem for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS}
    present = [name for name in names if name in stems or f"v_{name}" in stems]
    if not present:
        raise DataError(f"none of the {len(names)} annotated videos is in {folder} (e.g. {names[0]}{EXTENSIONS[0]})")
    paths = find_videos(folder, present)
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
    )


def unusable(data: DataSet) -> list[str]:
    """Videos that training has to leave out."""
    return [*data.missing, *(name for name, result in data.scans.items() if result.error)]


def find_problems(data: DataSet, *, train: str, test: str) -> dict[str, list[str]]:
    """Lines by kind of problem; kinds without any are left out."""
    videos = {video.name: video for members in data.videos.values() for video in members}
    readable = {name: result for name, result in data.scans.items() if result.error is None}
    errors = [result.error for result in data.scans.values() if result.error]
    without = [error for error in errors if "no video stream" in error]
    counts = count_classes(data.videos, data.classes)
    absent = [
        f"{label}: no instance in {subset}"
        for subset in dict.fromkeys((train, test))
        for label, count in counts[subset].items()
        if count == 0
    ]
    found = {
        "files missing": list(data.missing),
        "files that cannot be read": [error for error in errors if error not in without],
        "files without a video stream": without,
        "truncated or damaged files": [
            f"{name}: {fault}" for name, result in readable.items() for fault in result.faults
        ],
        "annotations that contradict their file": [
            f"{name}: {text}" for name, result in readable.items() for text in disagreements(videos[name], result)
        ],
        "annotations mended or dropped": list(data.mended),
        "classes absent from a subset": absent,
        "subsets": [f"{train} is the only one with actions: nothing to test on"] if train == test else [],
    }
    return {kind: lines for kind, lines in found.items() if lines}


def list_uneven(data: DataSet, *, limit: int | None) -> list[str]:
    """Files of variable frame rate: no problem, but worth knowing."""
    found = [f"{name}: {text}" for name, result in data.scans.items() if (text := uneven_rate(result)) is not None]
    if not found:
        return []
    shown = listed(found, limit=limit or len(found), separator="\n  ")
    return [f"note: {len(found)} files whose frames are read by their own times\n  {shown}"]


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
