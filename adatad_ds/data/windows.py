"""Windows of a video: the frames that they show, and the actions on their feature grid.

F frames of a window, T feature steps (F = T * frames_per_feature), G actions of a window. A window's frames are
`stride` file frames apart; they are counted in "slots": slot k is file frame k * stride.

All seconds are on a player's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Video
from adatad_ds.data.decoding.video import VideoError, VideoInfo, frames_at, probe
from adatad_ds.detection.timegrid import TimeGrid

TRIES = 200  # random windows to try until one contains an action
TOLERANCE = 0.05  # relative, between a file and its annotation


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Number and times of a video's frames, by which its windows are cut.

    Attributes:
        num_frames: number of frames.
        fps: frames per second.
        start_sec: when the first frame is shown.
    """

    num_frames: int
    fps: float
    start_sec: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowSource:
    """A video and what its windows depend on.

    Attributes:
        video: its duration and actions.
        video_index: which video, in the caller's list; copied into the windows.
        timing: of its frames.
        config: window length, strides, thresholds.
        label_ids: class index of every label.
    """

    video: Video
    video_index: int
    timing: Timing
    config: DataConfig
    label_ids: Mapping[str, int]

    @property
    def num_slots(self) -> int:
        """Slots of the whole video."""
        return -(-self.timing.num_frames // self.config.frame_stride)


@dataclass(frozen=True, eq=False)
class VideoWindow:
    """One window of a video.

    Attributes:
        video_index: which video, in the caller's list.
        frame_indices: file frames (F,) int64, padded by repeating the last; counted at `data.fixed_fps` if that is set.
        frame_sec: display times of these frames (F,), for files whose frames are not evenly spaced.
        valid_steps: feature steps that see at least one frame that is not padding.
        grid: converts between seconds and feature steps.
        segments_grid: actions (G, 2) float32 in feature steps.
        labels: class indices (G,) int64.
    """

    video_index: int
    frame_indices: NDArray[np.int64]
    frame_sec: NDArray[np.float64]
    valid_steps: int
    grid: TimeGrid
    segments_grid: NDArray[np.float32]
    labels: NDArray[np.int64]


def random_trunc_window(source: WindowSource, *, rng: np.random.Generator) -> VideoWindow:
    """A random window that holds an action if one can be found, as the published training draws it.

    Videos shorter than a window are cropped to a random share (`crop_ratio`) and padded. Actions count when at least
    `trunc_thresh` of them lies in the window, extended at both ends by `margin_steps` (a window that is the whole video
    at least by `offset_frames`, so that no action is cut off), and are clipped to that. Without any, the window has no
    positives.
    """
    config, slots = source.config, source.num_slots
    length = min(slots, config.window_frames)
    if slots <= config.window_frames and config.crop_ratio is not None:
        shortest, longest = sorted(min(max(round(ratio * slots), 1), slots) for ratio in config.crop_ratio)
        length = int(rng.integers(shortest, longest, endpoint=True))
    offset = config.offset_frames / config.frame_stride if length == slots else 0.0
    margin = max(offset, config.margin_steps * config.frames_per_feature)  # slots
    starts = rng.integers(0, slots - length, size=TRIES, endpoint=True)
    segments_slot, _ = _actions(source, _grid(source, start_slot=0))
    segments_slot *= config.frames_per_feature
    share = _inside(segments_slot, starts[:, None] - margin, starts[:, None] + length + margin)  # (tries, G)
    with_action = np.flatnonzero((share >= config.trunc_thresh).any(axis=1))
    start = int(starts[with_action[0] if len(with_action) else -1])
    return _cut(source, start_slot=start, length=length, margin=margin)


def windows_for_testing(source: WindowSource) -> list[VideoWindow]:
    """All test windows of a video in temporal order: sliding windows, or the whole video."""
    return [resize_window(source)] if source.config.sampling == "resize" else sliding_windows(source)


def sliding_windows(source: WindowSource) -> list[VideoWindow]:
    """Overlapping windows over the whole video; the last one ends where the video ends."""
    config = source.config
    steps = -(-source.timing.num_frames // (config.frame_stride * config.frames_per_feature))
    hop = window_hop(config)
    last = max(0, steps - config.window_size)
    # differs: the reference takes range(steps // hop) starts, which for some lengths stops short of the video's end;
    # where windows just fill the video, it takes the last one twice.
    starts = [step * config.frames_per_feature for step in (*range(0, last, hop), last)]
    return [window_at(source, start_slot=start) for start in starts]


def window_at(source: WindowSource, *, start_slot: int) -> VideoWindow:
    """The window that begins at a slot; where the video ends before, it is padded."""
    length = min(source.config.window_frames, source.num_slots - start_slot)
    return _cut(source, start_slot=start_slot, length=length)


def window_hop(config: DataConfig) -> int:
    """Feature steps from one test window to the next."""
    return max(1, int(config.window_size * (1 - config.test_window_overlap)))


def whole_window(source: WindowSource) -> VideoWindow:
    """All steps of a video as one window, however long; its frames are only those of a window's length."""
    return _cut(source, start_slot=0, length=source.num_slots)


def resize_window(source: WindowSource) -> VideoWindow:
    """The whole video as one window: frames at the centres of F equal parts, T equal feature steps."""
    config, timing, duration_sec = source.config, source.timing, source.video.duration_sec
    part_frames = timing.num_frames / config.window_frames
    centres = (np.arange(config.window_frames) + 0.5) * part_frames - 0.5
    shown_sec = duration_sec - timing.start_sec
    grid = TimeGrid(origin_sec=timing.start_sec, step_sec=shown_sec / config.window_size, duration_sec=duration_sec)
    segments_grid, labels = _actions(source, grid)
    return VideoWindow(
        video_index=source.video_index,
        frame_indices=np.clip(np.rint(centres), 0, timing.num_frames - 1).astype(np.int64),
        frame_sec=timing.start_sec + centres * shown_sec / timing.num_frames,
        valid_steps=config.window_size,
        grid=grid,
        segments_grid=np.clip(segments_grid, 0, config.window_size).astype(np.float32),
        labels=labels,
    )


def every_frame(source: WindowSource, path: Path) -> NDArray[np.int64]:
    """The frames (n,) of a file that any window of a video may show, ascending.

    Raises:
        VideoError: not a decodable video.
    """
    config, timing = source.config, source.timing
    if config.sampling == "resize":
        frames = file_frames(resize_window(source), path, config)
    else:
        slots = np.arange(source.num_slots, dtype=np.int64)
        frames = np.minimum(slots * config.frame_stride, timing.num_frames - 1)
        if config.fixed_fps is not None or not probe(path).even:
            frames = frames_at(path, timing.start_sec + frames / timing.fps)
    return np.unique(np.clip(frames, 0, probe(path).num_frames - 1))


def find_timing(video: Video, path: Path, config: DataConfig) -> Timing:
    """A video's timing: from its annotation if that gives it, since the actions refer to it; else from its file.

    Raises:
        VideoError: the file cannot be decoded, or its frame rate matters and contradicts the annotation.
    """
    info = probe(path)
    shown_sec = max(video.duration_sec - info.start_sec, 1 / info.fps)
    if config.fixed_fps is not None:
        num_frames = max(1, round(shown_sec * config.fixed_fps))  # differs: the reference rounds down
        return Timing(num_frames=num_frames, fps=config.fixed_fps, start_sec=info.start_sec)
    own_frames = info.num_frames if info.even else round((info.duration_sec - info.start_sec) * info.fps)
    if config.sampling == "resize":  # the file's own frames count, whatever rate it was encoded at
        cut_short = info.duration_sec < (1 - TOLERANCE) * video.duration_sec
        num_frames = round(shown_sec * info.fps) if cut_short else own_frames
        return Timing(num_frames=num_frames, fps=info.fps, start_sec=info.start_sec)
    _check_rate(video, path, info)
    if video.num_frames is None:
        return Timing(num_frames=own_frames, fps=video.fps or info.fps, start_sec=info.start_sec)
    # After a late start, the annotated duration gives no rate: it may or may not include the time before.
    fps = info.fps if info.start_sec else video.num_frames / video.duration_sec
    return Timing(num_frames=video.num_frames, fps=fps, start_sec=info.start_sec)


def _check_rate(video: Video, path: Path, info: VideoInfo) -> None:
    """Reject a file re-encoded at a frame rate other than its annotation's: its windows would have the wrong length.

    A file that was only cut short keeps its rate, and passes.
    """
    if video.num_frames is not None:
        fps, num_frames = video.num_frames / video.duration_sec, float(video.num_frames)
    elif video.fps is not None:
        fps, num_frames = video.fps, video.fps * video.duration_sec
    else:
        return
    if abs(info.fps / fps - 1) > TOLERANCE and abs(info.num_frames / num_frames - 1) > TOLERANCE:
        raise VideoError(
            f"{path}: {info.num_frames} frames at {info.fps:.3g} per second, but its annotation implies "
            f"{num_frames:.0f} at {fps:.3g}; if it was re-encoded, remove its frame count and fps from the "
            "annotation file"
        )


def file_frames(window: VideoWindow, path: Path, config: DataConfig) -> NDArray[np.int64]:
    """The frames (F,) of a file that show a window; looked up by their times where counting would be wrong.

    Raises:
        VideoError: not a decodable video.
    """
    return frames_shown(window.frame_indices, window.frame_sec, path, config)


def frames_shown(
    frame_indices: NDArray[np.int64], frame_sec: NDArray[np.float64], path: Path, config: DataConfig
) -> NDArray[np.int64]:
    """The frames (F,) of a file for numbers (F,) counted from 0, or for their times where counting would be wrong.

    Raises:
        VideoError: not a decodable video.
    """
    if config.fixed_fps is not None or not probe(path).even:
        return frames_at(path, frame_sec)
    return frame_indices


def _cut(source: WindowSource, *, start_slot: int, length: int, margin: float = 0.0) -> VideoWindow:
    """The window of `length` slots from `start_slot` on, padded to F, with the actions that mostly lie inside.

    Actions may reach `margin` slots beyond its ends.
    """
    config, timing = source.config, source.timing
    slots = np.minimum(start_slot + np.arange(config.window_frames), start_slot + length - 1)
    grid = _grid(source, start_slot=start_slot)
    segments_grid, labels = _actions(source, grid)
    first_grid, end_grid = -margin / config.frames_per_feature, (length + margin) / config.frames_per_feature
    kept = _inside(segments_grid, first_grid, end_grid) >= config.trunc_thresh
    frame_indices = np.minimum(slots * config.frame_stride, timing.num_frames - 1).astype(np.int64)
    return VideoWindow(
        video_index=source.video_index,
        frame_indices=frame_indices,
        frame_sec=timing.start_sec + frame_indices / timing.fps,
        # differs: a last step that is only partly real counts (the reference rounds down): its frames would be lost.
        valid_steps=-(-length // config.frames_per_feature),
        grid=grid,
        segments_grid=np.clip(segments_grid[kept], first_grid, end_grid).astype(np.float32),
        labels=labels[kept],
    )


def _grid(source: WindowSource, *, start_slot: int) -> TimeGrid:
    """sec = start + (grid * feature stride + first file frame + offset) / fps, for actions and detections alike."""
    config, timing = source.config, source.timing
    feature_stride_frames = config.frame_stride * config.frames_per_feature
    return TimeGrid(
        origin_sec=timing.start_sec + (start_slot * config.frame_stride + config.offset_frames) / timing.fps,
        step_sec=feature_stride_frames / timing.fps,
        duration_sec=source.video.duration_sec,
    )


def _actions(source: WindowSource, grid: TimeGrid) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All actions on a grid (G, 2), not clipped, and their labels (G,)."""
    actions = source.video.actions
    # differs: the reference rounds ground truth down to whole frames first; times stay exact here.
    seconds = np.array([(a.start_sec, a.end_sec) for a in actions], dtype=np.float64).reshape(-1, 2)
    return grid.to_grid(seconds), np.array([source.label_ids[a.label] for a in actions], dtype=np.int64)


def _inside(
    segments: NDArray[np.float64], start: float | NDArray[np.floating], end: float | NDArray[np.floating]
) -> NDArray[np.float64]:
    """Share of each segment (G, 2) that lies in [start, end]; broadcasts over (..., 1) bounds."""
    overlap = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], start)
    return np.clip(overlap, 0, None) / (segments[:, 1] - segments[:, 0])
