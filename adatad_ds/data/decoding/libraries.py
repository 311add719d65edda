"""Decoders that find frames by themselves: decord, and TorchCodec on a CPU or by NVDEC; all optional.

n frames, h x w pixels.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.decoding.video import VideoInfo
from adatad_ds.errors import ConfigError

NO_VIDEO = bytes(16)
Reader = Callable[[NDArray[np.int64]], NDArray[np.uint8]]  # from ascending indices (n,) to RGB frames (n, h, w, 3)


def decord_reader(path: Path, _: VideoInfo, *, num_threads: int) -> Reader | None:
    """A reader by decord; None: not installed.

    Raises:
        RuntimeError: decord cannot read the file.
    """
    if importlib.util.find_spec("decord") is None:  # no wheels for some platforms
        return None
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=num_threads)
    except decord.DECORDError as error:
        raise RuntimeError(str(error)) from error

    def read(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        try:
            return reader.get_batch(indices).asnumpy()
        except decord.DECORDError as error:
            raise RuntimeError(str(error)) from error

    return read


def torchcodec_reader(path: Path, info: VideoInfo, *, num_threads: int, device: str = "cpu") -> Reader | None:
    """A reader by TorchCodec; None: not installed, or it sees other frames than there are.

    Raises:
        RuntimeError, ValueError: TorchCodec cannot read the file.
    """
    if importlib.util.find_spec("torchcodec") is None:
        return None
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]  # optional

    decoder = VideoDecoder(
        str(path), dimension_order="NHWC", num_ffmpeg_threads=num_threads, seek_mode="exact", device=device
    )
    if len(decoder) != info.num_frames:
        return None
    return lambda indices: decoder.get_frames_at(indices.tolist()).data.cpu().numpy()


def nvdec_reader(path: Path, info: VideoInfo, *, num_threads: int) -> Reader | None:
    """`torchcodec_reader` on the rank's GPU: NVDEC decodes, CUDA converts to RGB, pictures are copied to the host."""
    return torchcodec_reader(path, info, num_threads=num_threads, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}")


def check_reader(reader: str) -> None:
    """Check that a setting's decoder is there.

    Raises:
        ConfigError: TorchCodec is needed, and is not installed, finds no FFmpeg, or cannot decode on a GPU.
    """
    if reader not in ("torchcodec", "nvdec"):
        return
    elsewhere = "or use --set data.reader=auto"
    if importlib.util.find_spec("torchcodec") is None:
        raise ConfigError(f"data.reader={reader}: TorchCodec is not installed; pip install torchcodec, {elsewhere}")
    import torch
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]  # optional

    if reader == "nvdec" and not torch.cuda.is_available():
        raise ConfigError(f"data.reader=nvdec decodes on an NVIDIA GPU, and there is none; {elsewhere}")
    try:
        VideoDecoder(NO_VIDEO, device="cuda" if reader == "nvdec" else "cpu")  # loads FFmpeg's libraries
    except (RuntimeError, ValueError, OSError) as error:
        if "libtorchcodec" in str(error):
            raise ConfigError(
                f"data.reader={reader}: TorchCodec finds no libraries of FFmpeg (libavcodec and others, which it does "
                f"not bring along); install FFmpeg with its shared libraries, {elsewhere}"
            ) from error
        if "Unsupported device" in str(error):
            raise ConfigError(
                f"data.reader=nvdec: this TorchCodec was built without CUDA; install a build with it, {elsewhere}"
            ) from error


WHOLE_FILE = {"decord": decord_reader, "torchcodec": torchcodec_reader, "nvdec": nvdec_reader}
