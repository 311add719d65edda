"""When it pays to prepare videos: what a training decodes of the originals, and what preparing them decodes once."""

from __future__ import annotations

from collections.abc import Sequence

from adatad_ds.config.schema import Config, DataConfig

COMMAND = "adatad-ds prepare-videos"
PREPARING = 2.7  # cost of preparing a video as H.264, by that of decoding and scaling it once (prepared_videos.md)


def decoded_frames(num_frames: float, data: DataConfig, *, fps: float) -> float:
    """File frames decoded for one window of a video: all from its first to its last one."""
    if data.sampling == "resize":
        return num_frames
    file_stride = data.frame_stride * (fps / data.fixed_fps if data.fixed_fps else 1)
    return min(num_frames, data.window_frames * file_stride)


def reading_plan(config: Config) -> list[str]:
    """A line on what a sample decodes, and for which videos preparing pays; none in recognition."""
    data, train = config.data, config.train
    if config.recognition or data.sampling == "resize" or (data.frame_stride == 1 and data.fixed_fps is None):
        return []
    stride = data.frame_stride
    if data.fixed_fps is not None:
        used = f"{data.window_frames} of the file frames of {data.window_frames * stride / data.fixed_fps:.0f} s"
        return [f"reading: a sample decodes and uses {used}; {COMMAND} leaves only frames that are used"]
    span = data.window_frames * stride
    saved = 1 - 1 / stride
    longest = train.stop_epoch * train.repeats * span * saved / PREPARING
    return [
        f"reading: a sample decodes {span} file frames and uses {data.window_frames} of them; {COMMAND} leaves only "
        f"those, which pays off for videos of fewer than {longest:,.0f} frames (each is read "
        f"{train.stop_epoch * train.repeats} times)"
    ]


def reading_advice(
    config: Config, *, train_frames: Sequence[float], test_frames: Sequence[float], fps: float, evaluations: int
) -> list[str]:
    """Whether preparing pays for these videos.

    Args:
        config: of the training.
        train_frames: file frames of each training video.
        test_frames: file frames of each test video.
        fps: their usual rate.
        evaluations: how often the test videos are read.
    """
    data = config.data
    views = config.train.stop_epoch * config.train.repeats
    overlap = 1 / (1 - data.test_window_overlap) if data.sampling == "random_trunc" else 1.0
    decoded = views * sum(decoded_frames(frames, data, fps=fps) for frames in train_frames)
    decoded += evaluations * overlap * sum(test_frames)
    whole = sum(train_frames) + sum(test_frames)
    used = [min(1.0, data.window_frames / max(1.0, decoded_frames(frames, data, fps=fps))) for frames in train_frames]
    share = sum(used) / max(1, len(used))
    pays = (1 - share) * decoded > PREPARING * whole
    verdict = "this pays off" if pays else "this does not pay off"
    return [
        f"  reading: this training decodes {decoded:,.0f} file frames, {decoded / max(1.0, whole):.1f} times as many "
        f"as there are; preparing them once ({COMMAND}) takes about {PREPARING} times the work of decoding them all "
        f"once, and keeps {share:.0%} of the frames, at {data.short_side_before_crop} pixels: {verdict}"
    ]
