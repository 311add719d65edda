"""Windows of an unannotated video file of any length, in bounded memory.

Frames are decoded once, in order, and kept only while later windows need them.

B windows per batch, F frames per window, S pixels per side, T feature steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.augmentation.transforms import center_crop
from adatad_ds.data.batch import Batch, collate, window_sample
from adatad_ds.data.decoding.frames import stream_frames
from adatad_ds.data.decoding.video import probe
from adatad_ds.data.windows import VideoWindow, WindowSource, file_frames, find_timing, windows_for_testing

DECODING_THREADS = 4

T = TypeVar("T")


def lone_video(path: Path, *, name: str) -> Video:
    """A file as a video without annotations, with the file's own duration and frame rate.

    Raises:
        VideoError: not a decodable video.
    """
    return Video(name, "", probe(path).duration_sec, None, None, ())


def windows_of_file(video: Video, path: Path, config: DataConfig) -> list[VideoWindow]:
    """All windows of a file, as in testing.

    Raises:
        VideoError: not a decodable video.
    """
    timing = find_timing(video, path, config)
    return windows_for_testing(WindowSource(video=video, video_index=0, timing=timing, config=config, label_ids={}))


def stream_batches(
    video: Video, path: Path, windows: Sequence[VideoWindow], *, config: DataConfig, batch: int
) -> Generator[Batch]:
    """Batches of a file's windows, in order; the next one is decoded while the caller processes the current one.

    Args:
        video: the file as a video.
        path: the file.
        windows: its windows, in temporal order.
        config: how frames are read.
        batch: B; the last batch may have fewer.

    Raises:
        VideoError: nothing in the file can be decoded.
    """
    rows = [file_frames(window, path, config) for window in windows]
    closed, lost = Event(), set[int]()
    damage = probe(path).damage
    pictures_of = stream_rows(path, rows, config=config, closed=closed, lost=lost)
    samples = (
        window_sample(
            window,
            pictures,
            steps=config.window_size,
            video=video.name,
            damage=damage.with_lost(lost),  # as far as the file has been read
            sample_id=index,
        )
        for index, (window, pictures) in enumerate(zip(windows, pictures_of, strict=True))
    )
    return ahead(map(collate, grouped(samples, batch)), closed)


def stream_rows(
    path: Path, rows: Sequence[NDArray[np.int64]], *, config: DataConfig, closed: Event, lost: set[int]
) -> Iterator[Tensor]:
    """The pictures of each row of a file's frames, as in testing; the file is decoded once, in order.

    Args:
        path: the file.
        rows: frame numbers (F,) of each; see `gather_rows`.
        config: how frames are read.
        closed: once set, decoding is abandoned.
        lost: damaged frames are added here as they are met.

    Yields:
        (F, S, S, 3) uint8, row by row.

    Raises:
        VideoError: nothing in the file can be decoded.
    """
    frames = stream_frames(
        path,
        np.unique(np.concatenate(rows)),
        short_side=config.resolution,
        scaling=config.scaling,
        backend=config.reader,
        num_threads=DECODING_THREADS,
        lost=lost,
    )
    cropped = (center_crop(frame[None], resolution=config.resolution, scaling=config.scaling)[0] for frame in frames)
    return gather_rows(rows, takewhile(lambda _: not closed.is_set(), cropped))


def gather_rows(rows: Sequence[NDArray[np.int64]], frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Stack the frames of each row; holds at most as many frames as the longest row has.

    Args:
        rows: frame numbers (F,) of each window, non-decreasing; the first and the last numbers do not decrease from row
            to row, and overlapping rows have the same numbers where they overlap.
        frames: one (S, S, 3) for each distinct number, in increasing order.

    Yields:
        (F, S, S, 3), row by row.
    """
    held: deque[tuple[int, Tensor]] = deque()
    arriving = zip(np.unique(np.concatenate(rows)).tolist(), frames, strict=True)
    for row in rows:
        while held and held[0][0] < row[0]:
            held.popleft()
        while not held or held[-1][0] < row[-1]:
            number, frame = next(arriving)
            if number >= row[0]:
                held.append((number, frame))
        numbers = np.array([number for number, _ in held])
        yield torch.stack([held[place][1] for place in np.searchsorted(numbers, row)])


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive items; the last one may be shorter."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def ahead(items: Iterator[T], closed: Event) -> Generator[T]:
    """The same items, each produced in a thread while the caller processes the previous one.

    If closed early, it sets `closed`, so that the producer can abandon its current item.
    """
    with ThreadPoolExecutor(1) as pool:
        try:
            coming = pool.submit(next, items, None)
            while (item := coming.result()) is not None:
                coming = pool.submit(next, items, None)
                yield item
        finally:
            closed.set()
