"""A folder of features: NAME.npy (T, C) of each video, and features.json, which says what they are.

Several processes may fill one folder, each with its share of the videos. features.json stands from the start, and gets
its list of videos once every share is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adatad_ds.config.schema import Scaling
from adatad_ds.errors import ConfigError, DataError, summarize_list
from adatad_ds.system.atomic import TEMPORARY, flush, replacing
from adatad_ds.system.json_text import read_json

FORMAT = "adatad_ds features 1"
DESCRIPTION_FILE = "features.json"
SHARES = ".shares"  # folder of the shares that are done, where there are several
StoredType = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What a folder's features are; all of them are alike.

    Attributes:
        backbone: its name.
        weights: of the frozen transformer.
        trained: the run or file whose adapters it has; "": none.
        fingerprint: hash of all of the backbone's weights.
        channels: C.
        dtype: in which they are stored.
        resolution: pixels of a side of the frames.
        sampling: "random_trunc": every `stride_frames`; "resize": each video has the same number.
        stride_frames: file frames between two features; None with "resize".
        frames_per_feature: frames that were read for each feature.
        frame_stride: file frames between two of these; None with "resize".
        clip_frames: frames among which attention stays.
        context_frames: frames on each side of a feature's clip that adapters see, at `frame_stride`.
        offset_frames: what is to be added to a feature's number times `stride_frames` for its place in the file.
        fixed_fps: the rate at which file frames are counted; None: each file's own.
        scaling: how frames were resized; None: a folder of an earlier version, which does not say.
    """

    backbone: str
    weights: str | None
    trained: str
    fingerprint: str
    channels: int
    dtype: StoredType
    resolution: int
    sampling: Literal["random_trunc", "resize"]
    stride_frames: int | None
    frames_per_feature: int
    frame_stride: int | None
    clip_frames: int
    context_frames: int
    offset_frames: int
    fixed_fps: float | None
    scaling: Scaling | None = None


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """A video's features: how many, and the timing that places them."""

    features: int
    num_frames: int
    fps: float
    start_sec: float
    duration_sec: float


@dataclass(frozen=True, kw_only=True)
class Description:
    """What features.json holds.

    Attributes:
        settings: of all features.
        videos: those that are there, by name; None: not all shares are done.
        failed: why others are not, by name.
    """

    settings: FeatureSettings
    videos: Mapping[str, VideoFeatures] | None
    failed: Mapping[str, str]


class FeatureFolder:
    """One process's view of a folder that it fills.

    Args:
        path: the folder.
        settings: of the features.
        share: which share of the videos is this process's, and
        shares: of how many.

    Raises:
        ConfigError: the folder holds other features.
    """

    def __init__(self, path: Path, *, settings: FeatureSettings, share: int, shares: int) -> None:
        self._path, self._settings = path, settings
        self._share, self._shares = share, shares
        path.mkdir(parents=True, exist_ok=True)
        if (path / DESCRIPTION_FILE).exists():
            self._check_same(read_description(path).settings)
        else:
            self._write(Description(settings=settings, videos=None, failed={}))

    def file(self, name: str) -> Path:
        """Where a video's features belong; a name with folders in it gets those."""
        return self._path / f"{name}.npy"

    def is_done(self, name: str, *, features: int) -> bool:
        """Whether a video's features are there; written by an interrupted process, too, since files are atomic."""
        try:
            found = np.load(self.file(name), mmap_mode="r")
        except Exception:  # of none, or of a damaged one, which may raise nearly anything
            return False
        return found.shape == (features, self._settings.channels) and found.dtype == self._settings.dtype

    @contextmanager
    def writing(self, name: str, *, features: int) -> Iterator[Callable[[NDArray[np.float32]], None]]:
        """Write a video's features, some (n, C) at a time; the file has its name once all T are there.

        Raises:
            DataError: features that are not finite, or too large for the stored type.
        """
        path, dtype = self.file(name), np.dtype(self._settings.dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with replacing(path) as temporary, temporary.open("wb") as file:
            shape = (features, self._settings.channels)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

            def write(part: NDArray[np.float32]) -> None:
                nonlocal written
                with np.errstate(over="ignore"):
                    stored = part.astype(dtype)
                if (bad := not_finite(stored)) is not None:
                    largest = float(np.abs(part[bad]).max())
                    raise DataError(
                        f"{name}: feature {written + bad} of {features} is not finite as {dtype} (its largest value is "
                        f"{largest:g}); try --dtype fp32 or --set train.precision=fp32"
                    )
                file.write(np.ascontiguousarray(stored).data)
                written += len(part)

            yield write
            if written != features:
                raise DataError(f"{name}: {written} of {features} features were computed")

    def finish(self, videos: Mapping[str, VideoFeatures], failed: Mapping[str, str]) -> bool:
        """Write what this share holds; whether all shares are done, and features.json has its list of videos."""
        own = {"videos": {name: asdict(video) for name, video in videos.items()}, "failed": dict(failed)}
        if self._shares > 1:
            folder = self._path / SHARES
            folder.mkdir(exist_ok=True)
            with replacing(folder / f"{self._share}_of_{self._shares}.json") as temporary:
                temporary.write_text(json.dumps(own), encoding="utf-8")
            parts = [folder / f"{share}_of_{self._shares}.json" for share in range(self._shares)]
            if not all(part.exists() for part in parts):
                return False
            shares = [read_json(part) for part in parts]
            own = {key: {name: part for share in shares for name, part in share[key].items()} for key in own}
        held = {name: VideoFeatures(**video) for name, video in sorted(own["videos"].items())}
        self._write(Description(settings=self._settings, videos=held, failed=dict(sorted(own["failed"].items()))))
        return True

    def _write(self, description: Description) -> None:
        """Write features.json; of several processes that do so at once, each writes the same."""
        tree = {"format": FORMAT, **asdict(description)}
        temporary = self._path / f"{TEMPORARY}{self._share}_{DESCRIPTION_FILE}"
        temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        flush(temporary)
        temporary.rename(self._path / DESCRIPTION_FILE)

    def _check_same(self, found: FeatureSettings) -> None:
        if found.scaling is None:
            self._settings = replace(self._settings, scaling=None)
        theirs, ours = asdict(found), asdict(self._settings)
        different = [f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
        if different:
            raise ConfigError(
                f"{self._path} holds other features: {summarize_list(different)}. Give another --out, or the old "
                "settings to continue"
            )


def read_description(folder: Path) -> Description:
    """Read a folder's features.json.

    Raises:
        DataError: unreadable, or not of this format.
    """
    path = folder / DESCRIPTION_FILE
    try:
        tree = read_json(path)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise DataError(f"{path} is not of the format {FORMAT!r}; remove it if the features come from elsewhere")
        videos = tree["videos"]
        return Description(
            settings=FeatureSettings(**tree["settings"]),
            videos=None if videos is None else {name: VideoFeatures(**video) for name, video in videos.items()},
            failed=tree["failed"],
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}") from error


def not_finite(features: NDArray[Any]) -> int | None:
    """The first of some features (n, C) that is not finite; None if all are."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    return int(bad[0]) if len(bad) else None
