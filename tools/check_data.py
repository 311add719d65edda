"""Check a data set before training on it: decode every video, compare annotations with files, suggest a window.

    python tools/check_data.py --annotations FILE --videos FOLDER [--out FOLDER] [--recipe NAME]

OUT gets report.txt (all that is found), settings.txt (what to paste behind train.py), settings_small.txt (the same for
a small machine), excluded.txt (videos that training has to leave out, if any), distributions.png, and check_cache.json,
by which a second run decodes new and changed files only. Exit code: 0 all good, 1 problems found, 2 nothing to check.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone, without installing


from adatad_ds.data.annotations import Video, load_annotations, subset_names
from adatad_ds.data.inspection.scan import Cache, Scan, scan_all
from adatad_ds.data.inspection.survey import (
    choose_subsets,
    count_classes,
    disagreements,
    frame_rate,
    frames_of,
    measure,
    section,
    suggest,
    uneven_rate,
)
from adatad_ds.data.video_files import present_videos
from adatad_ds.data.video_names import EXTENSIONS, read_names
from adatad_ds.errors import ConfigError, DataError, UserError, summarize_list
from adatad_ds.evaluation.plots.figures import try_to_draw
from adatad_ds.recipes.catalog import find_recipe
from adatad_ds.system.utf8 import use_utf8
from tools.data_report import describe, describe_classes, describe_fit, draw
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
    except (UserError, OSError) as error:
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
    out = arguments.out
    data = read(
        arguments.annotations,
        arguments.videos,
        out=out,
        workers=max(1, arguments.workers),
        exclude_file=arguments.exclude_file,
    )
    train, test = choose_subsets(
        {name: sum(len(video.actions) for video in videos) for name, videos in data.videos.items()},
        train=arguments.train_subset,
        test=arguments.test_subset,
    )
    excluded = exclude(data, arguments.exclude_file, out=out)
    settings = {
        "data.annotations": str(arguments.annotations),
        "data.videos": str(arguments.videos),
        "data.train_subset": train,
        "data.test_subset": test,
    } | ({"data.exclude_file": str(out / EXCLUDED_FILE)} if excluded else {})
    rates = frame_rates(data)
    lengths = {subset: measure(videos, rates) for subset, videos in data.videos.items()}
    user = user_data(data, rates, train=train, test=test, excluded=excluded)
    longest = max(frames_of(data.videos[train], rates))
    window = suggest(lengths[train], longest_video_frames=longest, max_frames=arguments.max_frames)
    training = suggest_training(recipe, section(recipe.config, settings, window), user)
    device = this_device()
    small_window = suggest(
        lengths[train], longest_video_frames=longest, max_frames=min(SMALL_FRAMES, arguments.max_frames)
    )
    small = suggest_training(
        recipe,
        section(recipe.config, settings, small_window),
        user,
        more=small_machine(recipe, device=device),
        effort=SMALL_EFFORT,
    )
    lines = [
        *(describe_fit(f"recipe {arguments.recipe}", lengths[train], recipe.config) if arguments.recipe else ()),
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
            command_line(arguments.recipe or DEFAULT_RECIPE, pasted),
        ]

    (out / "report.txt").write_text("\n".join(text(None)) + "\n", encoding="utf-8")
    print("\n".join(text(SHOWN)))
    picture = out / "distributions.png"
    try_to_draw(
        str(picture),
        lambda: draw(picture, data.videos, data.classes, lengths, window, first=(train, test)),
        report=print,
    )
    print(f"\nin {out}: report.txt, settings.txt, {SMALL_FILE}, distributions.png")
    return sum(map(len, problems.values()))


def frame_rates(data: DataSet) -> dict[str, float]:
    """Frames a second by name, of the videos for which something tells."""
    videos = [video for members in data.videos.values() for video in members]
    known = {video.name: frame_rate(video, data.scans.get(video.name)) for video in videos}
    return {name: rate for name, rate in known.items() if rate is not None}


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


def exclude(data: DataSet, exclude_file: str, *, out: Path) -> list[str]:
    """Names that training has to leave out, and a list of them in OUT: the user's, and those of no readable file."""
    unreadable = [name for name, result in data.scans.items() if result.error]
    names = [*(read_names(exclude_file) if exclude_file else ()), *data.missing, *unreadable]
    path = out / EXCLUDED_FILE
    path.unlink(missing_ok=True)  # no list that is out of date
    if names:
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return names


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
            f"{name}: {fault}" for name, result in readable.items() for fault in result.faults
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
        shown = summarize_list(members, limit=limit or len(members), separator="\n  ")
        lines.append(f"note: {kind} ({len(members)})\n  {shown}")
    return lines


def list_problems(problems: Mapping[str, Sequence[str]], *, limit: int | None) -> list[str]:
    """All problems, or the first few of each kind."""
    if not problems:
        return ["no problems found"]
    lines = []
    for kind, members in problems.items():
        shown = summarize_list(members, limit=limit or len(members), separator="\n  ")
        lines += [f"PROBLEM: {kind} ({len(members)})", f"  {shown}"]
    return lines


def command_line(recipe: str, pasted: Sequence[str]) -> str:
    """What starts a training, to be pasted into a shell."""
    head = f"deepspeed adatad_ds/train.py --deepspeed_config ds_configs/zero2.json --recipe {recipe}"
    return " \\\n    ".join([head, *pasted, "--run-dir runs/own_data"])


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
