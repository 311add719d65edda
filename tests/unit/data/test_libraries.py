"""Libraries that load FFmpeg, each its own, work together in one process."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from adatad_ds.data.generated.videos import generator, make_video, write_video

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
