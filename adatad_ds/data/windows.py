"""Which frames of a video make up a window, and where its actions lie on the window's feature grid.

F frames of a window, T feature steps (F = T * frames_per_feature), G actions of a window. A window's frames are
`stride` file frames apart; they are counted in "slots": slot k is file frame k * stride. Seconds are a player's.
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

TRIES = 200  # random windows looked at until one holds an action
TOLERANCE = 0.05  # between a file and its annotation


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How a video's frames lie in time, as its windows are cut.

    Attributes:
        num_frames: of the video.
        fps: frames a second.
        start_sec: when the first one is shown.
    """

    num_frames: int
    fps: float
    start_sec: float = 0.0


@dataclass(frozen=True, eq=False)
class VideoWindow:
    """One window of a video.

    Attributes:
        video_index: which video, in the caller's list.
        frame_indices: file frames (F,) int64, padded by repeating the last; counted at `data.fixed_fps` if that is set.
        frame_sec: when those are shown (F,), for files whose frames are not evenly spaced.
        valid_steps: feature steps that see at least one frame that is not padding.
        grid: seconds of the feature steps.
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


def random_trunc_window(
    video: Video,
    *,
    timing: Timing,
    config: DataConfig,
    label_ids: Mapping[str, int],
    rng: np.random.Generator,
    video_index: int,
) -> VideoWindow:
    """A random window that holds an action if one can be found, as the published training draws it.

    Videos shorter than a window are cropped to a random share (`crop_ratio`) and padded. Actions count when at least
    `trunc_thresh` of them lies inside, and are clipped to the window. Without any, the window has no positives.

    Args:
        video: its actions.
        timing: of its frames.
        config: window length, strides, thresholds.
        label_ids: class index of every label.
        rng: the only source of randomness.
        video_index: copied into the result.
    """
    slots = _slots(timing.num_frames, config)
    length = min(slots, config.window_frames)
    if slots <= config.window_frames and config.crop_ratio is not None:
        shortest, longest = sorted(min(max(round(ratio * slots), 1), slots) for ratio in config.crop_ratio)
        length = int(rng.integers(shortest, longest, endpoint=True))
    starts = rng.integers(0, slots - length, size=TRIES, endpoint=True)
    whole = _grid(video, start_slot=0, timing=timing, config=config)
    segments_slot, _ = _actions(video, whole, label_ids)
    segments_slot *= config.frames_per_feature
    share = _inside(segments_slot, starts[:, None], starts[:, None] + length)  # (tries, G)
    with_action = np.flatnonzero((share >= config.trunc_thresh).any(axis=1))
    start = int(starts[with_action[0] if len(with_action) else -1])
    return _cut(
        video,
        start_slot=start,
        length=length,
        timing=timing,
        config=config,
        label_ids=label_ids,
        video_index=video_index,
    )


def windows_for_testing(
    video: Video,
    *,
    timing: Timing,
    config: DataConfig,
    label_ids: Mapping[str, int],
    video_index: int,
) -> list[VideoWindow]:
    """All windows of a video in testing, by rising time: sliding ones, or the whole video; arguments as above."""
    if config.sampling == "resize":
        return [resize_window(video, timing=timing, config=config, label_ids=label_ids, video_index=video_index)]
    return sliding_windows(video, timing=timing, config=config, label_ids=label_ids, video_index=video_index)


def sliding_windows(
    video: Video,
    *,
    timing: Timing,
    config: DataConfig,
    label_ids: Mapping[str, int],
    video_index: int,
) -> list[VideoWindow]:
    """Overlapping windows over the whole video, the last one ending at its end; arguments as above."""
    steps = -(-timing.num_frames // (config.frame_stride * config.frames_per_feature))
    hop = max(1, int(config.window_size * (1 - config.test_window_overlap)))
    last = max(0, steps - config.window_size)
    # differs: the reference takes range(steps // hop) starts, which for some lengths stops short of the video's end.
    starts = [*range(0, last, hop), last]
    slots = _slots(timing.num_frames, config)
    windows = []
    for start_step in starts:
        start_slot = start_step * config.frames_per_feature
        windows.append(
            _cut(
                video,
                start_slot=start_slot,
                length=min(config.window_frames, slots - start_slot),
                timing=timing,
                config=config,
                label_ids=label_ids,
                video_index=video_index,
            )
        )
    return windows


def resize_window(
    video: Video, *, timing: Timing, config: DataConfig, label_ids: Mapping[str, int], video_index: int
) -> VideoWindow:
    """The whole video as one window: frames at the centres of F equal parts, T steps from the first to the end."""
    part_frames = timing.num_frames / config.window_frames
    centres = (np.arange(config.window_frames) + 0.5) * part_frames - 0.5
    shown_sec = video.duration_sec - timing.start_sec
    grid = TimeGrid(
        origin_sec=timing.start_sec, step_sec=shown_sec / config.window_size, duration_sec=video.duration_sec
    )
    segments_grid, labels = _actions(video, grid, label_ids)
    return VideoWindow(
        video_index=video_index,
        frame_indices=np.clip(np.rint(centres), 0, timing.num_frames - 1).astype(np.int64),
        frame_sec=timing.start_sec + centres * shown_sec / timing.num_frames,
        valid_steps=config.window_size,
        grid=grid,
        segments_grid=np.clip(segments_grid, 0, config.window_size).astype(np.float32),
        labels=labels,
    )


def find_timing(video: Video, path: Path, config: DataConfig) -> Timing:
    """How a video's windows are cut: by its annotation where that tells, as its times fit it, else by its file.

    Raises:
        VideoError: the file cannot be decoded, or its frames are not those of the annotation, and their rate matters.
    """
    info = probe(path)
    shown_sec = max(video.duration_sec - info.start_sec, 1 / info.fps)
    if config.fixed_fps is not None:
        num_frames = max(1, round(shown_sec * config.fixed_fps))
        return Timing(num_frames=num_frames, fps=config.fixed_fps, start_sec=info.start_sec)
    own_frames = info.num_frames if info.even else round((info.duration_sec - info.start_sec) * info.fps)
    if config.sampling == "resize":  # which frames these are, the file knows, at whatever rate it was encoded
        cut_short = info.duration_sec < (1 - TOLERANCE) * video.duration_sec
        num_frames = round(shown_sec * info.fps) if cut_short else own_frames
        return Timing(num_frames=num_frames, fps=info.fps, start_sec=info.start_sec)
    _check_rate(video, path, info)
    if video.num_frames is None:
        return Timing(num_frames=own_frames, fps=video.fps or info.fps, start_sec=info.start_sec)
    # A duration with a late start in it, or without, tells no rate.
    fps = info.fps if info.start_sec else video.num_frames / video.duration_sec
    return Timing(num_frames=video.num_frames, fps=fps, start_sec=info.start_sec)


def _check_rate(video: Video, path: Path, info: VideoInfo) -> None:
    """Refuse a file that was re-encoded at another frame rate than its annotation's: windows would last another time.

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
            f"{path}: {info.num_frames} frames at {info.fps:.3g} a second, but its annotation means "
            f"{num_frames:.0f} at {fps:.3g}; if it was re-encoded, take its frame count and fps out of the "
            "annotation file"
        )


def file_frames(window: VideoWindow, path: Path, config: DataConfig) -> NDArray[np.int64]:
    """The frames (F,) of a file that show a window; looked up by their times where counting would mislead.

    Raises:
        VideoError: no video that can be decoded.
    """
    if config.fixed_fps is not None or not probe(path).even:
        return frames_at(path, window.frame_sec)
    return window.frame_indices


def _cut(
    video: Video,
    *,
    start_slot: int,
    length: int,
    timing: Timing,
    config: DataConfig,
    label_ids: Mapping[str, int],
    video_index: int,
) -> VideoWindow:
    """The window of `length` slots from `start_slot` on, padded to F, with the actions that mostly lie inside."""
    slots = np.minimum(start_slot + np.arange(config.window_frames), start_slot + length - 1)
    grid = _grid(video, start_slot=start_slot, timing=timing, config=config)
    segments_grid, labels = _actions(video, grid, label_ids)
    end_grid = length / config.frames_per_feature
    kept = _inside(segments_grid, 0, end_grid) >= config.trunc_thresh
    frame_indices = np.minimum(slots * config.frame_stride, timing.num_frames - 1).astype(np.int64)
    return VideoWindow(
        video_index=video_index,
        frame_indices=frame_indices,
        frame_sec=timing.start_sec + frame_indices / timing.fps,
        # differs: a last step that is only partly real counts (the reference rounds down): its frames would be lost.
        valid_steps=-(-length // config.frames_per_feature),
        grid=grid,
        segments_grid=np.clip(segments_grid[kept], 0, end_grid).astype(np.float32),
        labels=labels[kept],
    )


def _slots(num_frames: int, config: DataConfig) -> int:
    return -(-num_frames // config.frame_stride)


def _grid(video: Video, *, start_slot: int, timing: Timing, config: DataConfig) -> TimeGrid:
    """sec = start + (grid * feature stride + first file frame + offset) / fps, for actions and detections alike."""
    feature_stride_frames = config.frame_stride * config.frames_per_feature
    return TimeGrid(
        origin_sec=timing.start_sec + (start_slot * config.frame_stride + config.offset_frames) / timing.fps,
        step_sec=feature_stride_frames / timing.fps,
        duration_sec=video.duration_sec,
    )


def _actions(
    video: Video, grid: TimeGrid, label_ids: Mapping[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All actions on a grid (G, 2), not clipped, and their labels (G,)."""
    # differs: the reference rounds ground truth down to whole frames first; times stay exact here.
    seconds = np.array([(a.start_sec, a.end_sec) for a in video.actions], dtype=np.float64).reshape(-1, 2)
    return grid.to_grid(seconds), np.array([label_ids[a.label] for a in video.actions], dtype=np.int64)


def _inside(
    segments: NDArray[np.float64], start: int | NDArray[np.int64], end: float | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of each segment (G, 2) that lies in [start, end]; broadcasts over (..., 1) bounds."""
    overlap = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], start)
    return np.clip(overlap, 0, None) / (segments[:, 1] - segments[:, 0])
