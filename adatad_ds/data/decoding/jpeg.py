"""Prepared MJPEG by OpenCV: each packet is a picture of its own, so those that are not wanted are not even looked at.

OpenCV's libjpeg-turbo interpolates colours that are stored at half the size, where FFmpeg's converter repeats them:
pictures are nearer to the original's, by a decibel or so, and need the conversion from YUV no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.decoding.facts import Index, VideoError
from adatad_ds.data.decoding.sparing import key_before, seek
from adatad_ds.data.decoding.video import opened, packets_of

BEGIN, END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG picture


def jpeg_frames(path: Path, index: Index, wanted: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The wanted frames, up to the first that is not a whole picture of the right size.

    Args:
        path: a prepared file.
        index: of that file.
        wanted: places of frames in the file (n,), non-decreasing.

    Yields:
        RGB (h, w, 3), and how many times it is wanted. Nothing where the file is not MJPEG, or has no times.
    """
    if index.held is None or index.times is None or not len(wanted):
        return
    distinct, counts = np.unique(wanted, return_counts=True)
    height, width = index.held.height, index.held.width
    times = iter(zip(index.times[distinct].tolist(), counts.tolist(), strict=True))
    try:
        with opened(path, num_threads=1) as (container, stream):
            key = key_before(index, wanted)
            if stream.codec_context.name != "mjpeg" or (key is not None and not seek(container, stream, key)):
                return
            time, count = next(times)
            for packet in packets_of(container, stream):
                if packet.pts is None or packet.pts < time:
                    continue
                picture = picture_of(memoryview(packet)) if packet.pts == time else None
                if picture is None or picture.shape[0] < height or picture.shape[1] < width:
                    return
                yield picture[:height, :width], count
                if (following := next(times, None)) is None:
                    return
                time, count = following
    except VideoError:
        return


def picture_of(data: bytes | memoryview) -> NDArray[np.uint8] | None:
    """A JPEG picture as RGB (h, w, 3); None: it is damaged."""
    import cv2  # here, as it takes long to import, and not all files need it

    if data[:2] != BEGIN or data[-2:] != END:  # else what is missing would be grey
        return None
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        return None if picture is None else picture.astype(np.uint8, copy=False)
    except cv2.error:
        return None
