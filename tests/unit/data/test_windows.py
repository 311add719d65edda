"""Windows: coverage, seconds and grid, and which actions count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Action, Video
from adatad_ds.data.windows import Timing, WindowSource, random_trunc_window, resize_window, sliding_windows
from adatad_ds.detection.timegrid import TimeGrid

LABELS = {"run": 0, "jump": 1}


def config(**changes) -> DataConfig:
    return DataConfig(**({"window_size": 16, "feature_stride_frames": 4, "crop_ratio": None} | changes))


def video(*actions: tuple[float, float, str], duration_sec: float = 40.0) -> Video:
    return Video("v", "training", duration_sec, None, None, tuple(Action(*action) for action in actions))


def cut_from(film: Video, cfg: DataConfig, *, num_frames: int, fps: float, video_index: int = 3) -> WindowSource:
    timing = Timing(num_frames=num_frames, fps=fps)
    return WindowSource(video=film, video_index=video_index, timing=timing, config=cfg, label_ids=LABELS)


def draw(film: Video, cfg: DataConfig, *, num_frames: int, fps: float, seed: int = 0):
    return random_trunc_window(cut_from(film, cfg, num_frames=num_frames, fps=fps), rng=np.random.default_rng(seed))


def slide(film: Video, cfg: DataConfig, *, num_frames: int, fps: float):
    return sliding_windows(cut_from(film, cfg, num_frames=num_frames, fps=fps))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    num_frames=st.integers(1, 900),
    window_size=st.integers(1, 24),
    per_feature=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 2, 3]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99]),
)
def test_sliding_windows_cover_every_frame(num_frames, window_size, per_feature, stride, overlap):
    cfg = config(
        window_size=window_size,
        frames_per_feature=per_feature,
        feature_stride_frames=stride * per_feature,
        test_window_overlap=overlap,
    )
    fps = 10.0
    windows = slide(video(duration_sec=num_frames / fps), cfg, num_frames=num_frames, fps=fps)
    seen, ends = set(), []
    for window in windows:
        assert window.frame_indices.shape == (cfg.window_frames,)
        assert 1 <= window.valid_steps <= window_size
        assert (np.diff(window.frame_indices) >= 0).all()
        assert 0 <= window.frame_indices[0] <= window.frame_indices[-1] < num_frames
        seen |= set(window.frame_indices[: window.valid_steps * per_feature].tolist())
        assert np.isclose(window.grid.to_sec(0.0) * fps, window.frame_indices[0])
        ends.append(window.grid.to_sec(float(window.valid_steps)) * fps)
    assert seen == set(range(0, num_frames, stride))
    assert ends == sorted(ends)
    assert ends[-1] >= num_frames - 1e-6
    assert len({window.frame_indices[0] for window in windows}) == len(windows)
    if num_frames > cfg.window_frames * stride:  # the last one ends at the video's end, and is full
        assert windows[-1].valid_steps == window_size


def test_sliding_windows_by_hand():
    windows = slide(video((3.2, 6.4, "run"), (0.1, 8.0, "jump")), config(), num_frames=100, fps=10.0)
    assert [window.frame_indices[0] for window in windows] == [0, 32, 36]  # 25 steps, hop 8, the last from 25 - 16
    first, second, _ = windows
    assert first.frame_indices.tolist() == list(range(0, 64, 4))
    assert first.valid_steps == 16
    np.testing.assert_allclose(first.segments_grid, [[8, 16], [0.25, 16]], rtol=1e-6)  # 6.3 of 7.9 s lie inside
    assert first.labels.tolist() == [0, 1]
    np.testing.assert_allclose(second.segments_grid, [[0, 8]], atol=1e-6)
    assert second.video_index == 3


def test_short_video_is_padded():
    (window,) = slide(video((0.0, 2.0, "run"), duration_sec=3.0), config(), num_frames=30, fps=10.0)
    assert window.valid_steps == 8
    assert window.frame_indices.tolist() == [0, 4, 8, 12, 16, 20, 24, 28] + [28] * 8


def test_offset_moves_the_grid():
    (window,) = slide(video((2.0, 4.0, "run")), config(offset_frames=8), num_frames=60, fps=10.0)
    assert window.grid.to_sec(0.0) == pytest.approx(0.8)  # (grid * stride + start + offset) / fps
    np.testing.assert_allclose(window.segments_grid, [[3, 8]], rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_frames=st.integers(1, 600),
    per_feature=st.sampled_from([1, 2]),
    crop_ratio=st.sampled_from([None, (0.9, 1.0), (0.1, 0.5)]),
    times=st.lists(st.tuples(st.floats(0, 0.99), st.floats(0.01, 1)), max_size=4),
)
@example(seed=0, num_frames=62, per_feature=1, crop_ratio=(0.1, 0.5), times=[])  # just as long as a window
def test_random_windows_hold_what_they_say(seed, num_frames, per_feature, crop_ratio, times):
    fps, cfg = 12.5, config(frames_per_feature=per_feature, crop_ratio=crop_ratio)
    duration = num_frames / fps
    film = video(*((s * duration, min(s + e, 1.0) * duration, "run") for s, e in times), duration_sec=duration)
    window = draw(film, cfg, num_frames=num_frames, fps=fps, seed=seed)
    slots = -(-num_frames // cfg.frame_stride)
    real = len(set(window.frame_indices.tolist()))
    assert window.frame_indices.shape == (cfg.window_frames,)
    assert (np.diff(window.frame_indices)[: real - 1] == cfg.frame_stride).all()
    assert window.frame_indices[-1] < num_frames
    assert window.valid_steps == -(-real // per_feature)
    low, high = crop_ratio or (1.0, 1.0)
    expected = (cfg.window_frames,) * 2 if slots > cfg.window_frames else (low * slots, high * slots)
    assert max(1, round(expected[0])) <= real <= max(1, round(expected[1]))
    end = real / per_feature
    for segment in window.segments_grid:
        assert 0 <= segment[0] < segment[1] <= end + 1e-4
    inside = [
        (min(window.grid.to_grid(a.end_sec), end) - max(window.grid.to_grid(a.start_sec), 0))
        / (window.grid.to_grid(a.end_sec) - window.grid.to_grid(a.start_sec))
        for a in film.actions
    ]
    assert len(window.segments_grid) == sum(share >= cfg.trunc_thresh for share in inside)


def test_random_windows_find_the_only_action():
    film = video((71.0, 73.0, "jump"), duration_sec=400.0)
    starts = set()
    for seed in range(20):  # a blind draw would meet it once in seventy
        window = draw(film, config(), num_frames=4000, fps=10.0, seed=seed)
        starts.add(window.frame_indices[0])
        assert window.labels.tolist() == [1]
        np.testing.assert_allclose(
            window.grid.to_sec(window.segments_grid.astype(np.float64)),
            np.clip([[71.0, 73.0]], window.grid.to_sec(0.0), window.grid.to_sec(16.0)),
            atol=1e-4,
        )
    assert len(starts) > 10


def test_an_action_of_which_just_enough_fits_is_found():
    """Twice as long as a window: half of it lies inside if all of the window shows it."""
    film = video((80.0, 96.0, "jump"), duration_sec=500.0)
    found = [draw(film, config(trunc_thresh=0.5), num_frames=4000, fps=8.0, seed=seed).labels for seed in range(10)]
    assert sum(labels.tolist() == [1] for labels in found) > 7  # a blind draw would meet it once in sixty


class Drawn:
    """Draws a given length, and always the same start."""

    def __init__(self, *, length: int, start: int) -> None:
        self.length, self.start = length, start

    def integers(self, low: int, high: int, *, endpoint: bool, size: int | None = None) -> object:
        return self.length if size is None else np.full(size, self.start)


LONG = ((3.0, 5.0), (6.2, 6.8), (9.0, 11.0))  # s, of a video of 40 steps
SHORT = ((0.0, 1.0), (1.2, 2.0), (4.0, 4.8))  # of one of 12


@pytest.mark.parametrize(
    ("margin_steps", "steps", "length", "start", "times", "segments"),
    [
        # what truncate_feats of ActionFormer makes of them with an offset of 2 steps
        (2.0, 40, 16, 8, LONG, [[-2, 2.5], [5.5, 7], [12.5, 17.5]]),
        (2.0, 12, 11, 0, SHORT, [[-2, 0.5], [1, 3], [8, 10]]),
        (2.0, 12, 11, 1, SHORT, [[-2, -0.5], [0, 2], [7, 9]]),
        (2.0, 12, 12, 0, SHORT, [[-2, 0.5], [1, 3], [8, 10]]),
        # and TriDet's, which knows no offset, but leaves a whole video as it is
        (0.0, 40, 16, 8, LONG, [[5.5, 7], [12.5, 16]]),
        (0.0, 12, 11, 0, SHORT, [[1, 3], [8, 10]]),
        (0.0, 12, 11, 1, SHORT, [[0, 2], [7, 9]]),
        (0.0, 12, 12, 0, SHORT, [[-2, 0.5], [1, 3], [8, 10]]),
    ],
)
def test_actions_reach_beyond_the_ends_of_a_window(margin_steps, steps, length, start, times, segments):
    """10 frames a second, 4 a step, of which the first lies at frame 8."""
    cfg = config(margin_steps=margin_steps, offset_frames=8, trunc_thresh=0.6, crop_ratio=(0.9, 1.0))
    film = video(*((begin, end, "run") for begin, end in times), duration_sec=steps * 0.4)
    source = cut_from(film, cfg, num_frames=steps * 4, fps=10.0)
    rng = Drawn(length=length, start=start)
    window = random_trunc_window(source, rng=rng)  # pyright: ignore[reportArgumentType]
    assert window.frame_indices[0] == 4 * start
    np.testing.assert_allclose(window.segments_grid, segments, atol=1e-5)


def test_a_margin_counts_in_steps_of_several_frames():
    cfg = config(margin_steps=1.0, frames_per_feature=2, trunc_thresh=1.0)
    film = video((0.0, 2.0, "run"), duration_sec=40.0)
    found = {
        start: random_trunc_window(
            cut_from(film, cfg, num_frames=400, fps=10.0),
            rng=Drawn(length=32, start=start),  # pyright: ignore[reportArgumentType]
        ).segments_grid.tolist()
        for start in (1, 2, 3)
    }
    assert found == {1: [[-0.5, 4.5]], 2: [[-1.0, 4.0]], 3: []}


@pytest.mark.parametrize("actions", [(), ((0.0, 40.0, "run"),)], ids=["none", "too long for any window"])
def test_windows_without_positives(actions):
    window = draw(video(*actions), config(), num_frames=400, fps=10.0)
    assert window.segments_grid.shape == (0, 2)
    assert window.labels.shape == (0,)
    assert window.valid_steps == 16


def test_resize_samples_centres():
    cfg = config(sampling="resize", feature_stride_frames=None)
    film = video((10.0, 30.0, "jump"), (35.0, 40.0, "run"))
    window = resize_window(cut_from(film, cfg, num_frames=160, fps=4.0, video_index=1))
    assert window.frame_indices.tolist() == [round(10 * k + 4.5) for k in range(16)]
    assert window.valid_steps == 16
    np.testing.assert_allclose(window.segments_grid, [[4, 12], [14, 16]])
    assert window.labels.tolist() == [1, 0]
    assert window.grid.to_sec(16.0) == 40.0


def test_a_late_start_is_not_stretched_over():
    """Of 40 s the first 8 show nothing: 16 steps of 2 s, and what happens before the first is cut off."""
    cfg = config(sampling="resize", feature_stride_frames=None)
    film = video((4.0, 12.0, "jump"), (38.0, 41.0, "run"))
    source = cut_from(film, cfg, num_frames=64, fps=2.0)
    window = resize_window(replace(source, timing=replace(source.timing, start_sec=8.0)))
    assert (window.grid.to_sec(0.0), window.grid.to_sec(16.0)) == (8.0, 40.0)
    np.testing.assert_allclose(window.frame_sec, 8.75 + 2.0 * np.arange(16))
    np.testing.assert_allclose(window.segments_grid, [[0, 2], [15, 16]])


@given(num_frames=st.integers(1, 100))
def test_resize_of_any_length(num_frames: int):
    cfg = config(sampling="resize", feature_stride_frames=None, frames_per_feature=2)
    window = resize_window(cut_from(video(), cfg, num_frames=num_frames, fps=2.5))
    assert window.frame_indices.shape == (32,)
    assert (np.diff(window.frame_indices) >= 0).all()
    assert 0 <= window.frame_indices[0] <= window.frame_indices[-1] <= num_frames - 1
    assert abs(window.frame_indices[0] + window.frame_indices[-1] - (num_frames - 1)) <= 1  # symmetric


@given(
    start=st.floats(-1e4, 1e4),
    step=st.floats(1e-3, 1e3),
    times=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5),
)
def test_seconds_and_grid_are_exact_both_ways(start: float, step: float, times: list[float]):
    grid = TimeGrid(origin_sec=start, step_sec=step, duration_sec=1.0)
    values = np.array(times)
    assert np.allclose(grid.to_sec(grid.to_grid(values)), values, rtol=1e-9, atol=1e-9)
    assert np.allclose(grid.to_grid(grid.to_sec(values)), values, rtol=1e-9, atol=1e-9 + 1e-11 * abs(start) / step)
