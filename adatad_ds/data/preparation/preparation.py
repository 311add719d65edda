"""Preparation of all videos that recipes read, in several processes; what is there already is left as it is."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adatad_ds.config.schema import Scaling
from adatad_ds.data.decoding.index_file import FileState
from adatad_ds.data.decoding.prepared import Codec, Entry, Header
from adatad_ds.data.decoding.video import VideoError, index_of
from adatad_ds.data.preparation.encoding import QUALITIES, QUALITY, SUFFIXES, file_sha256, prepare_file
from adatad_ds.data.preparation.manifest_file import add_entry, begin_manifest, must_be_originals, preparing
from adatad_ds.data.preparation.needs import Use, Wanted
from adatad_ds.data.worker_process import end_with_parent
from adatad_ds.errors import ConfigError, DataError, WriteError, summarize_list

UNREADABLE_FILE = "unreadable.txt"
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One original, and what is to be made of it.

    Attributes:
        source: the original.
        target: the prepared file.
        uses: what recipes read of it.
        entry: what the manifest says of the target; None: nothing.
        header: how it is coded and scaled.
    """

    source: Path
    target: Path
    uses: tuple[Use, ...]
    entry: Entry | None
    header: Header


@dataclass(kw_only=True)
class Outcome:
    """What came of all jobs.

    Attributes:
        made: files written in this run.
        there: files that were there already.
        before: bytes of the originals.
        after: bytes of the prepared files.
        errors: why videos cannot be prepared, by name.
    """

    made: int = 0
    there: int = 0
    before: int = 0
    after: int = 0
    errors: dict[str, str]


def prepare_videos(
    recipes: Sequence[Wanted],
    *,
    out: Path,
    codec: Codec,
    quality: int | None,
    workers: int,
    report: Callable[[str], None],
) -> int:
    """Prepare all videos that the recipes of these settings read.

    Args:
        recipes: what they read.
        out: folder of the prepared files, in the originals' subfolders, each with a manifest.
        codec: how they are coded.
        quality: CRF of H.264, JPEG quality of MJPEG; None: the default.
        workers: processes.
        report: called with text for the screen.

    Returns:
        The number of videos that cannot be prepared; they are reported, and listed in OUT.

    Raises:
        ConfigError: recipes that scale differently, or a folder of other prepared videos.
        DataError: prepared videos in the place of originals, or an unusable manifest.
        WriteError: the disk is full.
    """
    header = _header(recipes, codec, quality)
    with preparing(out):
        jobs = _jobs(recipes, out=out, header=header)
        outcome = Outcome(errors={name: why for recipe in recipes for name, why in recipe.missing.items()})
        _run_all(jobs, out=out, workers=workers, outcome=outcome)
        _list_unreadable(out, outcome.errors)
    shrunk = f"{_size(outcome.before)} before, {_size(outcome.after)} now"
    report(f"{out}: {outcome.made + outcome.there} prepared videos ({outcome.made} new), {shrunk}")
    if outcome.errors:
        lines = summarize_list(list(outcome.errors.values()), limit=20, separator="\n  ")
        report(f"{len(outcome.errors)} videos cannot be prepared:\n  {lines}")
        report(f"to train without them: --set data.exclude_file={out / UNREADABLE_FILE}")
    settings = {
        key: out / folder.relative_to(recipe.root) for recipe in recipes for key, folder in recipe.folders.items()
    }
    report(f"to use them: {' '.join(f'--set {key}={folder}' for key, folder in settings.items())}")
    return len(outcome.errors)


def _header(recipes: Sequence[Wanted], codec: Codec, quality: int | None) -> Header:
    scalings: set[Scaling] = {recipe.scaling for recipe in recipes}
    if len(scalings) > 1:
        raise ConfigError(
            f"these recipes resize frames differently (data.scaling={' and '.join(sorted(scalings))}): prepare the "
            "videos for each in a separate folder"
        )
    if quality is not None and codec == "lossless":
        raise ConfigError("--quality cannot be used with --codec lossless; leave it out")
    if quality is not None and quality not in QUALITIES.get(codec, ()):
        first, last = QUALITIES[codec][0], QUALITIES[codec][-1]
        raise ConfigError(f"--quality {quality}: with --codec {codec}, it is a number from {first} to {last}")
    return Header(codec=codec, quality=QUALITY[codec] if quality is None else quality, scaling=scalings.pop())


def _jobs(recipes: Sequence[Wanted], *, out: Path, header: Header) -> list[Job]:
    """A job for each original."""
    uses: dict[Path, list[Use]] = {}
    targets: dict[Path, Path] = {}  # by original
    for recipe in recipes:
        for source, members in recipe.uses.items():
            uses.setdefault(source, []).extend(members)
            targets[source] = (out / source.relative_to(recipe.root)).with_suffix(SUFFIXES[header.codec])
    for folder in {source.parent for source in uses}:
        must_be_originals(folder)
    manifests = {folder: begin_manifest(folder, header) for folder in {path.parent for path in targets.values()}}
    sources: dict[Path, Path] = {}  # by target
    for source, target in targets.items():
        if sources.setdefault(target, source) != source:
            raise DataError(f"{sources[target]} and {source} would both become {target}; rename one of them")
    return [
        Job(
            source=source,
            target=target,
            uses=tuple(uses[source]),
            entry=manifests[target.parent].entry(target.name),
            header=header,
        )
        for source, target in targets.items()
    ]


def run_job(job: Job) -> tuple[Entry, bool]:
    """Prepare one video, unless that is done; in one thread.

    Returns:
        What the manifest has to say of it, and whether the file was written.

    Raises:
        VideoError: it cannot be decoded, or contradicts its annotation.
        OSError: it cannot be written.
    """
    info = index_of(job.source).info
    frames = np.unique(np.concatenate([use.to_prepare(job.source) for use in job.uses]))
    short_side = min(max(use.short_side for use in job.uses), info.height, info.width)
    entry = job.entry
    if entry is not None and (entry := _unchanged(entry, job.source)) is not None:
        held, side = entry.numbers, entry.short_side or min(info.height, info.width)
        if np.isin(frames, held).all() and side >= short_side and entry.fault(_state(job.target)) is None:
            return entry, False
        frames, short_side = np.union1d(frames, held), max(short_side, side)  # other recipes' too
    return prepare_file(job.source, job.target, frames=frames, short_side=short_side, header=job.header), True


def _unchanged(entry: Entry, source: Path) -> Entry | None:
    """The entry, if it is still of this original; with its new time and place where only these changed."""
    state, was = FileState.of(source), entry.source
    if state.size != was.size or (state.mtime_ns != was.mtime_ns and file_sha256(source) != was.sha256):
        return None
    return replace(entry, source=replace(was, path=str(source.resolve()), mtime_ns=state.mtime_ns))


def _state(path: Path) -> FileState | None:
    try:
        return FileState.of(path)
    except OSError:
        return None


def _run_all(jobs: Sequence[Job], *, out: Path, workers: int, outcome: Outcome) -> None:
    """Run all jobs; the manifest gets a line for each as soon as its file is there."""
    sizes = {job.source: state.size if (state := _state(job.source)) else 0 for job in jobs}
    total = sum(sizes.values())
    with tqdm(total=total, desc="preparing", unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        for job, result in _results(jobs, workers=workers):
            if isinstance(result, VideoError):
                outcome.errors[job.uses[0].name] = str(result)
            elif isinstance(result, OSError):
                raise _write_error(result, out=out, done=outcome, jobs=len(jobs), total=total) from result
            else:
                entry, made = result
                try:
                    if entry != job.entry:
                        add_entry(job.target.parent, entry)
                except OSError as error:
                    raise _write_error(error, out=out, done=outcome, jobs=len(jobs), total=total) from error
                outcome.made, outcome.there = outcome.made + made, outcome.there + (not made)
                outcome.before, outcome.after = outcome.before + sizes[job.source], outcome.after + entry.size
            bar.update(sizes[job.source])


Result = tuple[Entry, bool] | VideoError | OSError


def _results(jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Result]]:
    """Results of jobs as they end; a crash of the decoder affects only its own file."""
    crashed = []
    for job, result in _in_processes(jobs, workers=workers):
        if result is None:
            crashed.append(job)
        else:
            yield job, result
    for job in crashed:  # the pool broke under one of these
        for _, result in _in_processes([job], workers=1):
            yield job, VideoError(f"{job.source}: the decoder crashes on it") if result is None else result


def _in_processes(jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Result | None]]:
    """Results as they end; None for those whose process died."""
    pool = ProcessPoolExecutor(workers, initializer=_begin)
    try:
        futures: Mapping[Future[tuple[Entry, bool]], Job] = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            try:
                yield job, future.result()
            except BrokenProcessPool:
                yield job, None
            except (VideoError, OSError) as error:
                yield job, error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Set up a process: the terminal's Ctrl-C is for the command, and nothing goes on when that is killed."""
    import torch  # here, as it takes seconds, and the command's help needs none

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _write_error(error: OSError, *, out: Path, done: Outcome, jobs: int, total: int) -> WriteError:
    ready = done.made + done.there
    cause = "the disk is full" if error.errno in FULL else f"cannot be written ({error})"
    need = ""
    if error.errno in FULL and done.before:
        need = f"; about {_size(done.after / done.before * (total - done.before))} more are needed"
    return WriteError(f"{out}: {cause}: {ready} of {jobs} videos are prepared{need}. Make room and run the same again")


def _list_unreadable(out: Path, errors: Mapping[str, str]) -> None:
    path = out / UNREADABLE_FILE
    path.unlink(missing_ok=True)  # it may be outdated
    if errors:
        path.write_text("".join(f"{name}\n" for name in errors), encoding="utf-8")


def _size(size: float) -> str:
    for limit, unit in ((1e6, "kB"), (1e9, "MB"), (1e12, "GB")):
        if size < limit:
            return f"{size / (limit / 1000):.3g} {unit}"
    return f"{size / 1e12:.3g} TB"
