"""Files that hold tensors: found, recognised as sound, and read one tensor at a time.

Safetensors, one or several in a folder; pickles of PyTorch, with `weights_only=True`; names on the Hugging Face hub.
Nothing is read before it is asked for: a rank needs no more memory than one tensor. What a download may have left
behind (a pointer of Git LFS, a web page, half a file) is an error that says so.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.system.clone import CLONE

SAFETENSORS = ".safetensors"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_INDEX = "model.safetensors.index.json"
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.float64(0).__reduce__()[0],
)  # beside weights
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: its sizes.
        read: reads it; each call reads anew, and keeps nothing.
        read_rows: reads indices `start` to `stop` of the first axis; None: `read` reads them all.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    read_rows: Callable[[int, int], Tensor] | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Indices `start` to `stop` of the first axis."""
        return self.read()[start:stop] if self.read_rows is None else self.read_rows(start, stop)

    def part(self, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of the flattened tensor, flat; no more rows are read than these lie in."""
        if not self.shape:
            return self.read().flatten()[start:stop]
        each = math.prod(self.shape[1:])
        first = start // each
        return self.rows(first, -(-stop // each)).flatten()[start - first * each : stop - first * each]


Tensors = dict[str, StoredTensor]


def held_tensor(tensor: Tensor) -> StoredTensor:
    """A tensor in memory, as if it were in a file."""
    return StoredTensor(tuple(tensor.shape), lambda: tensor)


def open_tensors(source: str | Path, *, entries: tuple[str, ...] = ()) -> Tensors:
    """The tensors of a file, of a Hugging Face folder, or of a name on the hub.

    Args:
        source: `x.safetensors`, `x.pth`, a folder with `model.safetensors` (or its index), or `organisation/name`.
        entries: which dict of a pickle holds the tensors, the first one present; else the pickle itself.

    Raises:
        CheckpointError: absent, unreadable, unsafe, or without tensors.
    """
    path = find_source(source)
    if path.is_dir():
        return _open_folder(path, entries)
    _refuse_lookalikes(path)
    tensors = _open_safetensors(path) if path.suffix == SAFETENSORS else _open_pickle(path, entries)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def is_to_download(source: str | Path) -> bool:
    """Whether a source is a name on the Hugging Face hub that is not in its cache yet."""
    try:
        find_source(source, download=False)
    except CheckpointError:
        return True
    except FileNotFoundError:
        return False
    return False


def find_source(source: str | Path, *, download: bool = True) -> Path:
    """The file or folder that a source names; one on the hub is downloaded into its cache first.

    Args:
        source: as for `open_tensors`.
        download: False: of the hub, only what is in its cache.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: the hub does not give it.
    """
    path = Path(source).expanduser()
    with_the_code = CLONE / path  # the quickstarts' weights, wherever one stands
    for place in (path, with_the_code):
        if place.exists():
            return place
    if not is_hub_name(str(source)):
        raise FileNotFoundError(f"there is no weights file {path}")
    from huggingface_hub import snapshot_download

    patterns = ["config.json", _INDEX, "model*.safetensors"]
    try:
        folder = snapshot_download(str(source), allow_patterns=patterns, local_files_only=not download)
        if download and not list(Path(folder).glob("*" + SAFETENSORS)):
            folder = snapshot_download(str(source), allow_patterns=["config.json", "pytorch_model.bin"])
    except Exception as error:  # the hub's errors and those of the libraries below it are many
        raise CheckpointError(
            f"there is neither a file {path} nor can {source} be had from the Hugging Face hub: {first_line(error)}. "
            "Without network, download it elsewhere and give the folder's path"
        ) from error
    return Path(folder)


def is_hub_name(source: str) -> bool:
    """Whether a source that is no path here may be a name on the hub: `organisation/name`."""
    return bool(_HUB_NAME.fullmatch(source)) and Path(source).suffix not in (SAFETENSORS, *_PICKLES)


def _open_folder(folder: Path, entries: tuple[str, ...]) -> Tensors:
    index = folder / _INDEX
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the index of shards {index} is damaged: {first_line(error)}") from error
        absent = [name for name in files if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(f"{folder} lacks {len(absent)} of {len(files)} shards: {', '.join(absent[:4])}")
    else:
        files = [name for name in _FOLDER_FILES if (folder / name).is_file()][:1]
        files = files or sorted(path.name for path in folder.glob("*" + SAFETENSORS))
    if not files:
        raise CheckpointError(f"the folder {folder} holds no {' and no '.join(_FOLDER_FILES)}")
    tensors: Tensors = {}
    for name in files:
        tensors |= open_tensors(folder / name, entries=entries)
    return tensors


def _open_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path}: {first_line(error)}. It is cut short or damaged; fetch it again "
            f"(it has {path.stat().st_size} bytes here)"
        ) from error

    def reader(name: str, shape: tuple[int, ...]) -> StoredTensor:
        def read(rows: slice | None = None) -> Tensor:
            try:
                with safe_open(path, framework="pt") as file:  # open no longer than this: mapped pages count as memory
                    return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"cannot read {path}: {first_line(error)}. It changed after it was opened (a training that goes on "
                    "removes old checkpoints); try again"
                ) from error

        return StoredTensor(shape, read, lambda start, stop: read(slice(start, stop)))

    return {name: reader(name, shape) for name, shape in shapes.items()}


def _open_pickle(path: Path, entries: tuple[str, ...]) -> Tensors:
    try:
        content = _load_pickle(path)
    except Exception as error:  # a malformed pickle may raise nearly anything
        foreign = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path} is refused: it asks for {foreign[1]} besides tensors, and reading that could run code "
                "from the file. Ask its authors for the tensors alone, or save those where you trust it"
            ) from error
        raise CheckpointError(
            f"cannot read {path}: {first_line(error)}. It is cut short, damaged or no PyTorch file; fetch it again "
            f"(it has {path.stat().st_size} bytes here)"
        ) from error
    for name in entries:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__} where names and tensors belong")

    tensors = {name: held_tensor(tensor) for name, tensor in content.items() if isinstance(tensor, Tensor)}
    inside = [str(name) for name, part in content.items() if _has_tensors(part)]
    if inside and not tensors:
        raise CheckpointError(
            f"{path} holds tensors in {' and '.join(inside)} alone, but they are looked for in "
            f"{', '.join(entries) or 'the file itself'}; save them under one of these names"
        )
    return tensors


def _has_tensors(part: object) -> bool:
    return isinstance(part, Mapping) and any(isinstance(tensor, Tensor) for tensor in part.values())


def _load_pickle(path: Path) -> object:
    """Read a pickle, its tensors mapped from the file where its format (since PyTorch 1.6) allows that."""
    with torch.serialization.safe_globals([*_HARMLESS]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _refuse_lookalikes(path: Path) -> None:
    """Tell apart what downloads leave in the place of weights."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise CheckpointError(f"{path} is empty; fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is only a pointer of Git LFS, not the weights; run `git lfs pull` in its clone, or download the "
            "file itself"
        )
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not weights: the download answered with a page (a login, a confirmation, an "
            "error). Open the address in a browser, and save the file itself"
        )


def check_fit(tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Check that names and shapes agree; axes of length 1 do not count (a 1x1 convolution is linear).

    Raises:
        CheckpointError: listing every difference.
    """
    misshaped = [
        f"{key} is {tensors[key].shape}, the model wants {shapes[key]}"
        for key in sorted(shapes.keys() & tensors.keys())
        if _without_ones(tensors[key].shape) != _without_ones(shapes[key])
    ]
    problems = [
        f"{len(keys)} {title}: {', '.join(keys)}"
        for title, keys in (
            ("missing", sorted(shapes.keys() - tensors.keys())),
            ("unexpected", sorted(tensors.keys() - shapes.keys())),
            ("of another shape", misshaped),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"the weights in {source} do not fit this model. " + ". ".join(problems))


def first_line(error: Exception) -> str:
    """The first sentence of an error's message."""
    return re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def require_safetensors(out: Path) -> None:
    """Check the name of a file of tensors before anything is done for it.

    Raises:
        ConfigError: it does not end in .safetensors.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors; got {out}")
