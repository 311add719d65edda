"""What filling a run's cache of features takes (`backbone.cache_features`), before its first epoch.

All sizes are of a window: its frames once through the frozen backbone, its features on disk. A resized video is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adatad_ds.config.backbone import FEATURES
from adatad_ds.config.schema import Config, DataConfig
from adatad_ds.models.execution.activation_store import StoragePolicy
from adatad_ds.models.factory import build_backbone
from adatad_ds.models.shapes import shapes_only
from adatad_ds.planning.activations import Activations

if TYPE_CHECKING:
    from adatad_ds.data.annotations import Video
    from adatad_ds.planning.memory import BackboneCost

FEATURE_BYTES = 4  # float32, in the cache and on the device


def tera(flop: float) -> str:
    """FLOPs in TFLOP, of three digits or whole."""
    return f"{flop / 1e12:.3g}" if flop < 1e14 else f"{flop / 1e12:,.0f}"


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Cost of a cache.

    Attributes:
        device_bytes: peak of a rank while it fills: all frozen weights, frames, and the backbone's activations.
        window_flop: FLOPs of a window's frames.
        window_bytes: of a window's features on disk.
        channels: C of the features.
        resized: whether a window is a whole video.
        differs: how a training on the cache differs from one on frames.
        windows: that all videos are, training and test together; None: no annotations, or without frame rates.
        epoch_windows: drawn in an epoch; None: no annotations.
    """

    device_bytes: int
    window_flop: float
    window_bytes: int
    channels: int
    resized: bool
    differs: str
    windows: float | None
    epoch_windows: int | None

    def lines(self) -> list[str]:
        """In words."""
        what = "a video" if self.resized else "a window's length of video"
        found = [
            f"cache of features, filled before the first epoch: {self.device_bytes / 1e9:.3f} GB on a rank's device; "
            f"{what}: {tera(self.window_flop)} TFLOP, {self.window_bytes / 1e6:.3g} MB of disk"
        ]
        if self.windows is not None and self.epoch_windows is not None:
            found.append(
                f"all videos: {tera(self.windows * self.window_flop)} TFLOP once (without a cache: "
                f"{tera(self.epoch_windows * self.window_flop)} in each epoch), "
                f"{self.windows * self.window_bytes / 1e9:.3g} GB of disk"
            )
        return [*found, self.differs]

    def epoch_lines(self, *, flop_per_sec: float, global_batch: int, step_sec: float) -> list[str]:
        """Floors of the first epoch and of later ones; none where the videos are not known.

        Args:
            flop_per_sec: of all ranks.
            global_batch: windows a step.
            step_sec: floor of a step.
        """
        if self.windows is None or self.epoch_windows is None:
            return []
        filling = self.windows * self.window_flop / flop_per_sec
        epoch = self.epoch_windows // global_batch * step_sec
        return [
            f"least time of the first epoch: {filling:.3g} s to fill the cache and {epoch:.3g} s; later: {epoch:.3g} s"
        ]


def plan_cache(config: Config, *, cost: BackboneCost, cuda: bool) -> CachePlan:
    """The cost of a config's cache; it reads the annotations, if they are there.

    Args:
        config: of the run.
        cost: of its backbone.

    Raises:
        ConfigError: unknown backbone.
        DataError: unusable annotations.
    """
    from adatad_ds.data.features.plan import CLIPS_AT_ONCE, describe_cache  # a decoder: not for plans without a cache

    data, size = config.data, config.train.dtype.itemsize
    bare = replace(config, backbone=replace(config.backbone, weights=None))
    with shapes_only():
        backbone = build_backbone(bare, feature_steps=1)
    weights = size * sum(parameter.numel() for parameter in backbone.parameters())
    clips = CLIPS_AT_ONCE
    if data.sampling == "resize":
        clips = min(clips, data.window_frames // config.clip_frames)
    frames = clips * config.clip_frames * data.resolution**2 * 3
    running = cost.activations(
        windows=1, clips=clips, policy=StoragePolicy(), budget=None, beside=0, cuda=cuda
    ).peak_bytes
    windows, epoch_windows = _count_windows(config)
    return CachePlan(
        device_bytes=weights + frames + running,
        window_flop=cost.flop(recomputed=0.0),
        window_bytes=data.window_size * backbone.width * FEATURE_BYTES,
        channels=backbone.width,
        resized=data.sampling == "resize",
        differs=describe_cache(data, clip_frames=config.clip_frames),
        windows=windows,
        epoch_windows=epoch_windows,
    )


class FeatureCost:
    """A `memory.BackboneCost` where features are read: nothing."""

    def flop(self, *, recomputed: float) -> float:
        """0."""
        return 0.0

    def chunk(self, *, cuda: bool) -> int:
        """0: all."""
        return 0

    def activations(
        self, *, windows: int, clips: int, policy: StoragePolicy, budget: int | None, beside: int, cuda: bool
    ) -> Activations:
        """None."""
        return Activations(clips_per_chunk=0, peak_bytes=0, recomputed=0.0)


def on_features(config: Config, *, channels: int) -> Config:
    """The config of the steps of a training that reads its cache."""
    backbone = replace(
        config.backbone, name=FEATURES, weights=None, cache_features=False, feature_channels=channels, clip_frames=None
    )
    return replace(config, backbone=backbone)


def _count_windows(config: Config) -> tuple[float | None, int | None]:
    """Windows that all videos are, and windows drawn in an epoch, as far as the annotations tell."""
    from adatad_ds.data.features.plan import annotated_videos
    from adatad_ds.data.window_dataset import with_actions

    data = config.data
    if not Path(data.annotations).is_file():
        return None, None
    drawn = len(with_actions(data)[0].videos) * config.train.repeats
    videos = list(annotated_videos(data).values())
    if data.sampling == "resize":
        return float(len(videos)), drawn
    steps = [_steps(video, data) for video in videos]
    known = [count for count in steps if count is not None]
    return (sum(known) / data.window_size if len(known) == len(steps) else None), drawn


def _steps(video: Video, data: DataConfig) -> float | None:
    """Features of a video with `sampling=random_trunc`; None: its frame rate is not annotated."""
    assert data.feature_stride_frames is not None
    frames = video.num_frames
    if data.fixed_fps is not None or frames is None:
        rate = data.fixed_fps or video.fps
        return None if rate is None else video.duration_sec * rate / data.feature_stride_frames
    return frames / data.feature_stride_frames
