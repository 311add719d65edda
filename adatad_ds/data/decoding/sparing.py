"""Decode H.264 without the pictures that are neither wanted nor referred to, mostly B-frames, as long as all is intact.

Such a picture says so in the header of its data (nal_ref_idc 0, ITU-T H.264 section 7.4.1), and any decoder may leave
it out: all others are the same without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.decoding.units import Units
from adatad_ds.data.decoding.video import Index, opened, packets_of


def sparingly_decoded(
    path: Path, index: Index, wanted: NDArray[np.int64], *, num_threads: int
) -> Iterator[tuple[Any, int]]:
    """The wanted frames up to the first sign of damage: a picture that fails, is flagged, or does not come.

    Args:
        path: a video file.
        index: of that file.
        wanted: indices of frames (n,), non-decreasing.
        num_threads: decoding threads.

    Yields:
        PyAV's frame, and how many times it is wanted. Nothing where little can be left out, or it is not known how.
    """
    if index.times is None or (np.diff(index.times) == 0).any():  # of two at one time it is not known which came
        return
    distinct, counts = np.unique(wanted, return_counts=True)
    if 2 * len(distinct) > distinct[-1] - distinct[0]:
        return
    times = index.times[distinct].tolist()
    with opened(path, num_threads=num_threads) as (container, stream):
        units = Units.of(stream)
        if units is None or stream.codec_context.name != "h264":
            return
        key = key_before(index, wanted)
        if key is not None and not seek(container, stream, key):
            return
        frames = _all_coming(container, stream, units, needed={*times}, begin=key)
        for time, count in zip(times, counts.tolist(), strict=True):
            frame = next((frame for frame in frames if frame.pts >= time), None)
            if frame is None or frame.pts != time:
                return
            yield frame, count


def key_before(index: Index, wanted: NDArray[np.int64]) -> int | None:
    """Time of the last keyframe up to the first wanted frame; None: begin at the beginning."""
    if index.times is None:
        return None
    earlier = index.key_times[index.key_times <= index.times[wanted[0]]]
    return int(earlier[-1]) if len(earlier) and earlier[-1] > index.times[0] else None


def seek(container: Any, stream: Any, time: int) -> bool:
    """Go to the keyframe at a time; whether that works."""
    try:
        container.seek(time, stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


def _all_coming(container: Any, stream: Any, units: Units, *, needed: set[int], begin: int | None) -> Iterator[Any]:
    """Frames from time `begin` on, in order, as long as each picture that is decoded comes out as it should."""
    sent: list[int] = []
    for packet in chain(packets_of(container, stream), (None,)):
        if packet is not None:
            if packet.pts is None:
                return
            if packet.pts not in needed and units.unreferenced(bytes(packet)):
                continue
            if not packet.is_discard:
                heappush(sent, packet.pts)
        try:
            decoded = stream.decode(packet)
        except av.FFmpegError:
            return
        for frame in decoded:
            while begin is not None and sent and sent[0] < begin:
                heappop(sent)  # pictures before the keyframe, which lean on earlier ones, need not come
            if frame.pts is None or (begin is not None and frame.pts < begin):
                continue
            if frame.is_corrupt or not sent or heappop(sent) != frame.pts:
                return
            yield frame
