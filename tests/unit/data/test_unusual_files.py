"""Intact files that players show as they should, though what packets say of their pictures misleads: right frames."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from adatad_ds.data.decoding.frames import read_frames
from adatad_ds.data.decoding.video import frames_at, index_of, probe
from tests.support.fields import write_fields
from tests.support.videos import frame_numbers, numbered_frame, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unusual")


def read(path: Path, wanted: np.ndarray, *, backend: str = "auto") -> np.ndarray:
    """The numbers of frames as they are read; none may be called lost."""
    lost: set[int] = set()
    pictures = read_frames(path, wanted, short_side=96, scaling="bilinear", backend=backend, lost=lost)
    assert not lost
    return frame_numbers(pictures)


def check_frames(path: Path, count: int, *, backend: str = "auto") -> None:
    """All, some, and some from the middle on."""
    assert probe(path).num_frames == count
    assert not probe(path).damage
    for wanted in (np.arange(count), np.arange(0, count, 7), np.arange(count // 2, count, 5)):
        assert read(path, wanted, backend=backend).tolist() == wanted.tolist()


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
def test_two_frames_at_one_time(folder: Path, suffix: str):
    """Containers that count milliseconds may round two times to one: the file keeps its variable rate."""
    rates = np.repeat([0.1, 0.25, 0.1], [50, 20, 50])
    times = np.cumsum(rates) - rates[0]
    path = write_video(folder / f"even{suffix}", frames=len(times), b_frames=0, times=times.tolist())
    twice = folder / f"twice{suffix}"
    with av.open(str(path)) as source, av.open(str(twice), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        packets[30].pts, packets[30].dts = packets[29].pts, packets[29].dts
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    assert probe(twice).duration_sec == pytest.approx(times[-1] + 0.1, abs=0.05)
    assert frames_at(twice, np.array([6.6, 14.0])).tolist() == frames_at(path, np.array([6.6, 14.0])).tolist()
    check_frames(twice, len(times))
    assert read(twice, np.array([29])).tolist() == [29]
    assert read(twice, np.array([30])).tolist() == [30]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_numbers_packets_not_pictures(folder: Path, codec: str):
    check_frames(write_video(folder / f"{codec}.avi", frames=60, codec=codec, b_frames=2), 60)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_two_fields_are_one_frame(folder: Path, suffix: str, paired: bool):
    path = write_fields(folder / f"fields{paired}{suffix}", frames=40, paired=paired)
    check_frames(path, 40)
    assert probe(path).fps == pytest.approx(25, rel=1e-3)
    assert probe(path).duration_sec == pytest.approx(1.6, abs=0.01)


LONE = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "open-gop=0:keyint=24:log-level=none"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
}
REACHED_ACROSS = {
    "libx264": {"preset": "veryfast", "x264-params": "open-gop=1"},
    "libx264 ": {"preset": "veryfast", "intra-refresh": "1"},
    "libx265": {"preset": "ultrafast", "x265-params": "open-gop=1:keyint=24:log-level=none"},
    "mpeg4": {"bf": "2"},
}


def coded(path: Path, codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec.strip(), rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 96, "yuv420p"
        stream.options = {"g": "24", **options}
        stream.codec_context.bit_rate = 2_000_000
        for index in range(240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", LONE)
def test_libraries_read_what_begins_anew_at_keyframes(folder: Path, codec: str):
    path = coded(folder / f"lone_{codec}.mp4", codec, LONE[codec])
    assert index_of(path).plain
    check_frames(path, 240, backend="decord")


@pytest.mark.slow
@pytest.mark.parametrize("codec", REACHED_ACROSS)
def test_where_pictures_reach_across_keyframes_they_are_not_asked(folder: Path, codec: str):
    """Decord is off by one to hundreds of frames there, and does not say so."""
    path = coded(folder / f"across_{codec}.mp4", codec, REACHED_ACROSS[codec])
    assert not index_of(path).plain
    for start in range(0, 200, 10):
        for step in (1, 8):
            wanted = np.arange(start, min(start + 12 * step, 240), step)
            assert read(path, wanted, backend="decord").tolist() == wanted.tolist()


MATRICES = {  # x, y is shown at a x + c y, b x + d y
    "left_right": ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    "upside_down": ((1, 0, 0, -1), lambda picture: picture[::-1]),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    "other_diagonal": ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).transpose(1, 0, 2)),
    "turned": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("backend", ["auto", "decord"])
def test_mirrored_and_turned(folder: Path, name: str, backend: str):
    (a, b, c, d), shown = MATRICES[name]
    path = folder / f"{name}.mp4"
    content = bytearray(write_video(path, frames=3).read_bytes())
    track = content.index(b"tkhd") + 4 + 40  # the track's matrix, in its header
    assert content[track : track + 4] == struct.pack(">i", 2**16)
    content[track : track + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))
    expected = shown(numbered_frame(1)).astype(int)
    assert (probe(path).height, probe(path).width) == expected.shape[:2]
    (picture,) = read_frames(path, np.array([1]), short_side=96, scaling="bilinear", backend=backend)
    assert np.abs(picture - expected).mean() < 4
