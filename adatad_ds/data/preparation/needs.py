"""Which frames of which videos a recipe reads, and at what size; and whether prepared videos have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import DataConfig
from adatad_ds.data.annotations import Video, load_annotations
from adatad_ds.data.decoding.prepared import AGAIN, manifest_of, places_of, size_fault
from adatad_ds.data.decoding.video import VideoError, index_of, probe
from adatad_ds.data.windows import WindowSource, every_frame, find_timing
from adatad_ds.errors import DataError, summarize_list


@dataclass(frozen=True, kw_only=True)
class Use:
    """One use that a recipe makes of a video.

    Attributes:
        video: the video.
        config: how its windows are cut.
        training: whether it is trained on, else tested.
    """

    video: Video
    config: DataConfig
    training: bool

    @property
    def short_side(self) -> int:
        """Pixels of the shorter side at which its frames are read."""
        return self.config.short_side_before_crop if self.training else self.config.resolution


def uses_of(config: DataConfig) -> list[Use]:
    """All uses of all annotated videos, of the training and of the test subset.

    Raises:
        DataError: unusable annotations.
    """
    subsets = {config.train_subset: True, config.test_subset: False}
    if len(subsets) == 1:  # one subset for both
        uses = _uses(config, config.test_subset, training=True)
        return [*uses, *(Use(video=use.video, config=config, training=False) for use in uses)]
    return [use for subset, training in subsets.items() for use in _uses(config, subset, training=training)]


def _uses(config: DataConfig, subset: str, *, training: bool) -> list[Use]:
    annotations, _ = load_annotations(
        config.annotations,
        subset=subset,
        exclude=config.exclude,
        exclude_file=config.exclude_file,
        min_share=config.min_action_share if training else 0.0,
    )
    videos = [video for video in annotations.videos if video.actions or not training]  # none is trained on without
    return [Use(video=video, config=config, training=training) for video in videos]


def needed_frames(use: Use, path: Path) -> NDArray[np.int64]:
    """The frames (n,) of a file that a use may read, ascending; also those of the file by itself, as predict reads it.

    The last one is always among them: it stands for all that an annotation counts beyond it.

    Raises:
        VideoError: the file cannot be decoded, or contradicts its annotation.
    """
    config, info = use.config, probe(path)
    videos = [use.video]
    if info.even or config.fixed_fps is not None:
        videos.append(Video(use.video.name, "", info.duration_sec, None, None, ()))
    frames = [every_frame(_source(video, path, config), path) for video in videos]
    frames.append(np.array([info.num_frames - 1], dtype=np.int64))
    return np.unique(np.concatenate(frames))


def check_prepared(config: DataConfig, videos: Sequence[Video], paths: Mapping[str, Path], *, training: bool) -> None:
    """Check that prepared videos hold what will be read of them; nothing is checked of other videos.

    Raises:
        DataError: some do not, or cannot be used at all.
    """
    if manifest_of(Path(config.videos)) is None:
        return
    faults = []
    for video in videos:
        path, use = paths[video.name], Use(video=video, config=config, training=training)
        try:
            index = index_of(path)
            if (fault := size_fault(index, short_side=use.short_side, scaling=config.scaling)) is not None:
                faults.append(f"{path.name}: {fault}")
                continue
            places_of(index, every_frame(_source(video, path, config), path))
        except VideoError as error:
            faults.append(str(error).replace(f"{path}: ", f"{path.name}: ").removesuffix(f"; {AGAIN}"))
    if faults:
        raise DataError(
            f"data.videos={config.videos}: {len(faults)} of {len(videos)} prepared videos cannot be used: "
            f"{summarize_list(faults, limit=3)}. {AGAIN[0].upper()}{AGAIN[1:]}, with this recipe and --out "
            f"{config.videos}, or set data.videos to the originals"
        )


def _source(video: Video, path: Path, config: DataConfig) -> WindowSource:
    return WindowSource(
        video=video, video_index=0, timing=find_timing(video, path, config), config=config, label_ids=_Any()
    )


class _Any(dict[str, int]):
    """A class index for every label, where it does not matter which."""

    def __missing__(self, key: str) -> int:
        return 0
