"""What is not decoded is missed by nobody: frames and damage are those of reading everything."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from adatad_ds.data.decoding.frames import find_lost, read_frames, upright
from adatad_ds.data.decoding.sparing import sparingly_decoded
from adatad_ds.data.decoding.units import Units
from adatad_ds.data.decoding.video import index_of
from tests.support.videos import frame_numbers, scramble_packet, write_video

FRAMES = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparing")


def left_out(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        units = Units.of(stream)
        assert units is not None
        return sum(units.unreferenced(bytes(packet)) for packet in container.demux(stream) if packet.size)


@pytest.mark.parametrize(("suffix", "b_frames"), [(".mp4", 0), (".mp4", 2), (".mp4", 4), (".mkv", 4), (".ts", 2)])
def test_wanted_frames_are_the_same(folder: Path, suffix: str, b_frames: int):
    path = write_video(folder / f"b{b_frames}{suffix}", frames=FRAMES, b_frames=b_frames, gop=40)
    assert (left_out(path) > FRAMES / 4) == (b_frames > 0)
    index = index_of(path)
    with av.open(str(path)) as container:
        whole = np.stack([upright(frame) for frame in container.decode(video=0)])
    for wanted in (np.arange(0, FRAMES, 4), np.array([3, 3, 57, 62, 70, 70, 99]), np.arange(45, 90, 6)):
        found = list(sparingly_decoded(path, index, wanted, num_threads=1))
        if not found:
            assert (suffix, wanted[0]) == (".ts", 45), "there, seeking goes too far, and everything is read"
            continue
        assert [count for _, count in found] == np.unique(wanted, return_counts=True)[1].tolist()
        np.testing.assert_array_equal(np.stack([upright(frame) for frame, _ in found]), whole[np.unique(wanted)])


@pytest.mark.parametrize("packet", [30, 31, 32])
def test_damage_is_told_as_by_reading_everything(folder: Path, packet: int):
    whole = write_video(folder / "whole.mp4", frames=FRAMES)
    path = scramble_packet(whole, folder / f"noise{packet}.mp4", packet=packet)
    alone = find_lost(path)
    lost: set[int] = set()
    wanted = np.arange(0, FRAMES, 4)
    frames = read_frames(path, wanted, short_side=96, scaling="bilinear", backend="pyav", lost=lost)
    wrong = {int(number) for number in wanted[frame_numbers(frames) != wanted]}
    assert wrong <= lost
    assert lost in (alone, set()), "unless only frames are lost that no frame refers to, and nobody wants"
    assert lost or len(alone) == 1


@pytest.mark.parametrize("packet", [2, 12, 18])
def test_a_picture_that_comes_out_wrong_is_told_though_nobody_wants_it(folder: Path, packet: int):
    """All later ones up to the next keyframe lean on it, and the decoder flags none of them."""
    whole = write_video(folder / "forward.mp4", frames=FRAMES, b_frames=0, gop=40)
    path = scramble_packet(whole, folder / f"half{packet}.mp4", packet=packet, spared=0.5)
    lost: set[int] = set()
    wanted = np.arange(0, FRAMES, 4)
    frames = read_frames(path, wanted, short_side=96, scaling="bilinear", backend="pyav", lost=lost)
    wrong = {int(number) for number in wanted[frame_numbers(frames) != wanted]}
    assert wrong <= lost
    assert lost == find_lost(path)


def test_nothing_is_left_out_where_everything_is_wanted(folder: Path):
    path = write_video(folder / "dense.mp4", frames=20)
    assert not list(sparingly_decoded(path, index_of(path), np.arange(20), num_threads=1))
