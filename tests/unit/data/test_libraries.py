"""Libraries that load FFmpeg, each its own, work together in one process."""

from __future__ import annotations

import importlib.util
import io
import itertools
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.decoding.libraries import check_reader, nvdec_reader, small_video
from adatad_ds.data.decoding.video import probe
from adatad_ds.data.generated.videos import generator, make_video, write_video
from adatad_ds.errors import ConfigError

FIRST_FRAME = {
    "av": "import av; print(next(av.open(path).decode(video=0)).to_ndarray(format='rgb24').shape)",
    "decord": "import decord; print(decord.VideoReader(path)[0].asnumpy().shape)",
    # No requirement. It has no FFmpeg of its own, and says so when it is to decode where the system has none.
    "torchcodec": (
        "from torchcodec.decoders import VideoDecoder\n"
        "try: print(tuple(VideoDecoder(path, dimension_order='NHWC')[0].shape))\n"
        "except RuntimeError as error: assert 'Could not load libtorchcodec' in str(error); print(shape)"
    ),
}
INSTALLED = [name for name in FIRST_FRAME if importlib.util.find_spec(name)]


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(INSTALLED)), ids="-".join)
def test_decoders_beside_each_other(order: tuple[str, ...], tmp_path: Path):
    video = make_video(generator("test", 0, 0))
    write_video(video, tmp_path / "video.mp4")
    shape = next(iter(video.frames())).shape
    lines = [f"path, shape = {str(tmp_path / 'video.mp4')!r}, {shape}"]
    lines += [FIRST_FRAME[name] for name in (*order, *order)]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(shape)] * 2 * len(order)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nvdec_needs_a_gpu_and_torchcodec():
    what = "there is none" if "torchcodec" in INSTALLED else "TorchCodec is not installed"
    with av.open(io.BytesIO(small_video())) as container:  # what it is tried with
        assert [(frame.height, frame.width) for frame in container.decode(video=0)] == [(256, 256)]
    with pytest.raises(ConfigError, match=f"data.reader=nvdec.*{what}.*or use --set data.reader=auto"):
        check_reader("nvdec")


@pytest.mark.skipif("torchcodec" not in INSTALLED or not torch.cuda.is_available(), reason="no GPU, or no TorchCodec")
def test_nvdec_gives_pyavs_frames(tmp_path: Path):
    """The same frames; colours are converted on the GPU, and may be rounded in another way."""
    check_reader("nvdec")
    path = tmp_path / "video.mp4"
    write_video(make_video(generator("test", 0, 0)), path)
    info, indices = probe(path), np.array([0, 1, 7, 30, 31])
    read = nvdec_reader(path, info, num_threads=1)
    assert read is not None
    expected = read_frames(path, indices, short_side=min(info.height, info.width), scaling="bilinear", backend="pyav")
    difference = np.abs(read(indices).astype(int) - expected)
    assert difference.mean() < 1
    assert difference.max() <= 8
