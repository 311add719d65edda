"""One's own videos and an annotation tool's export, made the community's JSON, which this project reads."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from adatad_ds.data.annotations import Action, doubtful_labels
from adatad_ds.data.decoding.video import Index, VideoError, index_of
from adatad_ds.data.sources.formats import SUBSETS, TRAINING, VALIDATION, Entry
from adatad_ds.data.sources.preparation import PROBING_THREADS, write_annotations
from adatad_ds.data.sources.tools.cvat import read_cvat
from adatad_ds.data.sources.tools.elan import read_elan
from adatad_ds.data.sources.tools.label_studio import read_label_studio
from adatad_ds.data.sources.tools.marks import LISTED, Export, Mark, chosen_marks, match_videos
from adatad_ds.data.sources.tools.table import read_table
from adatad_ds.data.sources.tools.via import read_via
from adatad_ds.data.video_files import videos_in
from adatad_ds.data.video_names import EXTENSIONS, VideoNames, read_names, without_extension
from adatad_ds.errors import DataError, summarize_list
from adatad_ds.system.unicode_text import composed

DIGITS = 6  # of seconds, behind the point
MORE_FRAMES = 0.05, 30  # share of a file's frames, and frames, by which a tool may count more than it has


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user chooses of an export, and how it is divided.

    Attributes:
        tiers: as for `chosen_marks`.
        annotators: as for `chosen_marks`.
        in_frames: a table's times are frames.
        frame_rate: as for `read_label_studio`.
        attribute: as for `read_cvat`.
        labelled_only: leave out videos without a segment, instead of keeping them as background.
        validation: a list of the validation videos; None: by share, or as the files say.
        share: of the videos that are for validation, where nothing names them.
        seed: another seed, another choice of them.
    """

    tiers: Sequence[str]
    annotators: Sequence[str]
    in_frames: bool
    frame_rate: str
    attribute: str
    labelled_only: bool
    validation: Path | None
    share: float
    seed: int


READERS: Mapping[str, tuple[str, str, Callable[[Sequence[Path], Choices], Export]]] = {  # title, name of its tiers
    "csv": ("a table", "tiers", lambda sources, wanted: read_table(sources, in_frames=wanted.in_frames)),
    "elan": ("ELAN", "tiers", lambda sources, _: read_elan(sources)),
    "cvat": ("CVAT", "kinds", lambda sources, wanted: read_cvat(sources, attribute=wanted.attribute)),
    "via": ("VIA", "attributes", lambda sources, _: read_via(sources)),
    "label-studio": (
        "Label Studio",
        "controls",
        lambda sources, wanted: read_label_studio(sources, frame_rate=wanted.frame_rate),
    ),
}

JSON_TOOLS = "via", "label-studio"  # whose files have the same suffix as what is written


def prepare_own(
    tool: str,
    *,
    sources: Sequence[Path],
    videos: Path,
    out: Path,
    choices: Choices,
    exclude_missing: bool,
    report: Callable[[str], None],
) -> int:
    """Read an export, find its videos, divide them, and write the JSON.

    Args:
        tool: a key of `READERS`.
        sources: files of the tool, and folders that hold them.
        videos: folder of the videos; those that the export does not name are background.
        out: the JSON file to write.
        choices: what is chosen of the export.
        exclude_missing: leave out videos without a readable file, instead of writing nothing.
        report: called with each line for the user.

    Returns:
        The exit code: 1 if videos are missing and nothing was written.

    Raises:
        DataError: unusable files, or a choice that is not made.
    """
    if any(source.is_file() and source.resolve() == out.resolve() for source in sources):
        raise DataError(f"--out: {out} is one of the sources, which are not overwritten")
    if tool in JSON_TOOLS and any(
        source.is_dir() and out.resolve().is_relative_to(source.resolve()) for source in sources
    ):
        raise DataError(f"--out: {out} would lie in a folder of --source, and be read as a file of it the next time")
    files = _files(videos)
    export, named, marks = _read(tool, sources, files, choices, report)
    indices, unreadable = _indexed(files)
    missing = {video: "no file" for video, name in named.items() if name is None}
    missing |= {video: unreadable[name] for video, name in named.items() if name in unreadable}
    if missing:
        left = sum(mark.video in missing for mark in marks)
        report(f"{len(missing)} videos cannot be used from {videos}, {left} segments with them:")
        report("\n".join(f"  {video}: {reason}" for video, reason in list(missing.items())[:LISTED]))
        if not exclude_missing:
            report("Nothing was written. To continue without these videos, add --exclude-missing.")
            return 1
    actions = _actions([mark for mark in marks if mark.video not in missing], named, indices)
    if background := [name for name in indices if name not in actions]:
        what = "left out" if choices.labelled_only else "kept as background, used for testing but not for training"
        report(f"videos without a segment, {what}: {len(background)} ({_listed(background)})")
    if not choices.labelled_only:
        actions = {name: actions.get(name, []) for name in indices}
    subsets = _subsets(export.subsets, named, actions, choices, report)
    entries = [
        Entry(
            _key(name),
            subsets[name],
            round(indices[name].info.duration_sec, DIGITS),
            tuple(sorted(found, key=lambda action: (action.start_sec, action.end_sec))),
        )
        for name, found in actions.items()
    ]
    report("\n".join(class_table(entries)))
    write_annotations(entries, out, excluded=list(missing), report=report)
    return 0


def _read(
    tool: str, sources: Sequence[Path], files: Iterable[str], choices: Choices, report: Callable[[str], None]
) -> tuple[Export, dict[str, str | None], list[Mark]]:
    """What the tool exported, the file of each of its videos, and the chosen marks; reports what is left out."""
    title, several, read = READERS[tool]
    export = read(sources, choices)
    named = match_videos(export, list(files))
    marks, notes = chosen_marks(
        [
            replace(mark, label=composed(mark.label), tier=composed(mark.tier), annotator=composed(mark.annotator))
            for mark in export.marks
        ],
        named,
        tiers=list(map(composed, choices.tiers)),
        annotators=list(map(composed, choices.annotators)),
        several=several,
    )
    for note in (*export.notes, *notes):
        report(note)
    if not marks:
        raise DataError(f"{title}: {summarize_list([str(path) for path in sources], separator=', ')} hold no segment")
    if faults := doubtful_labels(Counter(mark.label for mark in marks)):
        raise DataError(f"{title}: {summarize_list(faults)}")
    return export, named, marks


def class_table(entries: Sequence[Entry]) -> list[str]:
    """Lines: segments and videos of each class in each subset; classes that one subset lacks are marked."""
    labels = sorted({action.label for entry in entries for action in entry.actions})
    width = max(map(len, [*labels, "class"]))
    lines = [f"{'class':<{width}}  " + "  ".join(f"{subset:>24}" for subset in SUBSETS)]
    for label in labels:
        counts = {subset: [0, 0] for subset in SUBSETS}
        for entry in entries:
            segments = sum(action.label == label for action in entry.actions)
            counts[entry.subset][0] += segments
            counts[entry.subset][1] += segments > 0
        cells = "  ".join(f"{f'{segments} in {videos} videos':>24}" for segments, videos in counts.values())
        lacking = [subset for subset, (segments, _) in counts.items() if not segments]
        lines.append(f"{label:<{width}}  {cells}" + (f"  none for {lacking[0]}" if lacking else ""))
    return lines


def _files(folder: Path) -> dict[str, Path]:
    """The folder's videos by name, sorted."""
    if not folder.is_dir():
        raise DataError(f"--videos: there is no folder {str(folder)!r}; it must hold the annotated videos")
    files = {path.name: path for path in sorted(videos_in(folder))}
    if not files:
        raise DataError(f"--videos: the folder {str(folder)!r} holds no video ({', '.join(EXTENSIONS)})")
    twice = [stem for stem, count in Counter(composed(without_extension(name)) for name in files).items() if count > 1]
    if twice:
        raise DataError(
            f"--videos: files that differ by their extension or Unicode form (NFC, NFD) alone: {_listed(twice)}; "
            "rename or remove one"
        )
    return files


def _key(name: str) -> str:
    """A file's name in the JSON: without its extension, unless another one would end it then (`talk.mov.mp4`)."""
    stem = without_extension(name)
    return stem if without_extension(stem) == stem else name


def _indexed(files: Mapping[str, Path]) -> tuple[dict[str, Index], dict[str, str]]:
    """Frames and their times of each file, by name; and errors of those that cannot be read."""

    def read(path: Path) -> Index | str:
        try:
            return index_of(path)
        except VideoError as error:
            return str(error)

    with ThreadPoolExecutor(PROBING_THREADS) as pool:
        found = dict(zip(files, tqdm(pool.map(read, files.values()), total=len(files), unit="video"), strict=True))
    errors = {name: index for name, index in found.items() if isinstance(index, str)}
    return {name: index for name, index in found.items() if not isinstance(index, str)}, errors


def _actions(
    marks: Sequence[Mark], named: Mapping[str, str | None], indices: Mapping[str, Index]
) -> dict[str, list[Action]]:
    """Actions in seconds, by name of the file."""
    actions: dict[str, list[Action]] = {}
    for mark in marks:
        name = named[mark.video] or ""
        index = indices[name]
        if mark.in_frames:
            start, end = (_shown_at(index, int(frame), mark, name) for frame in (mark.start, mark.end))
        else:
            start, end = mark.start, mark.end
        actions.setdefault(name, []).append(Action(round(start, DIGITS), round(end, DIGITS), mark.label))
    return actions


def _shown_at(index: Index, frame: int, mark: Mark, name: str) -> float:
    """When a frame is shown, by the file's own times; the one after the last: when that one ends."""
    info = index.info
    most = (1 + MORE_FRAMES[0]) * info.num_frames + MORE_FRAMES[1]
    if mark.start < info.num_frames <= frame <= most:  # the end: tools count some frames more
        return info.duration_sec
    if frame >= info.num_frames:
        raise DataError(
            f"{mark.place}: frame {frame} of {name}, which has {info.num_frames}; is it the file that was annotated?"
        )
    return info.start_sec + frame / info.fps if index.seconds is None else float(index.seconds[frame])


def _subsets(
    told: Mapping[str, str],
    named: Mapping[str, str | None],
    actions: Mapping[str, Sequence[Action]],
    choices: Choices,
    report: Callable[[str], None],
) -> dict[str, str]:
    """The subset of each file: by the user's list, else as the export says, else by share."""
    if choices.validation is not None:
        known = VideoNames(actions)
        listed = {name: known.find(name) for name in read_names(choices.validation)}
        if unknown := [name for name, found in listed.items() if found is None]:
            raise DataError(f"--validation: {choices.validation} names videos that do not exist: {_listed(unknown)}")
        return {name: VALIDATION if name in listed.values() else TRAINING for name in actions}
    if told:
        subsets: dict[str, str] = {}
        for video, subset in told.items():
            name = named[video]
            if name is not None and subsets.setdefault(name, subset) != subset:
                spellings = " and ".join(repr(other) for other in told if named[other] == name)
                raise DataError(
                    f"the export puts {name}, which it names {spellings}, into both {TRAINING} and {VALIDATION}; give "
                    "it one subset"
                )
        if unsaid := [name for name in actions if name not in subsets]:
            report(f"videos without a subset, taken for {TRAINING}: {len(unsaid)} ({_listed(unsaid)})")
        return {name: subsets.get(name, TRAINING) for name in actions}
    validation = divided(actions, share=choices.share, seed=choices.seed)
    if not validation:
        raise DataError(
            f"there are too few videos ({len(actions)}) to divide, as each class needs one to train on; name those for "
            "validation in --validation LIST, or label more"
        )
    report(
        f"{VALIDATION}: {len(validation)} of {len(actions)} videos by --validation-share {choices.share:g} "
        f"--seed {choices.seed} ({_listed(sorted(validation))})"
    )
    return {name: VALIDATION if name in validation else TRAINING for name in actions}


def divided(actions: Mapping[str, Sequence[Action]], *, share: float, seed: int) -> set[str]:
    """A share of the videos, by a hash of seed and name; none with all that is left of a class for training."""
    left = Counter(label for found in actions.values() for label in {action.label for action in found})
    chosen: set[str] = set()
    wanted = max(1, round(share * len(actions)))
    for name in sorted(actions, key=lambda name: hashlib.sha256(f"{seed} {composed(name)}".encode()).digest()):
        labels = {action.label for action in actions[name]}
        if len(chosen) < wanted and all(left[label] > 1 for label in labels):
            chosen.add(name)
            left.subtract(labels)
    return chosen


def _listed(names: Sequence[str]) -> str:
    return summarize_list(list(names), limit=LISTED, separator=", ")
