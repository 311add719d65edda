"""Which frames of which videos a recipe reads, and at what size; and whether prepared videos have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import Config, DataConfig, RecognitionConfig, Scaling
from adatad_ds.data.annotations import Video, load_annotations
from adatad_ds.data.decoding.prepared import AGAIN, manifest_of, places_of, size_fault
from adatad_ds.data.decoding.video import VideoError, index_of, probe
from adatad_ds.data.labelled_videos import LabelledVideo, listed_videos
from adatad_ds.data.video_files import present_videos
from adatad_ds.data.windows import WindowSource, every_frame, find_timing
from adatad_ds.errors import ConfigError, DataError, summarize_list


class Use(Protocol):
    """One use that a recipe makes of a video."""

    @property
    def name(self) -> str:
        """Of the video."""
        ...

    @property
    def short_side(self) -> int:
        """Pixels of the shorter side at which its frames are read."""
        ...

    def frames(self, path: Path) -> NDArray[np.int64]:
        """The frames (n,) of a file that may be read, ascending.

        Raises:
            VideoError: the file cannot be decoded, or contradicts its annotation.
        """
        ...

    def to_prepare(self, path: Path) -> NDArray[np.int64]:
        """The frames (n,) of a file to prepare, ascending; errors as for `frames`."""
        ...


@dataclass(frozen=True, kw_only=True)
class WindowUse:
    """Of an annotated video.

    Attributes:
        video: the video.
        config: how its windows are cut.
        training: whether it is trained on, else tested.
    """

    video: Video
    config: DataConfig
    training: bool

    @property
    def name(self) -> str:
        """Of the video."""
        return self.video.name

    @property
    def short_side(self) -> int:
        """Pixels of the shorter side at which its frames are read."""
        return _short_side(self.config, training=self.training)

    def frames(self, path: Path) -> NDArray[np.int64]:
        """All frames of all windows; see `Use`."""
        return every_frame(_source(self.video, path, self.config), path)

    def to_prepare(self, path: Path) -> NDArray[np.int64]:
        """Also those of the file by itself, as predict reads it, and its last one.

        The last one stands for all that an annotation counts beyond it.
        """
        config, info = self.config, probe(path)
        frames = [self.frames(path), np.array([info.num_frames - 1], dtype=np.int64)]
        if info.even or config.fixed_fps is not None:
            alone = Video(self.video.name, "", info.duration_sec, None, None, ())
            frames.append(every_frame(_source(alone, path, config), path))
        return np.unique(np.concatenate(frames))


@dataclass(frozen=True, kw_only=True)
class ClipUse:
    """Of a labelled video, whose clips may have any of its frames."""

    name: str
    short_side: int

    def frames(self, path: Path) -> NDArray[np.int64]:
        """All; see `Use`."""
        return np.arange(probe(path).num_frames, dtype=np.int64)

    def to_prepare(self, path: Path) -> NDArray[np.int64]:
        """All."""
        return self.frames(path)


def _short_side(config: DataConfig, *, training: bool) -> int:
    return config.short_side_before_crop if training else config.resolution


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a recipe reads.

    Attributes:
        scaling: how.
        root: a folder that all originals are below; prepared files are likewise below theirs.
        folders: folders of originals, by the settings that name them.
        uses: of each original.
        missing: why annotated videos have none, by name.
    """

    scaling: Scaling
    root: Path
    folders: Mapping[str, Path]
    uses: Mapping[Path, Sequence[Use]]
    missing: Mapping[str, str]


def wanted(config: Config) -> Wanted:
    """What a recipe reads.

    Raises:
        DataError: unusable annotations, lists or folders.
        ConfigError: a setting is missing.
    """
    if config.recognition is not None:
        return wanted_clips(config.recognition, config.data)
    for key in ("annotations", "videos"):
        if not getattr(config.data, key):
            raise ConfigError(f"data.{key} is not set: give --set data.{key}=...")
    return wanted_windows(config.data)


def wanted_windows(config: DataConfig) -> Wanted:
    """What a recipe of detection reads: windows of all annotated videos, of the training and of the test subset.

    Raises:
        DataError: unusable annotations or folder.
    """
    folder, uses = Path(config.videos), _window_uses(config)
    found = present_videos(folder, list(dict.fromkeys(use.name for use in uses)))
    by_path: dict[Path, list[Use]] = {}
    for use in uses:
        if use.name in found:
            by_path.setdefault(found[use.name], []).append(use)
    missing = {use.name: f"{use.name}: not in {folder}" for use in uses if use.name not in found}
    folders = {"data.videos": folder}
    return Wanted(scaling=config.scaling, root=folder, folders=folders, uses=by_path, missing=missing)


def wanted_clips(settings: RecognitionConfig, data: DataConfig) -> Wanted:
    """What a recipe of recognition reads: clips of all videos of both lists.

    Raises:
        DataError: unusable lists or folders.
        ConfigError: no folder of videos is set, or folders of videos that have no common parent.
    """
    lists = {"recognition.train_list": Path(settings.train_list), "recognition.test_list": Path(settings.test_list)}
    folders = {key: path for key, path in lists.items() if path.is_dir()}
    if folders and len({path.parent for path in folders.values()}) + (len(folders) < len(lists)) > 1:
        raise ConfigError("to prepare folders of classes, put those of training and test side by side in one folder")
    root = next(iter(folders.values())).parent if folders else Path(data.videos)
    uses: dict[Path, list[Use]] = {}
    for training in (True, False):
        side = _short_side(data, training=training)
        for video in listed_videos(settings, data, training=training).videos:
            uses.setdefault(video.path, []).append(ClipUse(name=video.name, short_side=side))
    return Wanted(scaling=data.scaling, root=root, folders=folders or {"data.videos": root}, uses=uses, missing={})


def _window_uses(config: DataConfig) -> list[WindowUse]:
    subsets = {config.train_subset: True, config.test_subset: False}
    if len(subsets) == 1:  # one subset for both
        uses = _uses_of_subset(config, config.test_subset, training=True)
        return [*uses, *(replace(use, training=False) for use in uses)]
    return [use for subset, training in subsets.items() for use in _uses_of_subset(config, subset, training=training)]


def _uses_of_subset(config: DataConfig, subset: str, *, training: bool) -> list[WindowUse]:
    annotations, _ = load_annotations(
        config.annotations,
        subset=subset,
        exclude=config.exclude,
        exclude_file=config.exclude_file,
        min_share=config.min_action_share if training else 0.0,
    )
    videos = [video for video in annotations.videos if video.actions or not training]  # none is trained on without
    return [WindowUse(video=video, config=config, training=training) for video in videos]


def check_prepared(config: DataConfig, videos: Sequence[Video], paths: Mapping[str, Path], *, training: bool) -> None:
    """Check that prepared videos hold what will be read of them; nothing is checked of other videos.

    Raises:
        DataError: some do not, or cannot be used at all.
    """
    uses = {paths[video.name]: WindowUse(video=video, config=config, training=training) for video in videos}
    _check(uses, scaling=config.scaling)


def check_prepared_clips(videos: Sequence[LabelledVideo], config: DataConfig, *, training: bool) -> None:
    """The same of clips of labelled videos; errors as for `check_prepared`."""
    side = _short_side(config, training=training)
    _check({video.path: ClipUse(name=video.name, short_side=side) for video in videos}, scaling=config.scaling)


def _check(uses: Mapping[Path, Use], *, scaling: Scaling) -> None:
    prepared = {folder for folder in {path.parent for path in uses} if manifest_of(folder) is not None}
    checked = {path: use for path, use in uses.items() if path.parent in prepared}
    faults = []
    for path, use in checked.items():
        try:
            index = index_of(path)
            if (fault := size_fault(index, short_side=use.short_side, scaling=scaling)) is not None:
                faults.append(f"{path.name}: {fault}")
                continue
            places_of(index, use.frames(path))
        except VideoError as error:
            faults.append(str(error).replace(f"{path}: ", f"{path.name}: ").removesuffix(f"; {AGAIN}"))
    if faults:
        where = min(prepared)
        raise DataError(
            f"{where}: {len(faults)} of {len(checked)} prepared videos cannot be used: "
            f"{summarize_list(faults, limit=3)}. {AGAIN[0].upper()}{AGAIN[1:]}, with this recipe and the same --out, "
            "or read the originals"
        )


def _source(video: Video, path: Path, config: DataConfig) -> WindowSource:
    return WindowSource(
        video=video, video_index=0, timing=find_timing(video, path, config), config=config, label_ids=_Any()
    )


class _Any(dict[str, int]):
    """A class index for every label, where it does not matter which."""

    def __missing__(self, key: str) -> int:
        return 0
