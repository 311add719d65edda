"""What a video file really holds, found by decoding all of it; for checks before a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adatad_ds.data.video import VideoError, decoded_frames, opened, packets_of

SLACK_SHARE, SLACK_FRAMES = 0.02, 3  # a stream may end this much before its header says
CACHE_VERSION = 1
SAVE_EVERY = 200  # files
LOOSE_SHARE, LOOSE_SEC = 0.05, 1.0  # where the header tells the whole file's length only: sound may go on


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One file, decoded.

    Attributes:
        packets: coded frames in the file; what the trainer takes for its number of frames.
        decoded: frames that came out.
        damaged: of these, frames that the decoder had to patch.
        fps: mean rate that the file states.
        lost_sec: seconds of the length promised by its header that the file lacks; 0: all there.
        drift_sec: most that a frame's time is off from where an even rate would put it.
        shortest_sec: least time between two frames.
        longest_sec: greatest time between two frames.
        error: why nothing can be decoded; all else is then 0.
    """

    packets: int = 0
    decoded: int = 0
    damaged: int = 0
    fps: float = 0.0
    lost_sec: float = 0.0
    drift_sec: float = 0.0
    shortest_sec: float = 0.0
    longest_sec: float = 0.0
    error: str | None = None

    @property
    def duration_sec(self) -> float:
        """Length at the mean rate."""
        return self.packets / self.fps if self.fps else 0.0


def scan(path: Path) -> Scan:
    """Decode a whole file, in one thread; what is wrong with it ends in `Scan.error`."""
    try:
        return _scan(path)
    except VideoError as error:
        return Scan(error=str(error))
    except OSError as error:
        return Scan(error=f"{path}: {error.strerror}")


class Cache:
    """Results by path, as long as a file's time of change and size stay; errors are found anew each time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, object]] = {}
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["version"] == CACHE_VERSION:
                self._files = dict(tree["files"])
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or no use
            pass

    def get(self, path: Path) -> Scan | None:
        """What is known about a file in its present state."""
        entry = self._files.get(str(path.resolve()))
        if entry is None or [entry.get("mtime_ns"), entry.get("size")] != _state(path):
            return None
        return Scan(**entry["scan"])  # type: ignore[arg-type]

    def add(self, path: Path, result: Scan, state: list[int]) -> None:
        """Keep a result for the state (`_state`) that the file had before it was read."""
        if result.error is None and state:
            self._files[str(path.resolve())] = {"mtime_ns": state[0], "size": state[1], "scan": asdict(result)}

    def save(self) -> None:
        """Write all, or nothing."""
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps({"version": CACHE_VERSION, "files": self._files}), encoding="utf-8")
        part.replace(self._path)


def scan_all(paths: Sequence[Path], *, workers: int, cache: Cache) -> dict[Path, Scan]:
    """Decode what is not in the cache, in parallel; a decoder that crashes is that file's problem alone."""
    known = {path: cache.get(path) for path in paths}
    results = {path: result for path, result in known.items() if result is not None}
    todo = [path for path in paths if path not in results]
    print(f"{len(paths)} videos, {len(results)} of them known from an earlier check", flush=True)
    with tqdm(total=len(todo), desc="decoding", unit="video", dynamic_ncols=True, disable=not todo) as bar:

        def finished(path: Path, result: Scan, state: list[int]) -> None:
            results[path] = result
            cache.add(path, result, state)
            if bar.update() and len(results) % SAVE_EVERY == 0:
                cache.save()

        try:
            crashed = _decode(todo, workers=workers, finished=finished)
            for path in crashed:  # the pool broke under one of these
                if _decode([path], workers=1, finished=finished):
                    finished(path, Scan(error=f"{path}: the decoder crashes on it"), _state(path))
        finally:
            cache.save()
    return results


def _decode(paths: Sequence[Path], *, workers: int, finished: Callable[[Path, Scan, list[int]], None]) -> list[Path]:
    """Scan files in processes of their own; those that were left when one of these died."""
    left = []
    pool = ProcessPoolExecutor(workers)
    try:
        futures = {pool.submit(scan, path): (path, _state(path)) for path in paths}
        for future in as_completed(futures):
            path, state = futures[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                left.append(path)
            else:
                finished(path, result, state)
    finally:
        pool.shutdown(cancel_futures=True)
    return left


def _scan(path: Path) -> Scan:
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    times: list[int | None] = []
    decoded = damaged = 0
    with opened(path, num_threads=1) as (container, stream):
        for packet in chain(packets_of(container, stream), (None,)):  # None: give out what the decoder holds back
            if packet is not None and not packet.is_discard:
                times.append(packet.pts)
            for frame in decoded_frames(stream, packet):
                decoded += 1
                damaged += bool(frame.is_corrupt)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 25.0
        time_base = float(stream.time_base) if stream.time_base else 0.0
        lost_sec = _lost_sec(container, stream, times, fps=fps, time_base=time_base)
    if decoded == 0:
        raise VideoError(f"{path}: none of its {len(times)} packets can be decoded")
    known = [time for time in times if time is not None]
    seconds = np.sort(np.array(known if len(known) == len(times) else [], dtype=np.float64)) * time_base
    intervals = np.diff(seconds)
    return Scan(
        packets=len(times),
        decoded=decoded,
        damaged=damaged,
        fps=fps,
        lost_sec=lost_sec,
        drift_sec=_drift_sec(seconds),
        shortest_sec=float(intervals.min(initial=np.inf)) if len(intervals) else 0.0,
        longest_sec=float(intervals.max(initial=0.0)),
    )


def _lost_sec(container: Any, stream: Any, times: list[int | None], *, fps: float, time_base: float) -> float:
    """Seconds that the header promises and the file lacks; 0 within what headers are usually off by."""
    known = [time for time in times if time is not None]
    held_sec = (max(known) - min(known)) * time_base + 1 / fps if len(known) == len(times) and known else 0.0
    held_sec = max(held_sec, len(times) / fps)
    if stream.duration is not None:
        promised_sec = stream.duration * time_base
        slack_sec = max(SLACK_FRAMES / fps, SLACK_SHARE * promised_sec)
    elif container.duration is not None:
        promised_sec = container.duration / 1e6
        slack_sec = max(LOOSE_SEC, LOOSE_SHARE * promised_sec)
    else:
        return 0.0
    lost_sec = promised_sec - held_sec
    return lost_sec if lost_sec > slack_sec else 0.0


def _drift_sec(seconds: NDArray[np.float64]) -> float:
    """How far ascending frame times (n,) are from evenly spaced ones between the same ends."""
    if len(seconds) < 3:
        return 0.0
    return float(np.abs(seconds - np.linspace(seconds[0], seconds[-1], len(seconds))).max())


def _state(path: Path) -> list[int]:
    """Time of change (ns) and size (bytes); empty where there is no file."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_mtime_ns, state.st_size]
