"""Video reading: exact frames from real files, whole, damaged and lying ones; nothing may hang."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest

from adatad_ds.data.decoding import frames
from adatad_ds.data.decoding.video import VideoError, frames_at, probe
from adatad_ds.data.video_files import find_videos
from adatad_ds.errors import DataError
from tests.support.videos import cut, frame_numbers, numbered_frame, overstate_frames, scramble_packet, write_video

read_frames = partial(frames.read_frames, scaling="antialias")

BACKENDS = ("torchcodec", "decord", "pyav")
FRAMES = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def h264(folder: Path) -> Path:
    return write_video(folder / "h264.mp4", frames=FRAMES)


@pytest.fixture(scope="module")
def mpeg4(folder: Path) -> Path:
    return write_video(folder / "mpeg4.avi", frames=FRAMES, codec="mpeg4", b_frames=0)


@pytest.fixture(scope="module")
def guarded() -> Iterator[ProcessPoolExecutor]:
    """Another process that reads, since a dead-locked decoder cannot be interrupted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


def numbers_read(guarded: ProcessPoolExecutor, path: Path, indices: list[int], *, backend: str) -> list[int]:
    return frame_numbers(frames_read(guarded, path, indices, backend=backend)).tolist()


def frames_read(guarded: ProcessPoolExecutor, path: Path, indices: list[int], *, backend: str) -> frames.Frames:
    reading = guarded.submit(read_frames, path, np.array(indices), short_side=96, backend=backend)
    try:
        return reading.result(timeout=60)
    except TimeoutError:
        for process in multiprocessing.active_children():
            process.kill()  # else the executor would wait for it
        raise


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["h264", "mpeg4"])
@pytest.mark.parametrize(
    "indices",
    [[0], [99], list(range(100)), [3, 3, 3, 50, 50, 99, 99], [37, 38, 61], list(range(11, 100, 7)), [98, 99, 100, 500]],
)
def test_frames_are_the_ones_asked_for(request, name: str, backend: str, indices: list[int]):
    frames = read_frames(request.getfixturevalue(name), np.array(indices), short_side=96, backend=backend)
    assert frames.shape == (len(indices), 96, 176, 3)
    assert frame_numbers(frames).tolist() == [min(index, FRAMES - 1) for index in indices]


@pytest.mark.parametrize(
    ("codec", "suffix", "b_frames"), [("libx264", ".mkv", 2), ("mpeg4", ".mp4", 2), ("libvpx-vp9", ".webm", 0)]
)
def test_other_containers(folder: Path, codec: str, suffix: str, b_frames: int):
    path = write_video(folder / f"{codec}{suffix}", frames=60, codec=codec, b_frames=b_frames)
    assert probe(path).num_frames == 60
    for first in range(0, 60, 5):  # every seek lands exactly
        wanted = np.arange(first, min(first + 9, 60))
        assert frame_numbers(read_frames(path, wanted, short_side=96, backend="pyav")).tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ["h264", "mpeg4"])
@pytest.mark.parametrize("short_side", [48, 96, 131])
def test_backends_agree(request, name: str, short_side: int):
    path, wanted = request.getfixturevalue(name), np.arange(0, 100, 3)
    others = [read_frames(path, wanted, short_side=short_side, backend=backend) for backend in BACKENDS]
    pyav = others.pop()
    assert pyav.shape == (34, short_side, round(176 * short_side / 96), 3)
    for other in others:
        np.testing.assert_array_equal(other, pyav)


@pytest.mark.parametrize("backend", BACKENDS)
def test_content_and_portrait(folder: Path, backend: str):
    path = write_video(folder / "portrait.mp4", frames=8, width=96, height=176)
    frames = read_frames(path, np.arange(8), short_side=48, backend=backend)
    assert frames.shape == (8, 88, 48, 3)
    shown = read_frames(path, np.array([5]), short_side=96, backend=backend)[0]
    assert np.abs(shown.astype(int) - numbered_frame(5, width=96, height=176)).mean() < 12


def test_probe(h264: Path):
    info = probe(h264)
    assert (info.num_frames, info.fps, info.width, info.height, info.duration_sec) == (FRAMES, 10.0, 176, 96, 10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotated_by_metadata(h264: Path, folder: Path, backend: str):
    path = folder / "rotated.mp4"
    with av.open(str(h264)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip(f"PyAV {av.__version__} writes no rotation")
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert (probe(path).width, probe(path).height) == (96, 176)
    upright = read_frames(path, np.arange(5), short_side=96, backend=backend)
    plain = read_frames(h264, np.arange(5), short_side=96, backend="pyav")
    assert upright.shape == (5, 176, 96, 3)
    turned = min((np.abs(np.rot90(plain, k, axes=(1, 2)).astype(int) - upright).mean(), k) for k in (1, 3))
    assert turned[0] < 2
    assert turned[1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_start_hidden_by_an_edit_list(guarded: ProcessPoolExecutor, h264: Path, folder: Path, backend: str):
    """As `ffmpeg -ss` without re-encoding leaves it: packets before the start are there, but not shown."""
    path = folder / "edited.mp4"
    with av.open(str(h264)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                shift = int(1.7 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    shown = FRAMES - 17
    assert probe(path).num_frames == shown
    assert numbers_read(guarded, path, [0, 1, 30, 82, 90], backend=backend) == [17, 18, 47, 99, 99]


@pytest.mark.parametrize("backend", BACKENDS)
def test_start_without_a_keyframe(guarded: ProcessPoolExecutor, h264: Path, folder: Path, backend: str):
    """As a recording that was joined in the middle: what comes before the first keyframe cannot be decoded."""
    path = folder / "joined.mp4"
    with av.open(str(h264)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][5:]
        shift = packets[0].dts
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            target.mux(packet)
    numbers = numbers_read(guarded, path, list(range(95)), backend=backend)
    lost = numbers.count(12) - 1  # frame 12 is the first keyframe, and stands for those before it
    assert 5 <= lost <= 8
    assert numbers == [12] * lost + list(range(12, 12 + 95 - lost))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cut_file_repeats_its_last_frame(guarded: ProcessPoolExecutor, h264: Path, folder: Path, backend: str):
    path = cut(h264, folder / "cut.mp4", share=0.6)
    found = probe(path).num_frames
    assert 20 < found < 90
    numbers = numbers_read(guarded, path, [0, 10, 98, 99], backend=backend)
    assert numbers[:2] == [0, 10]
    assert found - 5 < numbers[2] == numbers[3] <= found + 2
    assert (
        numbers_read(guarded, path, [95, 99], backend=backend) == numbers[2:]
    )  # also when the seek lands in the damage


@pytest.mark.parametrize("backend", BACKENDS)
def test_header_that_promises_too_much(guarded: ProcessPoolExecutor, mpeg4: Path, folder: Path, backend: str):
    path = overstate_frames(mpeg4, folder / "overstated.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 10 * FRAMES
    assert probe(path).num_frames == FRAMES
    assert numbers_read(guarded, path, [0, 50, 99, 400, 999], backend=backend) == [0, 50, 99, 99, 99]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packet", [0, 12, 30, 99])
def test_damaged_packet(guarded: ProcessPoolExecutor, h264: Path, folder: Path, backend: str, packet: int):
    path = scramble_packet(h264, folder / f"damaged_{packet}.mp4", packet=packet)
    numbers = numbers_read(guarded, path, list(range(100)), backend=backend)
    wrong = [index for index, number in enumerate(numbers) if index != number]
    assert 1 <= len(wrong) <= 12 + 2  # a group of pictures and the B-frames that lean on it, no more
    assert max(abs(index - packet) for index in wrong) <= 14


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_decodes(guarded: ProcessPoolExecutor, h264: Path, folder: Path, backend: str):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    content = h264.read_bytes()
    payload = content.index(b"mdat") + 4
    (folder / "zeros.mp4").write_bytes(content[:payload] + bytes(len(content) - payload))
    causes = {"empty": "empty", "text": "Invalid data", "zeros": "can be decoded", "absent": "No such file"}
    for name, cause in causes.items():
        with pytest.raises(VideoError) as error:
            frames_read(guarded, folder / f"{name}.mp4", [0, 5], backend=backend)
        assert f"{name}.mp4: " in str(error.value)
        assert cause in str(error.value)
        assert "\n" not in str(error.value)


def test_sound_only(folder: Path):
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


def test_a_replaced_file_is_read_anew(folder: Path):
    path = write_video(folder / "replaced.mp4", frames=10)
    assert probe(path).num_frames == 10
    write_video(path, frames=20)
    assert probe(path).num_frames == 20


def test_find_videos(tmp_path: Path):
    with pytest.raises(DataError, match="there is no folder"):
        find_videos(tmp_path / "absent", ["a"])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="holds no video"):
        find_videos(tmp_path, ["a"])
    for name in ("a.mp4", "b.c.MKV", "v_d.webm", "a.avi"):
        (tmp_path / name).touch()
    found = find_videos(tmp_path, ["a", "b.c", "d"])
    assert {name: path.name for name, path in found.items()} == {"a": "a.mp4", "b.c": "b.c.MKV", "d": "v_d.webm"}
    with pytest.raises(DataError) as caught:
        find_videos(tmp_path, ["a", *(f"m{i}" for i in range(12))])
    for part in ("12 of 13", str(tmp_path), "m0, m1", "m9, and 2 more", "data.exclude="):
        assert part in str(caught.value)
    assert "m10" not in str(caught.value)


UNEVEN = [*(0.1 * i for i in range(20)), *(2.0 + 0.25 * i for i in range(20)), *(7.0 + 0.04 * i for i in range(20))]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_variable_frame_rate(folder: Path, suffix: str, b_frames: int):
    path = write_video(folder / f"uneven{b_frames}{suffix}", frames=60, times=UNEVEN, b_frames=b_frames)
    assert not probe(path).even
    seconds = np.linspace(0, 7.8, 157) + 1e-4  # no ties
    nearest = np.abs(seconds[:, None] - np.array(UNEVEN)).argmin(axis=1)
    assert frames_at(path, seconds).tolist() == nearest.tolist()
    shown = read_frames(path, frames_at(path, seconds), short_side=96, backend="decord")
    assert frame_numbers(shown).tolist() == nearest.tolist()


@pytest.mark.slow
def test_even_frames_are_where_they_are_counted(h264: Path, mpeg4: Path):
    for path in (h264, mpeg4):
        info = probe(path)
        assert info.even
        counted = np.arange(info.num_frames)
        assert frames_at(path, counted / info.fps).tolist() == counted.tolist()
        assert frames_at(path, np.array([-1.0, 1e6])).tolist() == [0, info.num_frames - 1]
