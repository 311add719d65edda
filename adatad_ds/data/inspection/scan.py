"""Complete scan of video files by decoding them, for checks before training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adatad_ds.data.decoding.frames import find_lost
from adatad_ds.data.decoding.video import VideoError, index_of
from adatad_ds.system.atomic import write_text

CACHE_VERSION = 3
SAVE_EVERY = 200  # files


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of decoding one file.

    Attributes:
        packets: coded frames in the file, which training uses as its number of frames.
        fps: their usual rate.
        duration_sec: when its pictures end, on a player's clock.
        faults: what is missing, one phrase each.
        drift_sec: maximum deviation of a frame's time from a constant rate.
        shortest_sec: shortest time between two frames.
        longest_sec: longest time between two frames.
        error: why nothing can be decoded; everything else is then 0.
    """

    packets: int = 0
    fps: float = 0.0
    duration_sec: float = 0.0
    faults: tuple[str, ...] = ()
    drift_sec: float = 0.0
    shortest_sec: float = 0.0
    longest_sec: float = 0.0
    error: str | None = None


def scan(path: Path) -> Scan:
    """Decode a whole file, in one thread; errors are returned as `Scan.error`."""
    try:
        return _scan(path)
    except VideoError as error:
        return Scan(error=str(error))
    except OSError as error:
        return Scan(error=f"{path}: {error.strerror}")


class Cache:
    """Cached results by path, valid while a file's modification time and size are unchanged; errors are not cached."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, object]] = {}
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["version"] == CACHE_VERSION:
                self._files = dict(tree["files"])
        except (OSError, ValueError, KeyError, TypeError):  # missing or unusable
            pass

    def get(self, path: Path) -> Scan | None:
        """The cached result for a file in its present state."""
        entry = self._files.get(str(path.resolve()))
        if entry is None or [entry.get("mtime_ns"), entry.get("size")] != _state(path):
            return None
        fields: dict[str, Any] = dict(entry["scan"])  # type: ignore[call-overload]
        fields["faults"] = tuple(fields["faults"])
        return Scan(**fields)

    def add(self, path: Path, result: Scan, state: list[int]) -> None:
        """Cache a result for the state (`_state`) that the file had before it was read."""
        if result.error is None and state:
            self._files[str(path.resolve())] = {"mtime_ns": state[0], "size": state[1], "scan": asdict(result)}

    def save(self) -> None:
        """Write the cache atomically."""
        write_text(self._path, json.dumps({"version": CACHE_VERSION, "files": self._files}))


def scan_all(paths: Sequence[Path], *, workers: int, cache: Cache) -> dict[Path, Scan]:
    """Decode files that are not cached, in parallel; a crash of the decoder affects only its file."""
    known = {path: cache.get(path) for path in paths}
    results = {path: result for path, result in known.items() if result is not None}
    todo = [path for path in paths if path not in results]
    print(f"{len(paths)} videos, {len(results)} of them cached from an earlier check", flush=True)
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
    """Scan files in separate processes; return the files left over when one of these died."""
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
    index = index_of(path)
    info = index.info
    seconds = np.zeros(0) if index.seconds is None else index.seconds
    intervals = np.diff(seconds)
    return Scan(
        packets=info.num_frames,
        fps=info.fps,
        duration_sec=info.duration_sec,
        faults=tuple(info.damage.with_lost(find_lost(path)).phrases()),
        drift_sec=_drift_sec(seconds),
        shortest_sec=float(intervals.min()) if len(intervals) else 0.0,
        longest_sec=float(intervals.max()) if len(intervals) else 0.0,
    )


def _drift_sec(seconds: NDArray[np.float64]) -> float:
    """Maximum deviation of ascending frame times (n,) from evenly spaced ones with the same ends."""
    if len(seconds) < 3:
        return 0.0
    return float(np.abs(seconds - np.linspace(seconds[0], seconds[-1], len(seconds))).max())


def _state(path: Path) -> list[int]:
    """Modification time (ns) and size (bytes); empty if there is no file."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_mtime_ns, state.st_size]
