"""Exports that are shared: sent to the Hugging Face hub or into a folder, and fetched from there.

A shared model is three files: the export's tensors, its description (config, classes, fingerprint of the backbone)
without what tells of the machine that it comes from, and a model card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adatad_ds.config import loading
from adatad_ds.errors import CheckpointError, ConfigError
from adatad_ds.inference.trained_model import EXPORT_FORMAT, Trained, find_trained, read_description
from adatad_ds.sharing.hub import download, name_on_hub, upload
from adatad_ds.sharing.model_card import model_card
from adatad_ds.system.atomic import replacing

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
CARD_FILE = "README.md"
_VERSIONS = ("python", "git", "packages", "cuda", "gpu")  # of the training; not its host, command and environment


def push(
    export: Path, place: str, *, metrics: Mapping[str, float] | None = None, private: bool = False, again: bool = False
) -> str:
    """Send an export, with a model card, to the hub or into a folder.

    Args:
        export: the safetensors file of `adatad-ds export`.
        place: `hub:USER/NAME`, or a folder.
        metrics: shares of 1 by name, in the place of those in the export.
        private: of a new repository on the hub.
        again: the repository or folder may exist; its files of the same names are replaced.

    Returns:
        Where it is.

    Raises:
        ConfigError: no export, a place that is taken, or the hub refuses.
        CheckpointError: files that cannot be read.
        OSError: the folder cannot be written.
    """
    name = name_on_hub(place)
    trained, description = open_shared(export)
    shared = _without_machine(description)
    trained = replace(trained, config=loading.from_dict(shared["config"]), metrics=metrics or trained.metrics)
    shared["metrics"] = trained.metrics
    files: dict[str, Path | bytes] = {
        WEIGHTS_FILE: export,
        DESCRIPTION_FILE: (json.dumps(shared, indent=1) + "\n").encode(),
        CARD_FILE: model_card(trained, place=place, file=WEIGHTS_FILE).encode(),
    }
    if name is not None:
        return upload(files, name, private=private, replace=again)
    if private:
        raise ConfigError(f"--private is for a repository on the hub, and {place} is a folder; leave it out")
    _write(files, Path(place), again=again, advice="choose another, or replace its files with --replace")
    return place


def pull(place: str, folder: Path) -> Trained:
    """Fetch a shared model, checked, into a new folder.

    Args:
        place: `hub:USER/NAME`, or a folder that `push` has written.
        folder: where it will be.

    Raises:
        ConfigError: it is none, the folder is taken, or the hub refuses.
        CheckpointError: files that cannot be read.
        OSError: the folder cannot be written.
    """
    advice = "choose another with --out"
    _check_free(folder, advice=advice)
    name = name_on_hub(place)
    names = (WEIGHTS_FILE, DESCRIPTION_FILE, CARD_FILE)
    source = Path(place) if name is None else download(name, names)
    open_shared(source / WEIGHTS_FILE, place=place)
    _write({name: source / name for name in names if (source / name).is_file()}, folder, again=False, advice=advice)
    return find_trained(folder / WEIGHTS_FILE)


def open_shared(export: Path, *, place: str | None = None) -> tuple[Trained, Mapping[str, Any]]:
    """An export's model and description.

    Args:
        export: the safetensors file.
        place: where it was found, for messages.

    Raises:
        ConfigError: it is no export.
        CheckpointError: it cannot be read.
    """
    beside = export.with_suffix(".json")
    description = read_description(beside) if beside.is_file() else {}
    if not export.is_file() or description.get("format") != EXPORT_FORMAT:
        raise ConfigError(
            f"{place or export} is not an export, which is a .safetensors file with a .json file of the same name, as "
            "`adatad-ds export RUN --out FILE` writes them"
            + (f", here {WEIGHTS_FILE} and {DESCRIPTION_FILE}" if place else "")
        )
    try:
        return find_trained(export), description
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{beside} of {place or export} is damaged: {error!r}") from error


def _without_machine(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without what tells of the machine: of absolute paths, only the last part is left."""
    versions = description.get("versions", {})
    return {
        **description,
        "backbone": _relative(description["backbone"]),
        "config": _relative(description["config"]),
        "versions": {key: versions[key] for key in _VERSIONS if key in versions},
    }


def _relative(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _relative(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_relative(value) for value in content]
    is_path = isinstance(content, str) and content.startswith(("/", "~"))
    return Path(content).name if is_path else content


def _check_free(folder: Path, *, advice: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; {advice}")


def _write(files: Mapping[str, Path | bytes], folder: Path, *, again: bool, advice: str) -> None:
    if not again:
        _check_free(folder, advice=advice)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)
