"""Decoders that find frames by themselves: decord, and TorchCodec on a CPU or by NVDEC; all optional.

n frames, h x w pixels.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.decoding.video import VideoInfo
from adatad_ds.errors import ConfigError, in_words
from adatad_ds.system.launch import gpu_count, rank_gpu

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
    return torchcodec_reader(path, info, num_threads=num_threads, device=f"cuda:{rank_gpu()}")


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
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]  # optional

    if reader == "nvdec" and gpu_count() == 0:
        raise ConfigError(f"data.reader=nvdec decodes on an NVIDIA GPU, and there is none; {elsewhere}")
    try:
        if reader == "nvdec":  # whatever keeps it from decoding, files would go to PyAV without a word
            _ = VideoDecoder(small_video(), device="cuda")[0]
        else:
            VideoDecoder(NO_VIDEO)  # loads FFmpeg's libraries
    except (RuntimeError, ValueError, OSError) as error:
        if "libtorchcodec" in str(error):
            raise ConfigError(
                f"data.reader={reader}: TorchCodec finds no libraries of FFmpeg (libavcodec and others, which it does "
                f"not bring along); install FFmpeg with its shared libraries, {elsewhere}"
            ) from error
        if reader == "nvdec":
            reason = in_words(error).splitlines()[0]
            raise ConfigError(
                f"data.reader=nvdec: TorchCodec cannot decode on the GPU: {reason}; {elsewhere}"
            ) from error


def small_video() -> bytes:
    """An H.264 file of one frame of 256 x 256 pixels, as any decoder reads it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((256, 256, 3), dtype=np.uint8))
        container.mux([*stream.encode(frame), *stream.encode()])
    return file.getvalue()


WHOLE_FILE = {"decord": decord_reader, "torchcodec": torchcodec_reader, "nvdec": nvdec_reader}
