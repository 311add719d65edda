"""Which frames of a whole video run through a backbone together, and which features come of them.

Two ways, both dense:

- as evaluation windows have them: consecutive clips from the video's start on, with as many clips of context on both
  sides as adapters reach, and one feature a step;
- one feature a clip: clips of any length at any stride, which may overlap, each averaged over time.

F frames of a piece, T features of the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Video, load_annotations
from adatad_ds.data.windows import Timing, WindowSource, resize_window

CLIPS_AT_ONCE = 16  # of a piece


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """The clip that a feature is computed of, if each has one of its own.

    Attributes:
        frames: frames of the clip, a multiple of what the backbone takes as one.
        frame_stride: file frames between two of them.
        stride: file frames between two features.
    """

    frames: int
    frame_stride: int
    stride: int

    @property
    def span(self) -> int:
        """File frames from a clip's first to one past its last."""
        return (self.frames - 1) * self.frame_stride + 1

    @property
    def offset_frames(self) -> int:
        """The middle of the first clip, in file frames."""
        return self.frames * self.frame_stride // 2

    def count(self, num_frames: int) -> int:
        """T, the complete clips of a video; at least 1, which a shorter video's last frame fills."""
        return max(1, (num_frames - self.span) // self.stride + 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Frames that run through the backbone together.

    Attributes:
        frames: frame numbers (F,), counted as `VideoWindow.frame_indices` are.
        frame_sec: display times of these frames (F,).
        clips: equal clips that the frames are; each is a sample of its own. 1: they are one span of time.
        first: first frame, and
        last: one past the last frame whose features are kept; the others are context.
    """

    frames: NDArray[np.int64]
    frame_sec: NDArray[np.float64]
    clips: int
    first: int
    last: int


def annotated_videos(config: DataConfig) -> dict[str, Video]:
    """All videos of the training and the test subset, by name.

    Raises:
        DataError: unusable annotations.
    """
    found: dict[str, Video] = {}
    for subset in dict.fromkeys((config.train_subset, config.test_subset)):
        loaded, _ = load_annotations(
            config.annotations,
            subset=subset,
            exclude=config.exclude,
            exclude_file=config.exclude_file,
            as_published=True,
        )
        found |= {video.name: video for video in loaded.videos}
    return found


def describe_cache(config: DataConfig, *, clip_frames: int) -> str:
    """How a training on cached features (`backbone.cache_features`) differs from the same one on frames."""
    if config.sampling == "resize":
        return "cached features: those of the frames, and the same losses"
    of_step = config.frames_per_feature > 1
    ends = "" if of_step else ", but for one step at their ends"
    begin = f". Windows begin every {config.feature_stride_frames} frames, not at any" if of_step else ""
    return (
        f"cached features: clips of {clip_frames} frames are counted from each video's first frame, in a training on "
        f"frames from each window's. Windows within the video that begin with a clip have the same features{ends}; "
        f"those of others differ slightly, and losses with them{begin}"
    )


def num_features(timing: Timing, config: DataConfig, snippet: Snippet | None) -> int:
    """T of a video."""
    if snippet is not None:
        return snippet.count(timing.num_frames)
    if config.sampling == "resize":
        return config.window_size
    return -(-timing.num_frames // (config.frame_stride * config.frames_per_feature))


def span_pieces(
    video: Video, timing: Timing, config: DataConfig, *, clip_frames: int, context_clips: int, clips_at_once: int
) -> Iterator[Piece]:
    """Pieces of consecutive clips that cover the frames of a video's steps, padded by repeating the last frame.

    Args:
        video: its duration.
        timing: of its frames.
        config: strides, or the length that it is resized to.
        clip_frames: frames of a clip.
        context_clips: clips before and after a piece that run with it.
        clips_at_once: clips of a piece, without context.
    """
    steps = num_features(timing, config, None)
    clips = -(-steps * config.frames_per_feature // clip_frames)
    if config.sampling == "resize":
        unlabelled = replace(video, actions=())
        source = WindowSource(video=unlabelled, video_index=0, timing=timing, config=config, label_ids={})
        window = resize_window(source)
        places = np.minimum(np.arange(clips * clip_frames), config.window_frames - 1)
        numbers, seconds = window.frame_indices[places], window.frame_sec[places]
    else:
        slots = np.minimum(np.arange(clips * clip_frames), -(-timing.num_frames // config.frame_stride) - 1)
        numbers = np.minimum(slots * config.frame_stride, timing.num_frames - 1).astype(np.int64)
        seconds = timing.start_sec + numbers / timing.fps
    for start in range(0, clips, clips_at_once):
        stop = min(start + clips_at_once, clips)
        before, after = max(0, start - context_clips), min(clips, stop + context_clips)
        run = slice(before * clip_frames, after * clip_frames)
        yield Piece(
            frames=numbers[run],
            frame_sec=seconds[run],
            clips=1,
            first=(start - before) * clip_frames,
            last=(stop - before) * clip_frames,
        )


def snippet_pieces(timing: Timing, snippet: Snippet, *, clips_at_once: int) -> Iterator[Piece]:
    """Pieces of clips, one a feature."""
    count, within = snippet.count(timing.num_frames), np.arange(snippet.frames) * snippet.frame_stride
    for start in range(0, count, clips_at_once):
        begins = np.arange(start, min(start + clips_at_once, count)) * snippet.stride
        numbers = np.minimum(begins[:, None] + within, timing.num_frames - 1).astype(np.int64).ravel()
        seconds = timing.start_sec + numbers / timing.fps
        yield Piece(frames=numbers, frame_sec=seconds, clips=len(begins), first=0, last=len(numbers))
