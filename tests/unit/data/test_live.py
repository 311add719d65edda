"""Live videos: the windows of the same video as a file, whatever the stream does on its way."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.live.pictures import Began, Ended, Picture, StreamEvent, live_events
from adatad_ds.data.live.source import LiveSource
from adatad_ds.data.live.windows import LiveWindow, live_windows
from adatad_ds.data.window_stream import lone_video, stream_batches, windows_of_file
from tests.support.videos import frame_numbers, write_elementary, write_late, write_textured, write_video

FRAMES, FPS = 131, 10
BASE = DataConfig(window_size=16, feature_stride_frames=2, resolution=32, short_side_before_crop=40, workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    for name in ("even.mp4", "even.ts", "even.mkv"):
        write_video(folder / name, frames=FRAMES, fps=FPS)
    write_video(folder / "short.ts", frames=5, fps=FPS)
    write_video(folder / "exact.ts", frames=64, fps=FPS)
    write_late(folder / "late.ts", frames=FRAMES, late_sec=3.0)
    write_elementary(folder / "plain.h264", frames=FRAMES, fps=FPS)
    return folder


def watched(source: LiveSource, config: DataConfig = BASE) -> list:
    closed = Event()
    try:
        return list(live_windows(live_events(source, config, closed=closed), config, name="live"))
    finally:
        closed.set()


def check_windows(items: list, path: Path, config: DataConfig) -> None:
    """The same frames, valid steps and times as of the file."""
    video = lone_video(path, name="live")
    right = list(stream_batches(video, path, windows_of_file(video, path, config), config=config, batch=1))
    found = [item for item in items if isinstance(item, LiveWindow)]
    assert len(found) == len(right) > 0
    for window, batch in zip(found, right, strict=True):
        assert torch.equal(window.batch.frames, batch.frames)
        assert torch.equal(window.batch.valid, batch.valid)
        (mine,), (grid,) = window.batch.grids, batch.grids
        assert (mine.origin_sec, mine.step_sec) == (grid.origin_sec, grid.step_sec)
    (ended,) = [item for item in items if isinstance(item, Ended)]
    assert ended.end_sec == pytest.approx(right[-1].grids[0].duration_sec, abs=1e-9)


def events_of(items: list) -> list[str]:
    return [item.kind for item in items if isinstance(item, StreamEvent)]


@pytest.mark.parametrize("name", ["even.mp4", "even.ts", "even.mkv", "short.ts", "exact.ts", "late.ts", "plain.h264"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"test_window_overlap": 0.75, "frames_per_feature": 2, "feature_stride_frames": 2},
        {"fixed_fps": 7.0, "offset_frames": 3},
    ],
    ids=["half", "three_quarters", "fixed_fps"],
)
def test_the_windows_are_those_of_the_file(folder: Path, name: str, changes: dict):
    config = replace(BASE, **changes)
    items = watched(LiveSource(address=str(folder / name), idle_sec=0), config)
    check_windows(items, folder / name, config)
    assert events_of(items) == []


@pytest.mark.slow
def test_a_file_that_grows_and_a_pipe(folder: Path, tmp_path: Path):
    content = (folder / "even.ts").read_bytes()
    growing, pipe = tmp_path / "growing.ts", tmp_path / "pipe"
    growing.write_bytes(b"")
    os.mkfifo(pipe)

    def feed(path: Path) -> None:
        with path.open("ab", buffering=0) as file:
            for begin in range(0, len(content), len(content) // 7):
                file.write(content[begin : begin + len(content) // 7])
                time.sleep(0.15)

    for path in (growing, pipe):
        feeder = threading.Thread(target=feed, args=(path,))
        feeder.start()
        items = watched(LiveSource(address=str(path), idle_sec=2.0, reconnect_sec=0))
        feeder.join()
        check_windows(items, folder / "even.ts", BASE)


@contextmanager
def served(*answers: tuple[bytes, float, int]) -> Iterator[str]:
    """An address that gives each answer once: its bytes, a pause in seconds before so many bytes; then nothing."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not left:
                self.send_error(404)
                return
            content, pause, at = left.pop(0)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[:at])
            self.wfile.flush()
            time.sleep(pause)
            self.wfile.write(content[at:])

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stream.ts"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_stream_that_stutters_breaks_off_and_comes_back_smaller(tmp_path: Path):
    content = write_video(tmp_path / "first.ts", frames=66, fps=FPS).read_bytes()
    write_video(tmp_path / "small.ts", frames=40, fps=FPS, width=160, height=64)
    stutter = (content, 3.0, len(content) * 3 // 4 // 188 * 188)
    with served(stutter, ((tmp_path / "small.ts").read_bytes(), 0.0, 0)) as address:
        since = time.monotonic()
        items = watched(LiveSource(address=address, idle_sec=4.0, reconnect_sec=2.0))
        took = time.monotonic() - since
    assert events_of(items) == ["stalled", "lost", "lost", "gone"]
    second = [isinstance(item, Began) for item in items].index(True, 1)
    check_windows(items[:second], tmp_path / "first.ts", BASE)
    first_end = next(item for item in items if isinstance(item, Ended))
    began = items[second]
    assert 0.3 < began.begin_sec - first_end.end_sec < took - 3.0  # the time it was away, without the stutter
    assert sum(isinstance(item, LiveWindow) for item in items[second:]) == 2


def test_lost_frames_leave_the_others_in_their_places_and_jumps_begin_anew(tmp_path: Path):
    times = [frame / FPS + (2.0 if frame >= 30 else 0) + (100.0 if frame >= 60 else 0) for frame in range(90)]
    path = write_video(tmp_path / "jumps.mkv", frames=90, times=times, b_frames=0, width=96, height=96)
    events = list(live_events(LiveSource(address=str(path), idle_sec=0), replace(BASE, resolution=96), closed=Event()))
    assert events_of(events) == ["gap", "jump"]
    (first, second), ends = [e for e in events if isinstance(e, Began)], [e for e in events if isinstance(e, Ended)]
    assert [end.num_frames for end in ends] == [80, 30]
    assert second.begin_sec >= ends[0].end_sec
    assert second.first_sec < ends[0].end_sec + 5  # not the 100 s that its clock says
    pictures = np.stack([e.pixels.numpy() for e in events if isinstance(e, Picture)])
    lost = [29] * 5 + [30] * 5  # nearest in time
    numbers = [*range(0, 30, 2), *lost, *range(30, 60, 2)[: 40 - 15 - 10], *range(60, 90, 2)]
    assert len(pictures) == 40 + 15
    assert frame_numbers(pictures, width=96).tolist() == [number % 64 for number in numbers]
    assert first.begin_sec == 0


def test_a_change_of_size_is_told_and_pictures_go_on(tmp_path: Path):
    large = write_elementary(tmp_path / "large.h264", frames=40, fps=FPS)
    small = write_elementary(tmp_path / "small.h264", frames=40, fps=FPS, width=128, height=64)
    (tmp_path / "sizes.h264").write_bytes(large.read_bytes() + small.read_bytes())
    items = watched(LiveSource(address=str(tmp_path / "sizes.h264"), idle_sec=0))
    assert events_of(items) == ["size"]
    (ended,) = [item for item in items if isinstance(item, Ended)]
    assert ended.num_frames == 80


def test_a_stream_that_is_left_ends_its_thread(folder: Path):
    """Also while it waits for room: nobody takes the pictures any more."""

    def reading() -> bool:
        return any(thread.name == "live video" for thread in threading.enumerate())

    closed, config = Event(), replace(BASE, window_size=2, feature_stride_frames=1)
    events = live_events(LiveSource(address=str(folder / "even.ts"), idle_sec=0), config, closed=closed)
    assert isinstance(next(events), Began)
    time.sleep(0.3)  # until there is no more room
    assert reading()
    events.close()
    closed.set()
    deadline = time.monotonic() + 20
    while reading() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading()


def test_few_pictures_are_held():
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def events() -> Iterator:
        nonlocal alive, most
        yield Began(begin_sec=0.0, first_sec=0.0, fps=10.0)
        for _ in range(2000):
            pixels = torch.zeros(4, 4, 3, dtype=torch.uint8)
            weakref.finalize(pixels, gone)
            alive += 1
            most = max(most, alive)
            yield Picture(pixels=pixels, arrived=0.0)
            del pixels
        yield Ended(end_sec=400.0, num_frames=4000)

    windows = sum(isinstance(item, LiveWindow) for item in live_windows(events(), BASE, name="live"))
    assert windows == 249
    assert most <= 16 + 8 + 2  # a window, the step to the next, and those on their way


def test_an_mp4_with_its_index_at_its_end_cannot_be_piped(tmp_path: Path):
    video = write_textured(tmp_path / "a.mp4", frames=30, width=320, height=240)
    os.mkfifo(tmp_path / "pipe")
    feeder = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(video.read_bytes()))
    feeder.start()
    with pytest.raises(VideoError, match="index at its end cannot be read from a pipe, MPEG-TS or Matroska can"):
        watched(LiveSource(address=str(tmp_path / "pipe"), idle_sec=2.0, reconnect_sec=0))
    feeder.join()


def test_what_is_no_stream_is_an_error(tmp_path: Path):
    (tmp_path / "no.ts").write_text("no video")
    for address in (str(tmp_path / "none.ts"), str(tmp_path / "no.ts"), "http://127.0.0.1:9/x"):
        with pytest.raises(VideoError, match=address):
            watched(LiveSource(address=address, idle_sec=0.2))
    secret = LiveSource(address="rtsp://me:secret@127.0.0.1:9/cam", idle_sec=0.2)
    with pytest.raises(VideoError) as failed:
        watched(secret)
    assert "secret" not in str(failed.value)


def test_reading_ends_when_nobody_wants_more(folder: Path):
    closed, threads = Event(), threading.active_count()
    events = live_events(LiveSource(address=str(folder / "even.ts"), idle_sec=60), BASE, closed=closed)
    assert isinstance(next(events), Began)
    closed.set()
    deadline = time.monotonic() + 60
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == threads
