"""Files of features as they are published: NumPy, PyTorch, pickles of arrays, HDF5; found by video name, read in part.

T features of a video, C channels.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adatad_ds.data.decoding.video import VideoError
from adatad_ds.data.video_names import VideoNames
from adatad_ds.errors import DataError, summarize_list

ARRAYS = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".pkl", ".pickle")  # of several, the first is taken
HDF5 = (".h5", ".hdf5")
USUAL_KEYS = ("feats", "features", "feat", "feature", "arr_0", "c3d_features")
# All that a pickle of arrays needs; anything else in it is refused, since reading it could run code.
_ALLOWED = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # of arrays that Python 2 pickled, and protocol 2
}
HEADER_BYTES = 4096
# NumPy's headers are parsed as Python: before 3.11.8 and 3.12.2 not in two threads at once (python/cpython#106905).
_PARSING = Lock()
Layout = Literal["time first", "channels first"]


@dataclass(frozen=True)
class StoredArray:
    """A two-dimensional array in a file, which is read when it is asked for.

    Attributes:
        path: the file.
        key: its name within the file; "": the file has no names.
        shape: without axes of length 1 beyond the second.
    """

    path: Path
    key: str
    shape: tuple[int, int]

    def rows(self, start: int, stop: int, *, layout: Layout) -> NDArray[np.float32]:
        """Features `start` to `stop`, (n, C) float32.

        Raises:
            VideoError: unreadable, or not finite.
        """
        try:
            whole = _two_axes(_read(self.path, self.key))
        except Exception as error:  # damaged files raise nearly anything
            raise VideoError(f"{self.path}: cannot be read: {_first_line(error)}") from error
        if whole.shape != self.shape:
            raise VideoError(f"{self.path}: its shape was {self.shape}, and is now {whole.shape}")
        part = whole[start:stop] if layout == "time first" else whole[:, start:stop].T
        found = np.ascontiguousarray(part, dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise VideoError(f"{self.path}: {len(bad)} features are not finite, the first is number {start + bad[0]}")
        return found


class FeatureFiles:
    """The arrays of one folder, or of one HDF5 file, by video name.

    Args:
        source: the folder or file.

    Raises:
        DataError: nothing is there.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        self._in_file: Mapping[str, str] = {}
        if self.source.is_dir():
            files = [path for path in self.source.rglob("*") if _is_array(path, self.source)]
            files.sort(key=lambda path: (ARRAYS.index(path.suffix.lower()), path.as_posix()))
            self._files = {path.relative_to(self.source).with_suffix("").as_posix(): path for path in reversed(files)}
        elif self.source.suffix.lower() in HDF5 and self.source.is_file():
            self._in_file = _entries(self.source)
            self._files = dict.fromkeys(self._in_file, self.source)
        else:
            raise DataError(
                f"data.features: there is no folder {str(self.source)!r}; it must hold VIDEO_NAME.npy (or "
                f"{', '.join(ARRAYS[1:])}), or be one HDF5 file"
            )
        if not self._files:
            raise DataError(f"data.features: {str(self.source)!r} holds no features ({', '.join(ARRAYS)})")
        self._names = VideoNames(self._files)

    def find(self, name: str) -> str | None:
        """The name here of a video; None if it is not there."""
        return self._names.find(name)

    def open(self, name: str) -> StoredArray:
        """A video's array, by its name here; only what says its shape is read.

        Raises:
            VideoError: unreadable, or not one two-dimensional array.
        """
        path = self._files[name]
        try:
            key, shape = _shape(path, self._in_file.get(name, ""))
        except Exception as error:  # damaged files raise nearly anything
            raise VideoError(f"{path}: cannot be read: {_first_line(error)}") from error
        long = tuple(size for size in shape if size != 1) if len(shape) > 2 else shape
        if len(long) == 1 and len(shape) > 2:  # a single feature, or a single channel
            long = (1, *long)
        if len(long) != 2 or 0 in long:
            raise VideoError(f"{path}: features must be an array of two axes, time and channels; this one is {shape}")
        return StoredArray(path, key, (long[0], long[1]))

    def names(self) -> Iterable[str]:
        """All names that are there."""
        return self._files


def layout_of(array: StoredArray, *, channels: int, usual: Layout | None = None) -> Layout | None:
    """How an array lies in memory, by the axis that has `channels`; `usual` where both have; None: neither."""
    if array.shape == (channels, channels):
        return usual
    if array.shape[1] == channels:
        return "time first"
    return "channels first" if array.shape[0] == channels else None


def common_channels(arrays: Sequence[StoredArray]) -> int:
    """The size of the axis that is equal in all arrays: the last one, if both are."""
    first, last = ({array.shape[axis] for array in arrays} for axis in (0, 1))
    return last.pop() if len(last) == 1 or len(first) > 1 else first.pop()


def _is_array(path: Path, source: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
    return path.suffix.lower() in ARRAYS and not hidden and path.is_file()


def _shape(path: Path, key: str) -> tuple[str, tuple[int, ...]]:
    """Key and shape of a file's array."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            key = _chosen(path, {Path(name).stem: name for name in archive.namelist()})
            with archive.open(f"{key}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                with _PARSING:
                    return key, read(file)[0]
    if suffix in HDF5:
        with _hdf5(path) as file:
            key = key or _chosen(path, dict(file))
            return key, tuple(file[key].shape)
    found = _read(path, "")
    if isinstance(found, Mapping):
        key = _chosen(path, found)
        found = _array(found[key])
    return key, tuple(found.shape)


def _read(path: Path, key: str) -> Any:
    """A file's array, mapped from the file where its format allows; of PyTorch and pickles, what the file holds."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with path.open("rb") as file:
            file.read(HEADER_BYTES)  # which may take time, and lies in memory afterwards
        with _PARSING:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    if suffix in HDF5:
        with _hdf5(path) as file:
            return file[key][()]
    found = _load_tensors(path) if suffix in (".pt", ".pth") else _load_pickle(path)
    if isinstance(found, Mapping):
        return _array(found[key]) if key else found
    return _array(found)


def _load_tensors(path: Path) -> Any:
    import torch  # here: NumPy's files need none

    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays in mappings and lists; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"refused, as it asks for {module}.{name} besides arrays, and reading that could run code; save the "
                "arrays as .npy where you trust the file"
            )
        return super().find_class(module, name)


def _array(found: Any) -> NDArray[Any]:
    if hasattr(found, "numpy"):  # a tensor; NumPy has no bf16
        found = found.detach().float().numpy() if found.is_floating_point() else found.numpy()
    array = np.asarray(found)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype}, no numbers")
    return array


def _two_axes(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim <= 2:
        return array
    long = [size for size in array.shape if size != 1]
    return array.reshape(long if len(long) == 2 else (1, -1))


def _chosen(path: Path, entries: Mapping[str, Any]) -> str:
    """The entry that holds the features: the only one, or one of a usual name."""
    for key in (*entries, *USUAL_KEYS) if len(entries) == 1 else USUAL_KEYS:
        if key in entries:
            return key
    raise ValueError(
        f"it holds {len(entries)} entries ({summarize_list(list(map(str, entries)), limit=5, separator=', ')}), and "
        f"none is called {' or '.join(USUAL_KEYS[:2])}"
    )


def _entries(path: Path) -> dict[str, str]:
    """Datasets of an HDF5 file by video name; a group holds the features of one video."""
    try:
        with _hdf5(path) as file:
            return {
                name: name if hasattr(entry, "shape") else f"{name}/{_chosen(path, dict(entry))}"
                for name, entry in file.items()
            }
    except Exception as error:  # damaged files raise nearly anything
        raise DataError(f"cannot read {path}: {_first_line(error)}") from error


def _hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path} is an HDF5 file, and h5py is not installed: pip install h5py") from error
    return h5py.File(path, "r")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
